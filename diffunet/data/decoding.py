"""Decode one image to pixels (channels, H, W): what Pillow reads, .npy, and TIFF of any channels and depth."""

import io
import math
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..core.errors import printable
from .arrays import DEPTHS, NPY, TIFF, check_size, inspect_array, pillow_reads_tiff, read_array, to_tensor
from .pixels import to_depth

UNREADABLE = Exception
"""Raised by a broken image: each of Pillow's thirty readers has its own exceptions."""
ORIENTATION = 0x0112
"""Tag of EXIF; from 5 on, height and width are swapped."""
GRAY_OR_COLOR = 1, 3, 4
"""Numbers of channels that convert to each other: gray, color, color with transparency."""
STRIP = 16
"""An image that scaling would enlarge by more than this factor is cropped first."""


def describe_unreadable(row: dict | None, index: int, error: Exception) -> str:
    """Return the name of an image, {bytes, path}, and why it cannot be read."""
    name = printable(row["path"], 4096) if row and row["path"] else f"row {index}"
    return f"{name} ({reason_of(error)})"


def reason_of(error: Exception) -> str:
    """Return the cause of a read error as one line: the first of a chain of errors."""
    while error.__cause__:
        error = error.__cause__
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, struct.error):
        return "truncated"
    if isinstance(error, UnicodeEncodeError):
        return f"the name {printable(error.object)} is not Unicode"
    return printable((str(error).strip() or type(error).__name__).splitlines()[0])


def file_of(row: dict | None) -> io.BytesIO | str:
    """Return the file of an image, {bytes, path}: its bytes or its path. Raise ValueError if it cannot be read."""
    if not row or (row["bytes"] is None and row["path"] is None):
        raise ValueError("no image")
    if row["bytes"] is not None:
        return io.BytesIO(row["bytes"])
    if row["path"].startswith("zip://"):
        raise ValueError("packed in an archive; unpack it")
    if os.path.exists(row["path"]) and not os.path.isfile(row["path"]):
        raise ValueError("not a regular file")  # reading a pipe could block forever
    return row["path"]


def page_of(row: dict | None) -> int:
    """Return the page of a stack, {bytes, path, page}; the first if it is not given."""
    return row.get("page", 0) if row else 0


class Kind(NamedTuple):
    """What the header of an image file gives."""

    channels: int
    bit_depth: int
    size: tuple[int, int]
    """(height, width), upright."""
    name: str
    """A mode of Pillow or a type of NumPy, for the log."""


def inspect(row: dict | None) -> Kind:
    """Return the kind of an image, of which only the header is read. Raise UNREADABLE."""
    with _open(row) as (file, head):
        if head:
            (height, width, channels), dtype = inspect_array(file, head, page_of(row))
            return Kind(channels, DEPTHS[dtype.name], (height, width), dtype.name)
        with open_image(row) as image:
            channels, depth, mode = channels_of(image), depth_of(image), image.mode
            rotated = image.getexif().get(ORIENTATION, 1) >= 5  # may decode, after which the depth is lost
            return Kind(channels, depth, image.size if rotated else image.size[::-1], mode)


def decode(row: dict | None, channels: int, bit_depth: int, value_range: tuple[float, float] | None = None) -> Tensor:
    """Return the pixels of an image, (channels, H, W), upright, of `bit_depth` as defined in `pixels`.

    value_range: the values in the file that become the least and the greatest pixel; those outside are clipped. None:
    the range of unsigned integers, [0, 1] of floats and signed integers. Raise UNREADABLE.
    """
    pixels, depth = read_values(row, channels)
    finite(pixels)
    if value_range or depth == 32:
        low, high = value_range or (0, 1)
        pixels, depth = ((pixels.double() - low) / (high - low)).clamp(0, 1).float(), 32
    return to_depth(pixels, depth, bit_depth)


def values_of(row: dict | None) -> tuple[float, float]:
    """Return the least and the greatest value in a file. Raise UNREADABLE."""
    values = finite(read_values(row, inspect(row).channels)[0])
    return values.min().item(), values.max().item()


def read_values(row: dict | None, channels: int) -> tuple[Tensor, int]:
    """Return the values of an image as in its file, (channels, H, W), and their bit depth. Raise UNREADABLE."""
    with _open(row) as (file, head):
        if head:
            values = read_array(file, head, channels, page_of(row))
            depth = {torch.uint8: 8, torch.int32: 16}.get(values.dtype, 32)
            return with_channels(values, channels, 1 if depth == 32 else 2**depth - 1), depth
        with open_image(row) as image:
            depth = depth_of(image)
            return (_eight_bits if depth == 8 else _wide)(image, row, channels), depth


def finite(values: Tensor) -> Tensor:
    """Return the values. Raise ValueError if one is not finite."""
    if not values.isfinite().all():
        raise ValueError("NaN or infinite values")
    return values


@contextmanager
def _open(row: dict | None) -> Iterator[tuple[BinaryIO, bytes]]:
    """Open the file of an image. Yield it with its first bytes if it is an array, else with none: it is Pillow's."""
    source = file_of(row)
    with open(source, "rb") if isinstance(source, str) else source as file:
        head = file.read(len(NPY))
        file.seek(0)
        is_array = head == NPY or (head.startswith(TIFF) and not pillow_reads_tiff(file))
        yield file, head if is_array else b""


def open_image(row: dict | None) -> Image.Image:
    """Return an image that Pillow reads, with only its header read. Raise UNREADABLE."""
    image = Image.open(file_of(row))
    if image.format == "EPS":
        raise ValueError("PostScript is not supported: it is a program")
    image.seek(page_of(row))
    check_size(*image.size[::-1])
    return image


def depth_of(image: Image.Image) -> int:
    """Return the bits per channel. Pillow opens 16-bit color PNG as RGB; only its decoder's name shows the depth."""
    if image.mode == "F":
        return 32
    return 16 if image.mode.startswith("I") or "16" in _raw_mode(image) else 8


def _raw_mode(image: Image.Image) -> str:
    """Return the name of the layout that is decoded, such as RGB;16B."""
    raw = image.tile[0][3] if image.tile else ""
    return str(raw if isinstance(raw, str) else raw[0] if raw else "")


def channels_of(image: Image.Image) -> int:
    """Return 1 for gray, 3 for color, 4 if any pixel can be transparent."""
    transparent = "A" in image.getbands() or "transparency" in image.info
    gray = image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16")
    return 4 if transparent else 1 if gray else 3


def _eight_bits(image: Image.Image, row: dict | None, channels: int) -> Tensor:
    """Return (channels, H, W) uint8."""
    image.load()
    image = ImageOps.exif_transpose(image)
    if channels_of(image) == 4:
        image = image.convert("RGBA")
        if channels != 4:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if channels not in (1, 3, 4):
        return with_channels(_channels_first(image.convert("RGB")), channels, 255)
    return _channels_first(image.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels]))


def _wide(image: Image.Image, row: dict | None, channels: int) -> Tensor:
    """Return (channels, H, W), int32 from 0 to 65535, or fp32 of a float image."""
    if image.mode == "F":
        values = to_tensor(np.array(ImageOps.exif_transpose(image))[..., None])
        return with_channels(values, channels, 1)
    if channels_of(image) == 1:
        gray = np.array(ImageOps.exif_transpose(image)).astype(np.int64)
        pixels = torch.from_numpy(gray.clip(0, 65535)).int()[None]
    else:
        pixels = _sixteen_bit_color(image, row)
    return with_channels(pixels, channels, 65535)


def _sixteen_bit_color(image: Image.Image, row: dict | None) -> Tensor:
    """Return (C, H, W) int32. Pillow keeps 8 of the 16 bits, so it decodes twice: high bytes, then low bytes."""
    raw = _raw_mode(image)
    if raw == "LA;16B":  # of the 4 bytes of a pixel in Pillow's mode RGBA
        pixels = _decode_as(row, "RGBA")
        return 256 * pixels[[0, 0, 0, 2]] + pixels[[1, 1, 1, 3]]
    if image.format != "PNG" or raw not in ("RGB;16B", "RGBA;16B"):
        raise ValueError(f"16-bit color in a {image.format} is not supported")
    return 256 * _decode_as(row, raw) + _decode_as(row, raw.replace("16B", "16L"))


def _decode_as(row: dict | None, raw_mode: str) -> Tensor:
    """Return the bytes of a PNG, (C, H, W) int32, in another layout. "16L" takes the second byte of two as the high."""
    with open_image(row) as image:
        image.tile = [tile._replace(args=raw_mode) for tile in image.tile]
        return _channels_first(ImageOps.exif_transpose(image)).int()


def _channels_first(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.atleast_3d(np.array(image))).permute(2, 0, 1)


def with_channels(pixels: Tensor, channels: int, white: int) -> Tensor:
    """Return (C, H, W) pixels with another number of channels: gray, color, and either with transparency.

    Transparent pixels are composited on white where the transparency is dropped. Raise ValueError for other numbers.
    """
    found = len(pixels)
    if found == channels:
        return pixels
    if found not in GRAY_OR_COLOR or channels not in GRAY_OR_COLOR:
        raise ValueError(f"{found} channel{'s' * (found > 1)} (expected {channels})")
    dtype, pixels = pixels.dtype, pixels.double()
    if found == 4:
        color, alpha = pixels[:-1], pixels[-1:] / white
        pixels = color * alpha + white * (1 - alpha)
    if channels == 1:
        pixels = pixels.mean(0, keepdim=True)
    elif len(pixels) == 1:
        pixels = pixels.expand(3, -1, -1)
    if channels == 4 and len(pixels) == 3:
        pixels = torch.cat([pixels, torch.full_like(pixels[:1], white)])
    return pixels.to(dtype) if dtype.is_floating_point else pixels.round().to(dtype)


def resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Return (..., C, H, W) scaled to cover `size` and cropped to its center."""
    height, width = pixels.shape[-2:]
    if (height, width) == size:
        return pixels
    from torchvision.transforms.v2 import functional as v2

    scale = max(size[0] / height, size[1] / width)
    cover = [max(size[0], round(height * scale)), max(size[1], round(width * scale))]
    if math.prod(cover) > STRIP * max(height * width, math.prod(size)):
        kept = [min(height, math.ceil(size[0] / scale)), min(width, math.ceil(size[1] / scale))]
        return resize(v2.center_crop(pixels, kept), size)
    if pixels.dtype == torch.int32:
        return resize(pixels.float(), size).round().int()
    return v2.center_crop(v2.resize(pixels, cover, antialias=True), list(size))
