"""NIfTI files, single or zipped: their header, their values, and new files on the grid of another."""

import gzip
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ...core.storage import atomic_write
from .grids import Header

GZIP = b"\x1f\x8b"
HEADERS = {348: "Nifti1Image", 540: "Nifti2Image"}
"""Classes of nibabel by the number that a file begins with."""
EXPANSION = 1032
"""The largest factor by which deflate shrinks a file."""
UNITS = {"meter": 1e3, "mm": 1.0, "micron": 1e-3}
"""In millimeters; others are taken as millimeters."""


def inspect_nifti(path: Path) -> Header:
    """Return the header of a file. Raise Exception if it cannot be read."""
    with _opened(path) as (_, image):
        i, j, k, channels = _shape(image.shape)
        scaled = _scaling(image) != (1, 0)
        dtype = np.dtype(np.float32) if scaled else image.get_data_dtype()
        return Header((channels, k, j, i), dtype, _affine(image))


def read_nifti(path: Path) -> np.ndarray:
    """Return the values of a file, (C, k, j, i), which are floats only if its header scales them.

    Raise Exception if it cannot be read.
    """
    with _opened(path) as (file, image):
        values = image.dataobj.get_unscaled().reshape(_shape(image.shape), order="F").T
        while file.read(1 << 20):  # the checksum of a zipped file is behind the last byte
            pass
        slope, intercept = _scaling(image)
    if (slope, intercept) != (1, 0):
        values = values.astype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
        values *= slope
        values += intercept
    return values


def write_nifti(path: Path, values: np.ndarray, like: Path | None, affine: np.ndarray | None) -> None:
    """Write values (C, k, j, i) with the header of another file, or on a grid in millimeters.

    Affine, its codes, units and intent are those of `like`; its scaling, range of display and extensions are of its
    own values, and left out.
    """
    import nibabel

    data = values.T if len(values) > 1 else values[0].T
    if like is None:
        image = nibabel.Nifti1Image(data, np.eye(4) if affine is None else affine)
        if affine is not None:
            image.header.set_xyzt_units("mm")
    else:
        with _opened(like) as (_, model):
            header = model.header.copy()
            axes = min(len(model.shape), 3)
            kind, affine = type(model), model.affine
        header.set_data_dtype(data.dtype)
        header.set_data_offset(0)
        header["cal_min"] = header["cal_max"] = 0
        header.extensions.clear()
        if data.ndim == 3:
            data = data.reshape(data.shape[:axes])  # (i, j) of a single plane
        image = kind(data, affine, header)
    with atomic_write(path) as file:
        nibabel.save(image, file)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open a file. Yield it, unzipped, and its image, of which only the header is read."""
    try:
        import nibabel
    except ImportError:
        raise ValueError("needs nibabel; pip install 'diffunet[volumes]'") from None
    with open(path, "rb") as stored:
        zipped = stored.read(2) == GZIP
        stored.seek(0)
        with gzip.GzipFile(fileobj=stored) if zipped else nullcontext(stored) as file:
            start = file.read(4)
            name = HEADERS.get(int.from_bytes(start, "little")) or HEADERS.get(int.from_bytes(start, "big"))
            if name is None:
                raise ValueError("not a NIfTI file" if start else "empty")
            kind = getattr(nibabel, name)
            file.seek(0)
            image = kind.from_file_map(kind.make_file_map({"image": file}), mmap=False)
            _check_length(image, os.fstat(stored.fileno()).st_size, zipped)
            yield file, image


def _check_length(image: Any, length: int, zipped: bool) -> None:
    """Raise ValueError if a file is too short for its values: before memory is taken for them."""
    needed = image.dataobj.offset + int(np.prod(image.shape, dtype=object)) * image.get_data_dtype().itemsize
    if needed > length * (EXPANSION if zipped else 1):
        raise ValueError(f"truncated: {length:,} bytes{', zipped,' if zipped else ''} instead of {needed:,}")


def _shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return (i, j, k, C) of the shape of a file. Raise ValueError if more than one axis is beyond the third."""
    others = [length for length in shape[3:] if length != 1]
    if len(others) > 1:
        raise ValueError(f"{len(shape)} axes of lengths {shape}; a volume has (x, y, z) or (x, y, z, channels)")
    return (*(*shape, 1, 1)[:3], *(others or [1]))


def _scaling(image: Any) -> tuple[float, float]:
    """Return the factor and the summand by which stored values become values."""
    return float(image.dataobj.slope), float(image.dataobj.inter)


def _affine(image: Any) -> np.ndarray:
    """Return the affine in millimeters, whatever the unit of the file."""
    affine = np.array(image.affine, np.float64)
    with suppress(KeyError):  # a number that stands for no unit
        affine[:3] *= UNITS.get(image.header.get_xyzt_units()[0], 1.0)
    return affine
