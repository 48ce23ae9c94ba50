"""An image to paint on, and what is painted, in the pixels of a run."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..core.errors import UserError, printable
from ..data.config import DataConfig
from ..data.decoding import UNREADABLE, decode, reason_of, resize
from ..runs.figures import displayable, to_pil
from .uploads import checked_upload

CANVAS = 512
"""Pixels of the longer side of what is painted on: a run's images may have eight."""
PAINTED = 0.3
"""Share of a pixel that is painted at least where it counts."""


def read_image(file: str | Path | None, data: DataConfig) -> Tensor:
    """Return an upload as pixels of a run, (C, H, W), scaled to cover its size and cropped. Raise UserError."""
    path, _ = checked_upload("image", file)
    try:
        pixels = decode({"path": str(path), "bytes": None}, data.channels or 1, data.bit_depth or 8, data.value_range)
    except UNREADABLE as error:
        raise UserError(f"image: {printable(path.name, 60)} cannot be read ({reason_of(error)})") from None
    return resize(pixels, data.size)


def canvas_of(pixels: Tensor, bit_depth: int) -> Image.Image:
    """Return pixels (C, H, W) as an image to paint on: enlarged by a whole factor, or reduced."""
    image = to_pil(displayable(pixels[None], bit_depth)[0], 8).convert("RGB")
    longest = max(image.size)
    if longest > CANVAS:
        image.thumbnail((CANVAS, CANVAS))
        return image
    factor = CANVAS // longest
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def mask_of(layers: list[Image.Image], size: tuple[int, int]) -> Tensor:
    """Return what is painted, (1, H, W) bool: each pixel of which the share PAINTED is covered in any layer."""
    covered = torch.zeros(1, *size)
    for layer in layers:
        alpha = torch.from_numpy(np.array(layer.convert("RGBA").getchannel("A"))) > 0
        covered = covered.maximum(F.interpolate(alpha[None, None].float(), size=size, mode="area")[0])
    return covered >= PAINTED
