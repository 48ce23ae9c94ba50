"""Pixel values: integers of 8 or 16 bits in files and datasets, fp32 in [-1, 1] in the network."""

import torch
from torch import Tensor

from ..core.errors import UserError


def pixel_dtype(bit_depth: int) -> torch.dtype:
    """Return the integer type that holds such pixels: uint8, or int32 for 16 bits (torch lacks most of uint16)."""
    return torch.uint8 if bit_depth == 8 else torch.int32


def normalize(pixels: Tensor, bit_depth: int) -> Tensor:
    """Return integers from 0 to 2^bit_depth - 1 as fp32 in [-1, 1]."""
    return pixels.float() * (2 / (2**bit_depth - 1)) - 1


def denormalize(image: Tensor, bit_depth: int) -> Tensor:
    """Return values in [-1, 1] as integers, clipped and rounded. Raise UserError if any value is not finite."""
    if not image.isfinite().all():
        raise UserError("the network's output is not finite; its weights are broken or untrained")
    pixels = (image.clamp(-1, 1) + 1) * ((2**bit_depth - 1) / 2)
    return pixels.round().to(pixel_dtype(bit_depth))


def to_unit(pixels: Tensor, bit_depth: int) -> Tensor:
    """Return integers from 0 to 2^bit_depth - 1 as fp32 in [0, 1]."""
    return pixels.float() / (2**bit_depth - 1)


def to_8bit(pixels: Tensor, bit_depth: int) -> Tensor:
    """Return integers of a bit depth as uint8."""
    return pixels if bit_depth == 8 else (pixels / 257).round().to(torch.uint8)


def to_16bit(pixels: Tensor, bit_depth: int) -> Tensor:
    """Return integers of a bit depth as int32 from 0 to 65535."""
    return pixels if bit_depth == 16 else pixels.int() * 257
