"""Volumes on grids of another spacing, and back.

The faces of the box of voxels stay where they are, and the number of voxels is rounded: voxel j of n' covers
[j n / n', (j + 1) n / n'] of the n voxels before. A resampled spacing is therefore near, not at, the one requested.
"""

import math

import numpy as np
import torch
from torch import Tensor

from .grids import Grid

SMOOTHED = 1.5
"""Factor of reduction above which linear interpolation would skip voxels, so that they are smoothed first."""


def resample(values: Tensor, grid: Grid, spacing: tuple[float, float, float], nearest: bool) -> tuple[Tensor, Grid]:
    """Return values (C, D, H, W) with about another spacing (z, y, x), in millimeters, and their grid.

    nearest: each voxel has the value at its center, in the same type, as labels need. Centers between two voxels, all
    of them if an axis is halved, take the lower and the upper one in turn: always the same would move labels by half a
    voxel. Otherwise values are interpolated linearly, in fp32. An axis that is reduced by a factor f above 1.5 is first
    smoothed by a Gaussian of variance (f² - 1) / (8 ln 2) voxels, which gives voxels of the old size the spread of
    voxels of the new one (Cardoso et al. 2015, Scale factor point spread function matching). Beyond the outer centers
    values are constant.
    """
    old, shape = grid.spacing, values.shape[1:]
    size = tuple(max(1, round(side * before / after)) for side, before, after in zip(shape, old, spacing, strict=True))
    resized = _nearest(values, size) if nearest else _linear(values, size, smooth=True)
    return resized, resized_grid(grid, shape, size)


def resample_back(values: Tensor, shape: tuple[int, int, int], planes: slice = slice(None)) -> Tensor:
    """Return values (C, D, H, W) on a grid of `shape` voxels in the same box, interpolated linearly, in fp32.

    Nothing is smoothed, so that an enlargement by a whole odd factor is undone exactly. planes: those along z that are
    returned, of which large volumes of probabilities are written part by part.
    """
    return _linear(values, shape, smooth=False, planes=planes)


def resized_grid(grid: Grid, before: tuple[int, ...], after: tuple[int, ...]) -> Grid:
    """Return the grid of a box with other numbers of voxels (z, y, x)."""
    factors = np.array(before[::-1], np.float64) / np.array(after[::-1])
    scaled = np.diag([*factors, 1.0])
    scaled[:3, 3] = (factors - 1) / 2
    return Grid(grid.affine @ scaled)


def _nearest(values: Tensor, size: tuple[int, ...]) -> Tensor:
    for axis, (before, after) in enumerate(zip(values.shape[1:], size, strict=True), start=1):
        if before != after:
            center = (2 * torch.arange(after) + 1) * before  # from the first face, in units of 1 / (2 after)
            between = center % (2 * after) == 0
            index = center // (2 * after) - (between & (between.cumsum(0) % 2 == 1)).long()
            values = values.index_select(axis, index.to(values.device))
    return values


def _linear(values: Tensor, size: tuple[int, ...], smooth: bool, planes: slice = slice(None)) -> Tensor:
    """Return interpolated values: one matrix product for each axis, those that shrink first."""
    values = values.float()
    rows = {1: planes, 2: slice(None), 3: slice(None)}
    lengths = dict(enumerate(zip(values.shape[1:], size, strict=True), start=1))
    kept = {axis: len(range(after)[rows[axis]]) for axis, (_, after) in lengths.items()}
    for axis in sorted(lengths, key=lambda axis: kept[axis] / lengths[axis][0]):
        before, after = lengths[axis]
        if before == after == kept[axis]:
            continue
        weights = _weights(before, after, smooth)[rows[axis]]
        used = weights.any(0).nonzero().flatten().tolist() or [0]
        low, high = used[0], used[-1] + 1
        part = values.narrow(axis, low, high - low).movedim(axis, -2)
        values = (weights[:, low:high].to(values.device) @ part).movedim(-2, axis)
    return values.contiguous()


def _weights(before: int, after: int, smooth: bool) -> Tensor:
    """Return the share of each old voxel in each new one along an axis, fp32 (after, before); rows add up to 1."""
    factor = before / after
    center = ((torch.arange(after, dtype=torch.float64) + 0.5) * factor - 0.5).clamp(0, before - 1)
    place = torch.arange(before, dtype=torch.float64)
    weights = (1 - (center[:, None] - place).abs()).clamp(min=0)
    if smooth and factor > SMOOTHED:
        variance = (factor**2 - 1) / (8 * math.log(2))
        reach = math.ceil(4 * math.sqrt(variance))
        blur = (-((place[:, None] - torch.arange(-reach, before + reach)) ** 2) / (2 * variance)).exp()
        blur /= blur.sum(1, keepdim=True)
        # Beyond the ends is the outer voxel.
        inner = blur[:, reach : reach + before].clone()
        inner[:, 0] += blur[:, :reach].sum(1)
        inner[:, -1] += blur[:, reach + before :].sum(1)
        weights = weights @ inner
    return weights.float()
