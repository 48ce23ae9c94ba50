"""Structural similarity of images (Wang, Bovik, Sheikh & Simoncelli 2004), window by window."""

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, WINDOW_STD = 11, 1.5
"""Side and standard deviation, in pixels, of the Gaussian window."""
K1, K2 = 0.01, 0.03
"""Constants that keep flat windows stable."""


def window_side(size: tuple[int, ...]) -> int:
    """Return the side of the window for images of a size: WINDOW, or the largest odd side that fits."""
    return min(WINDOW, *(side - (side + 1) % 2 for side in size))


def similarity_map(x: Tensor, y: Tensor, data_range: Tensor | float) -> Tensor:
    """Return the similarity of all windows inside of images, at most 1, (N, C, *(S - side + 1)) (equation 13).

    x, y: (N, C, *S), whose values span data_range, which broadcasts over them.
    """
    side = window_side(tuple(x.shape[2:]))
    offsets = torch.arange(side, dtype=x.dtype, device=x.device) - side // 2
    window = (-(offsets**2) / (2 * WINDOW_STD**2)).exp()
    window /= window.sum()
    mean_x, mean_y = _local_mean(x, window), _local_mean(y, window)
    variances = _local_mean(x * x, window) - mean_x**2 + _local_mean(y * y, window) - mean_y**2
    covariance = _local_mean(x * y, window) - mean_x * mean_y
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    return (2 * mean_x * mean_y + c1) * (2 * covariance + c2) / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))


def _local_mean(x: Tensor, window: Tensor) -> Tensor:
    """Return the mean of x (N, C, *S) weighted by a window along each axis, at all places inside."""
    dims = x.ndim - 2
    convolve = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    means = x.flatten(0, 1)[:, None]
    for axis in range(dims):
        means = convolve(means, window.reshape(1, 1, *(len(window) if i == axis else 1 for i in range(dims))))
    return means[:, 0].unflatten(0, x.shape[:2])


def complete_windows(known: Tensor) -> Tensor:
    """Return which windows have only places that are known, (N, C, *S), as (N, C, *(S - side + 1)) bool."""
    dims = known.ndim - 2
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[dims - 1]
    return pool((~known).float(), window_side(tuple(known.shape[2:])), stride=1) == 0
