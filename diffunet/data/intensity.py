"""Gray values of images whose scale differs from case to case, or of which a window matters."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.errors import UserError
from .cases import Case

SHARE = 0.99
"""Of the places of objects, whose values are in their window (Isensee et al. 2021, for CT)."""
KEPT = 2**20
"""Values of each case, at most, from which a window is found."""


def standardized(image: Tensor) -> Tensor:
    """Return an image (C, *S) with mean 0 and deviation 1 in each channel, fp32; a constant channel becomes 0."""
    values = image.double().flatten(1)
    std, mean = torch.std_mean(values, dim=1, correction=0, keepdim=True)
    return ((values - mean) / torch.where(std > 0, std, 1.0)).float().reshape(image.shape)


def clipped(image: Tensor, window: tuple[float, float] | None) -> Tensor:
    """Return an image with values in a window, the image itself without one."""
    return image if window is None else image.float().clamp(*window)


def foreground_window(cases: Sequence[Case]) -> tuple[float, float]:
    """Return the window of 99 % of the values at places of all classes but the first.

    Raise UserError if there are none, or if they are all alike.
    """
    values = []
    for case in cases:
        inside = case.image[:, case.target > 0].flatten().float()
        values.append(inside[:: len(inside) // KEPT + 1])
    found = torch.cat(values).numpy() if values else torch.empty(0).numpy()
    if not found.size:
        raise UserError("data.intensity: foreground needs targets with other classes than the first; use set or case")
    import numpy as np

    low, high = np.quantile(found, [(1 - SHARE) / 2, (1 + SHARE) / 2])
    if not low < high:
        raise UserError(f"data.intensity: all places of the foreground have the value {low:g}; use set or case")
    return float(low), float(high)
