"""Decode one image, also with palette, transparency, EXIF rotation or 16 bits, to integers (channels, H, W)."""

import io
import math
import os

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..core.errors import printable
from .pixels import to_8bit, to_16bit

UNREADABLE = Exception
"""Raised by a broken image: each of Pillow's thirty readers has its own exceptions."""
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


def open_image(row: dict | None) -> Image.Image:
    """Return an image of which only the header has been read. Raise UNREADABLE."""
    image = Image.open(file_of(row))
    if image.format == "EPS":
        raise ValueError("PostScript is not supported: it is a program")
    if image.mode == "F":
        raise ValueError("floating-point pixels are not supported")
    if math.prod(image.size) > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise ValueError("{} × {} pixels are too many".format(*image.size))
    return image


def depth_of(image: Image.Image) -> int:
    """Return the bits per channel. Pillow opens 16-bit color PNG as RGB; only its decoder's name shows the depth."""
    raw = image.tile[0][3] if image.tile else ""
    raw = raw if isinstance(raw, str) else raw[0] if raw else ""
    return 16 if image.mode.startswith("I") or "16" in str(raw) else 8


def channels_of(image: Image.Image) -> int:
    """Return 1 for gray, 3 for color, 4 if any pixel can be transparent."""
    transparent = "A" in image.getbands() or "transparency" in image.info
    gray = image.mode in ("1", "L", "LA", "I") or image.mode.startswith("I;16")
    return 4 if transparent else 1 if gray else 3


def convert(image: Image.Image, channels: int, bit_depth: int) -> Tensor:
    """Return the pixels, (channels, H, W), upright, as integers of `bit_depth`."""
    depth = depth_of(image)
    if depth == 16:
        pixels = _sixteen_bits(image, channels)
    else:
        image.load()
        image = ImageOps.exif_transpose(image)
        if channels_of(image) == 4:
            image = image.convert("RGBA")
            if channels != 4:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])
        pixels = torch.from_numpy(np.atleast_3d(np.array(image))).permute(2, 0, 1)
    return to_8bit(pixels, depth) if bit_depth == 8 else to_16bit(pixels, depth)


def _sixteen_bits(image: Image.Image, channels: int) -> Tensor:
    """Return (channels, H, W) int32. Pillow keeps 16 bits for gray only; torchvision decodes color PNG again."""
    if channels_of(image) == 1:
        gray = np.array(ImageOps.exif_transpose(image)).astype(np.int64)
        pixels = torch.from_numpy(gray.clip(0, 65535)).int()[None]
    else:
        from torchvision.io import ImageReadMode, decode_image

        image.fp.seek(0)
        encoded = torch.frombuffer(bytearray(image.fp.read()), dtype=torch.uint8)
        pixels = decode_image(encoded, ImageReadMode.UNCHANGED, apply_exif_orientation=True).int()
    if len(pixels) in (2, 4) and channels != 4:
        color, alpha = pixels[:-1], pixels[-1:] / 65535
        pixels = (color * alpha + 65535 * (1 - alpha)).round().int()
    if channels == 1:
        return pixels.float().mean(0, keepdim=True).round().int()
    if len(pixels) < 3:
        pixels = torch.cat([pixels[:1].expand(3, -1, -1), pixels[1:]])
    if channels == 4 and len(pixels) == 3:
        pixels = torch.cat([pixels, torch.full_like(pixels[:1], 65535)])
    return pixels


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
    if pixels.dtype != torch.uint8:
        return v2.center_crop(v2.resize(pixels.float(), cover, antialias=True), list(size)).round().to(pixels.dtype)
    return v2.center_crop(v2.resize(pixels, cover, antialias=True), list(size))
