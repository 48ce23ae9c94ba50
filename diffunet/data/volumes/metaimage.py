"""MetaImage, the format of SLIVER07: a text header, and raw values in the same file or beside it (.mha, .mhd)."""

import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .grids import Header

TYPES = {
    "MET_UCHAR": "u1",
    "MET_CHAR": "i1",
    "MET_USHORT": "u2",
    "MET_SHORT": "i2",
    "MET_UINT": "u4",
    "MET_INT": "i4",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
LONGEST = 1 << 16
"""Bytes in which a header has to end."""
RIGHT_AND_FRONT = np.diag([-1.0, -1.0, 1.0, 1.0])
"""MetaImage counts millimeters to the left and to the back, NIfTI to the right and to the front."""


class _Parts(NamedTuple):
    header: Header
    file: Path
    start: int
    """Byte where the values begin; negative: they end the file."""
    zipped: bool


def inspect_metaimage(path: Path) -> Header:
    """Return the header of a file. Raise Exception if it cannot be read."""
    return _parts(path).header


def read_metaimage(path: Path) -> np.ndarray:
    """Return the values of a file, (C, k, j, i), of which compressed ones have to be zlib's. Raise Exception."""
    (shape, dtype, _), file, start, zipped = _parts(path)
    length = int(np.prod(shape, dtype=object)) * dtype.itemsize
    with open(file, "rb") as opened:
        opened.seek(-length if start < 0 else start, 2 if start < 0 else 0)
        content = zlib.decompressobj().decompress(opened.read(), length) if zipped else opened.read(length)
    if len(content) < length:
        raise ValueError(f"truncated: {len(content):,} bytes of values instead of {length:,}")
    values = np.frombuffer(content, dtype).reshape(*shape[1:], shape[0])  # channels are the fastest axis
    return np.moveaxis(values, -1, 0)


def _parts(path: Path) -> _Parts:
    with open(path, "rb") as opened:
        start = opened.read(LONGEST)
    fields, end = {}, 0
    while "ElementDataFile" not in fields:
        line, newline, _ = start[end:].partition(b"\n")
        name, equals, value = line.decode("ascii", "replace").partition("=")
        if not equals:
            raise ValueError("not a MetaImage: its header has no ElementDataFile")
        fields[name.strip()] = value.strip()
        end += len(line) + len(newline)

    def flag(*names: str) -> bool:
        return any(fields.get(name, "False").lower() == "true" for name in names)

    def numbers(default: str, *names: str) -> np.ndarray:
        text = next((fields[name] for name in names if name in fields), default)
        return np.array([float(word) for word in text.split()])

    if fields.get("NDims") != "3" or fields.get("ElementType") not in TYPES:
        raise ValueError(f"{fields.get('NDims')} axes of {fields.get('ElementType')}; expected 3 of numbers")
    order = ">" if flag("BinaryDataByteOrderMSB", "ElementByteOrderMSB") else "<"
    i, j, k = (int(side) for side in numbers("", "DimSize"))
    shape = int(fields.get("ElementNumberOfChannels", 1)), k, j, i
    affine = np.eye(4)
    axes = numbers("1 0 0 0 1 0 0 0 1", "TransformMatrix", "Rotation", "Orientation").reshape(3, 3)  # a row is an axis
    affine[:3, :3] = axes.T * numbers("1 1 1", "ElementSpacing", "ElementSize")
    affine[:3, 3] = numbers("0 0 0", "Offset", "Position", "Origin")
    name = fields["ElementDataFile"]
    if name != Path(name).name or "%" in name or name == "LIST":
        raise ValueError(f"its values are in {name}; expected LOCAL, or one file beside it")
    header = Header(shape, np.dtype(order + TYPES[fields["ElementType"]]), RIGHT_AND_FRONT @ affine)
    local = name == "LOCAL"
    skipped = int(fields.get("HeaderSize", 0))
    return _Parts(header, path if local else path.with_name(name), end if local else skipped, flag("CompressedData"))
