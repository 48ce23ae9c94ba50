"""Pixel values in three depths, and fp32 in [-1, 1] in the network.

Pixels of 8 and 16 bits are integers from 0 to 2^bit_depth - 1, those of 32 bits fp32 in [0, 1].
"""

import torch
from torch import Tensor

from ..core.errors import UserError


def pixel_dtype(bit_depth: int) -> torch.dtype:
    """Return the type of such pixels: uint8, int32 for 16 bits (torch lacks most of uint16) or float32."""
    return {8: torch.uint8, 16: torch.int32, 32: torch.float32}[bit_depth]


def white(bit_depth: int) -> int:
    """Return the greatest pixel."""
    return 1 if bit_depth == 32 else 2**bit_depth - 1


def normalize(pixels: Tensor, bit_depth: int) -> Tensor:
    """Return pixels as fp32 in [-1, 1]."""
    return pixels.float() * (2 / white(bit_depth)) - 1


def denormalize(image: Tensor, bit_depth: int) -> Tensor:
    """Return values in [-1, 1] as pixels, clipped, and rounded to integers below 32 bits.

    Raise UserError if any value is not finite.
    """
    if not image.isfinite().all():
        raise UserError("the network's output is not finite; its weights are broken or untrained")
    pixels = (image.clamp(-1, 1) + 1) * (white(bit_depth) / 2)
    return pixels.float() if bit_depth == 32 else pixels.round().to(pixel_dtype(bit_depth))


def to_unit(pixels: Tensor, bit_depth: int) -> Tensor:
    """Return pixels as fp32 in [0, 1]."""
    return pixels.float() / white(bit_depth)


def to_depth(pixels: Tensor, bit_depth: int, target: int) -> Tensor:
    """Return pixels of one bit depth in another."""
    if bit_depth == target:
        return pixels
    if target == 32:
        return to_unit(pixels, bit_depth)
    if bit_depth == 8:
        return pixels.int() * 257
    scaled = pixels / 257 if bit_depth == 16 else pixels * white(target)
    return scaled.round().to(pixel_dtype(target))


def to_8bit(pixels: Tensor, bit_depth: int) -> Tensor:
    """Return pixels of a bit depth as uint8."""
    return to_depth(pixels, bit_depth, 8)


def to_16bit(pixels: Tensor, bit_depth: int) -> Tensor:
    """Return pixels of a bit depth as int32 from 0 to 65535."""
    return to_depth(pixels, bit_depth, 16)
