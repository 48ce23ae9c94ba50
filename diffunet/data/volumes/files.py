"""Volumes as files: NIfTI, TIFF stacks, MetaImage and NumPy arrays, read in one orientation and written in the file's.

A .npy file has the shape (D, H, W) or (C, D, H, W). A .npz file has such an array called `values`, or as its only one,
and may have `spacing`, (z, y, x) in millimeters, or `affine`, (4, 4) as in `Grid`.
"""

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch

from ...core.storage import atomic_write
from ..arrays import MAX_CHANNELS, NPY
from ..decoding import reason_of
from .grids import Grid, Header, Orientation, Volume, affine_of, check_affine
from .metaimage import inspect_metaimage, read_metaimage
from .nifti import inspect_nifti, read_nifti, write_nifti
from .stacks import inspect_tiff, read_tiff, write_tiff

MAX_VOXELS = 1 << 33
"""Of all channels of a volume, against headers that make up sizes."""
STORED = {"uint8": "uint8", "bool": "uint8", "int16": "int16", "int8": "int16", "float16": "float32"}
STORED |= dict.fromkeys(("int32", "uint16", "uint32", "int64", "uint64"), "int32")
STORED |= dict.fromkeys(("float32", "float64", "longdouble", "float128"), "float32")
"""The types of tensors that hold values of other types."""
DOUBLE_SUFFIXES = ".ome.tif", ".ome.tiff"
FOREIGN = {".dcm", ".dicom", ".nrrd", ".nhdr", ".hdr", ".img", ".mgz", ".mgh", ".mnc", ".gipl", ".h5", ".zarr"}
"""Suffixes of volumes in other formats."""


def read_volume(path: Path, channels: int | None = None) -> Volume:
    """Return the volume in a file, with its axes closest to x to the right, y to the front and z up.

    Values keep the type of the file: uint8, int16, int32, or fp32; 64 bits become 32. Those that NIfTI scales by its
    header become fp32. NaN stay. `channels`: the number that is expected; None: any. Raise ValueError with the reason
    if the file cannot be read.
    """
    with _reasons():
        kind = _format_of(_regular(path))
        header = _checked(kind.inspect(path))
        if channels not in (None, header.shape[0]):
            raise ValueError(f"{header.shape[0]} channels instead of {channels}")
        orientation = Orientation.of(header.affine)
        values = stored(orientation.apply(kind.read(path)))
        grid = None if header.affine is None else orientation.grid(header.affine, header.shape)
        return Volume(torch.from_numpy(values), grid)


def inspect_volume(path: Path) -> tuple[tuple[int, int, int, int], Grid | None]:
    """Return the shape (C, D, H, W) and the grid of the volume that `read_volume` returns, from its header alone.

    Raise ValueError with the reason if the file cannot be read.
    """
    with _reasons():
        shape, _, affine = _checked(_format_of(_regular(path)).inspect(path))
        orientation = Orientation.of(affine)
        return orientation.shape(shape), None if affine is None else orientation.grid(affine, shape)


def write_volume(path: Path, values: np.ndarray, like: Path) -> None:
    """Write values (D, H, W) or (C, D, H, W), in the orientation of `read_volume`, on the grid of another file.

    The suffix of `path` decides the format. If `like` has the same one, so have axes, affine or resolution of the new
    file; another format gets the grid, if there is one. Integers are stored in the smallest type of 8, 16 or 32 bits.
    Raise ValueError with the reason if `like` cannot be read, if it has another size, or for other suffixes.
    """
    with _reasons():
        kind, model = _format_of(path), _format_of(_regular(like))
        if kind.write is None:
            raise ValueError("MetaImage is not written; use .nii.gz")
        shape, _, affine = _checked(model.inspect(like))
        orientation = Orientation.of(affine)
        values = _smallest(values if values.ndim == 4 else values[None])
        if values.shape[1:] != orientation.shape(shape)[1:]:
            sizes = ["×".join(map(str, sides)) for sides in (values.shape[1:], orientation.shape(shape)[1:])]
            raise ValueError(f"{sizes[0]} voxels for the {sizes[1]} of {like.name}")
    if kind is model:
        kind.write(path, orientation.undo(values), like, None)
    else:
        kind.write(path, values, None, None if affine is None else orientation.grid(affine, shape).affine)


def suffix_of(path: Path) -> str:
    """Return the suffix of a file in lower case, with both parts of .nii.gz, or another .gz, and .ome.tif."""
    name = path.name.lower()
    if name.endswith(".gz"):
        return "".join(Path(name).suffixes[-2:])
    return next((suffix for suffix in DOUBLE_SUFFIXES if name.endswith(suffix)), Path(name).suffix)


def written_suffix(like: Path) -> str:
    """Return the suffix of a new file like another one: the same, or .nii.gz for a format that is only read."""
    suffix = suffix_of(like)
    return suffix if _format_of(like).write else ".nii.gz"


def stem_of(path: Path) -> str:
    """Return the name of a file without its suffix, of which .nii.gz and .ome.tif are one."""
    return path.name[: len(path.name) - len(suffix_of(path))]


def stored(values: np.ndarray) -> np.ndarray:
    """Return values in a type that tensors have. Raise ValueError for other values, and those that do not fit."""
    name = STORED.get(values.dtype.name)
    if name is None:
        raise ValueError(f"values of type {values.dtype.name} are not supported")
    if values.dtype.name in ("uint32", "int64", "uint64"):
        limits = np.iinfo(np.int32)
        if values.min() < limits.min or values.max() > limits.max:
            raise ValueError(f"integers from {values.min()} to {values.max()} do not fit into 32 bits")
    with np.errstate(over="ignore"):
        found = np.ascontiguousarray(values, dtype=name)
    if values.dtype.kind == "f" and values.dtype.itemsize > 4 and (np.isinf(found) & ~np.isinf(values)).any():
        raise ValueError("numbers beyond 3e38 do not fit into 32 bits")
    return found if found.flags.writeable else found.copy()


def _smallest(values: np.ndarray) -> np.ndarray:
    """Return integers in the smallest of four types, and others in fp32."""
    if values.dtype.kind not in "biu":
        return values.astype(np.float32, copy=False)
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    for dtype in (np.uint8, np.int16, np.uint16, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return values.astype(dtype, copy=False)
    raise ValueError(f"integers from {low} to {high} do not fit into 32 bits")


def _checked(header: Header) -> Header:
    """Return a header. Raise ValueError if what it describes is no volume."""
    channels, *sides = header.shape
    if header.dtype.name not in STORED:
        raise ValueError(f"values of type {header.dtype.name} are not supported")
    if min(header.shape) < 1:
        raise ValueError("no voxels")
    if channels > MAX_CHANNELS:
        raise ValueError(f"{channels} channels are more than {MAX_CHANNELS}")
    if int(np.prod(header.shape, dtype=object)) > MAX_VOXELS:
        raise ValueError(f"{' × '.join(map(str, sides[::-1]))} voxels are too many")
    return header if header.affine is None else header._replace(affine=check_affine(header.affine))


def _regular(path: Path) -> Path:
    """Return a path. Raise ValueError for folders, and for pipes, which could block forever."""
    if path.exists() and not path.is_file():
        raise ValueError("not a regular file")
    return path


@contextmanager
def _reasons() -> Iterator[None]:
    """Raise ValueError, one line without the path, for whatever readers raise; memory that is missing is left as is."""
    try:
        yield
    except MemoryError:
        raise
    except OSError as error:
        raise ValueError((error.strerror or str(error) or type(error).__name__).splitlines()[0]) from None
    except Exception as error:
        raise ValueError(reason_of(error)) from None


# ── formats ───────────────────────────────────────────────────────────────────────────────────────


class _Format(NamedTuple):
    """How files of one format are used. Each function raises what its library raises."""

    inspect: Callable[[Path], Header]
    read: Callable[[Path], np.ndarray]
    """Returns (C, k, j, i), as the header describes it."""
    write: Callable[[Path, np.ndarray, Path | None, np.ndarray | None], None] | None
    """From (C, k, j, i), and a file of this format or an affine."""


def _inspect_npy(path: Path) -> Header:
    with open(path, "rb") as file:
        shape, dtype = _array_header(file, path.stat().st_size)
    return Header(_four(shape), dtype, None)


def _array_header(file: IO[bytes], length: int) -> tuple[tuple[int, ...], np.dtype]:
    """Return shape and type of an array that is stored in `length` bytes, before memory is taken for it."""
    start = file.read(8)
    if not start.startswith(NPY) or start[6:] not in (b"\1\0", b"\2\0"):
        raise ValueError("not an array of numbers")
    read = np.lib.format.read_array_header_1_0 if start[6] == 1 else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("not an array of numbers")
    if file.tell() + int(np.prod(shape, dtype=object)) * dtype.itemsize > length:
        raise ValueError(f"truncated: {length:,} bytes for an array of shape {shape}")
    return shape, dtype


def _read_npy(path: Path) -> np.ndarray:
    values = np.load(path, allow_pickle=False)
    return values.reshape(_four(values.shape))


def _write_npy(path: Path, values: np.ndarray, like: Path | None, affine: np.ndarray | None) -> None:
    with atomic_write(path) as file, open(file, "wb") as opened:
        np.save(opened, _as_many_axes(values, like and np.load(like, mmap_mode="r", allow_pickle=False).ndim))


def _npz_header(path: Path) -> tuple[tuple[int, ...], np.dtype]:
    with zipfile.ZipFile(path) as archive:
        name = _array_of([entry.removesuffix(".npy") for entry in archive.namelist()])
        with archive.open(f"{name}.npy") as file:
            return _array_header(file, archive.getinfo(f"{name}.npy").file_size)


def _inspect_npz(path: Path) -> Header:
    shape, dtype = _npz_header(path)
    with np.load(path, allow_pickle=False) as arrays:
        if "affine" in arrays:
            return Header(_four(shape), dtype, arrays["affine"])
        if "spacing" not in arrays:
            return Header(_four(shape), dtype, None)
        spacing = np.asarray(arrays["spacing"], np.float64)
    if spacing.shape != (3,) or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise ValueError(f"spacing {spacing.tolist()} is not three positive lengths (z, y, x)")
    return Header(_four(shape), dtype, affine_of((spacing[0], spacing[1], spacing[2])))


def _read_npz(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as arrays:
        values = arrays[_array_of(arrays.files)]
    return values.reshape(_four(values.shape))


def _write_npz(path: Path, values: np.ndarray, like: Path | None, affine: np.ndarray | None) -> None:
    arrays: dict[str, Any] = {} if affine is None else {"affine": affine}
    if like is not None:
        with np.load(like, allow_pickle=False) as model:
            arrays = {name: model[name] for name in ("spacing", "affine") if name in model}
    arrays["values"] = _as_many_axes(values, like and len(_npz_header(like)[0]))
    with atomic_write(path) as file, open(file, "wb") as opened:
        np.savez_compressed(opened, **arrays)


def _array_of(names: list[str]) -> str:
    """Return which array of a .npz file is the volume."""
    others = [name for name in names if name not in ("spacing", "affine")]
    if "values" not in others and len(others) != 1:
        raise ValueError(f"arrays {', '.join(sorted(others)) or 'are missing'}; call one of them values")
    return "values" if "values" in others else others[0]


def _four(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Return a shape as (C, D, H, W)."""
    if len(shape) not in (3, 4):
        raise ValueError(f"{len(shape)} axes; a volume has (D, H, W) or (C, D, H, W)")
    channels, depth, height, width = (1, *shape)[-4:]
    return channels, depth, height, width


def _as_many_axes(values: np.ndarray, axes: int | None) -> np.ndarray:
    """Return a single channel without its axis, unless a file that has it is followed."""
    return values[0] if len(values) == 1 and axes != 4 else values


_NIFTI = _Format(inspect_nifti, read_nifti, write_nifti)
_TIFF = _Format(inspect_tiff, read_tiff, write_tiff)
_META = _Format(inspect_metaimage, read_metaimage, None)
FORMATS = {".nii": _NIFTI, ".nii.gz": _NIFTI, ".mhd": _META, ".mha": _META}
FORMATS |= dict.fromkeys((".tif", ".tiff", ".ome.tif", ".ome.tiff"), _TIFF)
FORMATS |= {".npy": _Format(_inspect_npy, _read_npy, _write_npy), ".npz": _Format(_inspect_npz, _read_npz, _write_npz)}
"""By suffix."""


def _format_of(path: Path) -> _Format:
    suffix = suffix_of(path)
    if suffix in FORMATS:
        return FORMATS[suffix]
    if suffix in FOREIGN:
        raise ValueError(f"{suffix} is not supported; convert it to .nii")
    raise ValueError(f"no volume by its suffix {suffix or '(none)'}; expected {', '.join(sorted(FORMATS))}")
