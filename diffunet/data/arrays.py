"""Images as arrays: .npy files, and TIFF with the channels, bits and floats that Pillow lacks.

A .npy file has the shape (H, W), (H, W, C) or (C, H, W): the smaller of the first and the last axis is that of the
channels, in doubt the last. Complex numbers have a real and an imaginary channel each, in turn. Of a TIFF one page is
read; its tags name the axes.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MAX_CHANNELS = 64
NPY = b"\x93NUMPY"
"""First bytes of a .npy file."""
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of a TIFF, classic and big, in both byte orders."""
DEPTHS = {"uint8": 8, "uint16": 16, "int16": 32, "float16": 32, "float32": 32, "float64": 32}
"""Bit depth of the images with such values."""
PARTS = {"complex64": "float32", "complex128": "float64"}
"""Types of the real and the imaginary part of complex numbers."""


def check_size(height: int, width: int) -> None:
    """Raise ValueError if an image has more pixels than Pillow accepts."""
    if math.prod((height, width)) > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise ValueError(f"{width} × {height} pixels are too many")


def check_array(shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Raise ValueError unless an image can be stored so: (H, W, C), with a type of DEPTHS."""
    if dtype.name not in DEPTHS:
        raise ValueError(f"values of type {dtype.name} are not supported")
    if not all(shape):
        raise ValueError("no pixels")
    height, width, channels = shape
    if channels > MAX_CHANNELS:
        raise ValueError(f"{channels} channels are more than {MAX_CHANNELS}")
    check_size(height, width)


def to_tensor(values: np.ndarray) -> Tensor:
    """Return values (H, W, C) as (C, H, W): uint8, int32 for 16 bits, else fp32."""
    wide = {"uint8": np.uint8, "uint16": np.int32}.get(values.dtype.name, np.float32)
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(values.transpose(2, 0, 1), dtype=wide)
    return torch.from_numpy(values)


def npy_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    """Return the shape and the type of a .npy file. Raise ValueError if it does not hold an image."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError("not an array of numbers")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if len(shape) not in (2, 3):
        raise ValueError(f"{len(shape)} axes; an image has (H, W), (H, W, C) or (C, H, W)")
    return shape, dtype


def real_layout(shape: tuple[int, ...], dtype: np.dtype, channels: int | None) -> tuple[tuple[int, ...], np.dtype]:
    """Return the shape (H, W, C) and the type of an array whose complex numbers are two channels each."""
    if dtype.name not in PARTS:
        return channels_last_shape(shape, channels), dtype
    height, width, numbers = channels_last_shape(shape, channels and channels // 2)
    return (height, width, 2 * numbers), np.dtype(PARTS[dtype.name])


def channels_first(shape: tuple[int, ...], channels: int | None = None) -> bool:
    """Return whether (C, H, W) is meant: by the number of channels, else by the smaller axis."""
    if len(shape) == 2 or channels == shape[-1]:
        return False
    return channels == shape[0] or shape[0] < shape[-1]


def channels_last_shape(shape: tuple[int, ...], channels: int | None = None) -> tuple[int, ...]:
    """Return the shape as (H, W, C)."""
    if len(shape) == 2:
        return (*shape, 1)
    return (*shape[1:], shape[0]) if channels_first(shape, channels) else shape


def read_npy(file: BinaryIO, channels: int | None = None) -> np.ndarray:
    """Return the array of a .npy file as (H, W, C). Raise ValueError if it is not an image."""
    shape, dtype = npy_header(file)
    check_array(*real_layout(shape, dtype, channels))
    file.seek(0)
    values = np.load(file, allow_pickle=False)
    is_complex = dtype.name in PARTS
    if values.ndim == 2:
        values = values[..., None]
    elif channels_first(shape, channels // 2 if channels and is_complex else channels):
        values = values.transpose(1, 2, 0)
    return np.ascontiguousarray(values, dtype.name).view(PARTS[dtype.name]) if is_complex else values


def pillow_reads_tiff(file: BinaryIO) -> bool:
    """Return whether Pillow keeps all channels and bits of a TIFF."""
    try:
        with Image.open(file) as image:
            samples, bits = image.tag_v2.get(277, 1), image.tag_v2.get(258, (1,))
            unknown = samples == 2 and 0 in image.tag_v2.get(338, ())
            signed = image.tag_v2.get(339, (1,))[0] == 2 and max(bits) <= 16  # of 32 bits they are clipped to 16
            return samples <= 4 and not unknown and not signed and (samples == 1 or max(bits) <= 8)
    except (Image.DecompressionBombError, Image.UnidentifiedImageError):
        return False
    finally:
        file.seek(0)


@contextmanager
def tiff_page(file: BinaryIO, number: int = 0) -> Iterator:
    """Open a page of a TIFF. Raise ValueError if tifffile is missing or the page does not hold an image."""
    try:
        import tifffile
    except ImportError:
        raise ValueError("a TIFF of this kind needs tifffile; pip install 'diffunet[volumes]'") from None
    with tifffile.TiffFile(file) as tiff:
        page = tiff.pages[number]
        if page.axes not in ("YX", "YXS", "SYX"):
            raise ValueError(f"axes {page.axes} are not those of an image")
        check_array(_tiff_shape(page), page.dtype)
        yield page


def _tiff_shape(page) -> tuple[int, ...]:
    shape = dict(zip(page.axes, page.shape, strict=True))
    return shape["Y"], shape["X"], shape.get("S", 1)


def inspect_array(file: BinaryIO, head: bytes, page: int = 0) -> tuple[tuple[int, ...], np.dtype]:
    """Return the shape, (H, W, C), and the type of an array of which only the header is read."""
    if head.startswith(NPY):
        shape, dtype = real_layout(*npy_header(file), None)
        check_array(shape, dtype)
        return shape, dtype
    with tiff_page(file, page) as found:
        return _tiff_shape(found), found.dtype


def read_array(file: BinaryIO, head: bytes, channels: int | None = None, page: int = 0) -> Tensor:
    """Return the pixels of an array, (C, H, W). `channels` decides between the first and the last axis."""
    if head.startswith(NPY):
        return to_tensor(read_npy(file, channels))
    with tiff_page(file, page) as found:
        values = found.asarray()
        return to_tensor(np.moveaxis(values, 0, -1) if found.axes == "SYX" else values.reshape(_tiff_shape(found)))
