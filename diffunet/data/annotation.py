"""Sparse annotation: labels on some slices of a volume alone, as of a person who draws on few of them (Çiçek 2016)."""

import numpy as np

from .labels import UNKNOWN


def keep_slices(target: np.ndarray, rng: np.random.Generator, slices: int | tuple[int, int, int]) -> np.ndarray:
    """Return classes (D, H, W) on some orthogonal slices, and UNKNOWN elsewhere.

    slices: how many along each of z, y and x, or along all; one at random in each of as many equal parts of the axis.
    """
    numbers = (slices,) * 3 if isinstance(slices, int) else slices
    kept = np.zeros(target.shape, bool)
    for axis, (number, length) in enumerate(zip(numbers, target.shape, strict=True)):
        number = min(number, length)
        edges = np.arange(number + 1) * length // max(number, 1)
        index = rng.integers(edges[:-1], edges[1:])
        kept[(slice(None),) * axis + (index,)] = True
    return np.where(kept, target, UNKNOWN).astype(target.dtype)
