"""One encoded picture -> integers (channels, H, W) of a given depth and size.

Written for files that somebody else collected: palettes, transparency, rotation by EXIF, 16 bits.
"""

import io
import math
import os
import warnings

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..core.errors import printable

UNREADABLE = Exception
"""What a broken picture raises: there are thirty readers in Pillow, and each has its own ways to fail."""
STRIP = 16
"""A picture that would be so many times as large while it is scaled is cut to what will be kept of it before."""

warnings.filterwarnings("ignore", module="PIL")            # of what does not keep it from reading a picture


def name_of(row: dict | None, index: int) -> str:
    """What to call a picture, {bytes, path}, in a message."""
    return printable(row["path"], 4096) if row and row["path"] else f"row {index}"


def reason_of(error: Exception) -> str:
    """Why something cannot be read, in a few words: of a chain of errors the first."""
    while error.__cause__:
        error = error.__cause__
    if isinstance(error, UnidentifiedImageError):
        return "not a picture"
    if isinstance(error, UnicodeEncodeError):
        return f"the name {printable(error.object)} is not Unicode"
    return printable((str(error).strip() or type(error).__name__).splitlines()[0])


def file_of(row: dict | None) -> io.BytesIO | str:
    """Where a picture, {bytes, path}, is to be read. ValueError if there is nothing that ends."""
    if not row or (row["bytes"] is None and row["path"] is None):
        raise ValueError("no picture there")
    if row["bytes"] is not None:
        return io.BytesIO(row["bytes"])
    if row["path"].startswith("zip://"):
        raise ValueError("packed in an archive; unpack it")
    if os.path.exists(row["path"]) and not os.path.isfile(row["path"]):
        raise ValueError("not a file")                     # but a pipe, say, which would be waited for
    return row["path"]


def open_image(row: dict | None) -> Image.Image:
    """The picture with its header read, and its pixels not yet. Raises UNREADABLE."""
    image = Image.open(file_of(row))
    if image.format == "EPS":
        raise ValueError("PostScript is a program, and is not run")
    if image.mode == "F":
        raise ValueError("floating-point pixels are not supported")
    if math.prod(image.size) > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise ValueError("{} × {} pixels are too many".format(*image.size))
    return image


def depth_of(image: Image.Image) -> int:
    """Bits per channel. Pillow says RGB also for 16-bit colour PNG; its decoder's name tells."""
    raw = image.tile[0][3] if image.tile else ""
    raw = raw if isinstance(raw, str) else raw[0] if raw else ""
    return 16 if image.mode.startswith("I") or "16" in str(raw) else 8


def channels_of(image: Image.Image) -> int:
    """1 grey, 3 colour, 4 if any of it can be transparent."""
    transparent = "A" in image.getbands() or "transparency" in image.info
    grey = image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16")
    return 4 if transparent else 1 if grey else 3


def pixel_type(bit_depth: int) -> torch.dtype:
    """The integers that hold such pixels: uint8, or int32 for 16 bits (torch computes little in uint16)."""
    return torch.uint8 if bit_depth == 8 else torch.int32


def convert(image: Image.Image, channels: int, bit_depth: int) -> Tensor:
    """The pixels, (channels, H, W), upright, in integers of `bit_depth`."""
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
    if depth == bit_depth:
        return pixels
    return (pixels / 257).round().to(torch.uint8) if depth == 16 else pixels.int() * 257


def _sixteen_bits(image: Image.Image, channels: int) -> Tensor:
    """(channels, H, W) int32. Pillow keeps 16 bits for grey only; for colour, torchvision reads the PNG again."""
    if channels_of(image) == 1:
        grey = np.array(ImageOps.exif_transpose(image)).astype(np.int64)
        pixels = torch.from_numpy(grey.clip(0, 65535)).int()[None]
    else:
        from torchvision.io import ImageReadMode, decode_image

        image.fp.seek(0)
        encoded = torch.frombuffer(bytearray(image.fp.read()), dtype=torch.uint8)
        pixels = decode_image(encoded, ImageReadMode.UNCHANGED, apply_exif_orientation=True).int()
    if len(pixels) in (2, 4) and channels != 4:
        colour, alpha = pixels[:-1], pixels[-1:] / 65535
        pixels = (colour * alpha + 65535 * (1 - alpha)).round().int()
    if channels == 1:
        return pixels.float().mean(0, keepdim=True).round().int()
    if len(pixels) < 3:
        pixels = torch.cat([pixels[:1].expand(3, -1, -1), pixels[1:]])
    if channels == 4 and len(pixels) == 3:
        pixels = torch.cat([pixels, torch.full_like(pixels[:1], 65535)])
    return pixels


def resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., C, H, W) scaled to cover `size` and cropped to its centre."""
    height, width = pixels.shape[-2:]
    if (height, width) == size:
        return pixels
    from torchvision.transforms.v2 import functional as v2

    scale = max(size[0] / height, size[1] / width)
    cover = [max(size[0], round(height * scale)), max(size[1], round(width * scale))]
    if math.prod(cover) > STRIP * max(height * width, math.prod(size)):
        kept = [min(height, math.ceil(size[0] / scale)), min(width, math.ceil(size[1] / scale))]
        return resized(v2.center_crop(pixels, kept), size)
    if pixels.dtype != torch.uint8:
        return v2.center_crop(v2.resize(pixels.float(), cover, antialias=True), list(size)).round().to(pixels.dtype)
    return v2.center_crop(v2.resize(pixels, cover, antialias=True), list(size))
