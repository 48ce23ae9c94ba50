"""Augmentation for small datasets, with augment labels that keep it out of the samples.

EDM's pipeline (Karras et al. 2022, appendix F.2): each transformation is applied with a probability, its strength is a
condition of the network, and samples are conditioned on none.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.rng import BatchRNG

KINDS = 8
"""Numbers in an augment label: flips along x and y, scale, rotation (2), anisotropy, translations along x and y."""
SCALE_STD, SHIFT_STD = 0.2, 0.125
"""Standard deviations: of scale and anisotropy in powers of two, of a translation as a fraction of the side."""


def distort(image: Tensor, probability: float, rng: BatchRNG) -> tuple[Tensor, Tensor]:
    """Return randomly transformed images (B, C, H, W) and their augment labels (B, KINDS).

    Each kind of transformation is applied to an image with `probability`. Images with a label of zeros are unchanged
    to the last bit.
    """

    def uniform() -> Tensor:
        return rng.uniform_like(image)

    def normal() -> Tensor:
        return torch.special.ndtri(uniform().clamp(1e-4, 1 - 1e-4))

    def sometimes(values: Tensor) -> Tensor:
        return values * (uniform() < probability)

    flip_x, flip_y = sometimes((uniform() < 0.5).float()), sometimes((uniform() < 0.5).float())
    scale, anisotropy = sometimes(normal()), sometimes(normal())
    angle = sometimes((2 * uniform() - 1) * math.pi)
    shifted = sometimes(torch.ones_like(angle))
    shift_x, shift_y = normal() * shifted, normal() * shifted
    strengths = [flip_x, flip_y, scale, angle.cos() - 1, angle.sin(), anisotropy, shift_x, shift_y]
    augment_labels = torch.stack(strengths, dim=1)

    # affine_grid takes the inverse transformation, in units of half a side.
    width = (1 - 2 * flip_x) * 2 ** (-SCALE_STD * (scale + anisotropy))
    height = (1 - 2 * flip_y) * 2 ** (-SCALE_STD * (scale - anisotropy))
    ratio = image.shape[-2] / image.shape[-1]  # a rotation keeps shapes in images that are not square
    rows = [
        torch.stack([width * angle.cos(), -width * angle.sin() * ratio, 2 * SHIFT_STD * shift_x], dim=1),
        torch.stack([height * angle.sin() / ratio, height * angle.cos(), 2 * SHIFT_STD * shift_y], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(image.shape), align_corners=False)
    transformed = F.grid_sample(image, grid, padding_mode="reflection", align_corners=False)
    changed = (augment_labels != 0).any(dim=1)
    return torch.where(changed[:, None, None, None], transformed, image), augment_labels
