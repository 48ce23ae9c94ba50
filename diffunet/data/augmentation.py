"""Distorted copies for small data sets, told to the network so that it does not draw distortions.

The idea and the kinds are EDM's (Karras et al. 2022, appendix F.2): each kind happens with a probability, the network
is told by how much, and when drawing it is told of none.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.rng import BatchRNG

KINDS = 8
"""Numbers that say what was done: mirrored across and down, zoomed, turned (2), stretched, shifted (2)."""
ZOOM, SHIFT = 0.2, 0.125
"""Standard deviations: of the zoom and the stretch in powers of two, of a shift in shares of the side."""


def distort(image: Tensor, probability: float, rng: BatchRNG) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W), each kind of distortion done to some of them, and by how much, (B, KINDS).

    All zeros says that the image is as it was; those images stay equal to the last bit.
    """

    def some(values: Tensor) -> Tensor:
        return values * (rng.uniform_like(image) < probability)

    def normal() -> Tensor:
        return torch.special.ndtri(rng.uniform_like(image).clamp(1e-4, 1 - 1e-4))

    def half() -> Tensor:
        return (rng.uniform_like(image) < 0.5).float()

    across, down = some(half()), some(half())
    zoom, stretch = some(normal()), some(normal())
    angle = some((2 * rng.uniform_like(image) - 1) * math.pi)
    moved = some(torch.ones_like(angle))
    shift_x, shift_y = normal() * moved, normal() * moved
    told = torch.stack([across, down, zoom, angle.cos() - 1, angle.sin(), stretch, shift_x, shift_y], dim=1)

    # grid_sample asks where each new place comes from, in units of half a side.
    width = (1 - 2 * across) * 2 ** (-ZOOM * (zoom + stretch))
    height = (1 - 2 * down) * 2 ** (-ZOOM * (zoom - stretch))
    ratio = image.shape[-2] / image.shape[-1]              # so that a turn keeps shapes in pictures that are not square
    rows = [
        torch.stack([width * angle.cos(), -width * angle.sin() * ratio, 2 * SHIFT * shift_x], dim=1),
        torch.stack([height * angle.sin() / ratio, height * angle.cos(), 2 * SHIFT * shift_y], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(image.shape), align_corners=False)
    moved_image = F.grid_sample(image, grid, padding_mode="reflection", align_corners=False)
    changed = (told != 0).any(dim=1)
    return torch.where(changed[:, None, None, None], moved_image, image), told
