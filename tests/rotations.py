"""The 24 rotations of a cube as matrices, of points and of volumes, for tests of what turns with a molecule."""

import itertools
from typing import TypeVar

import numpy as np
from torch import Tensor

Values = TypeVar("Values", np.ndarray, Tensor)


def _rotations() -> np.ndarray:
    matrices = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            matrix = np.zeros((3, 3), np.int64)
            matrix[range(3), order] = signs
            matrices.append(matrix)
    return np.stack([matrix for matrix in matrices if round(np.linalg.det(matrix)) == 1])


ROTATIONS = _rotations()
"""The 24 rotations of a cube as matrices on (x, y, z), (24, 3, 3) int64; the first is the identity."""


def inverse_rotation(number: int) -> int:
    """Return the number of the rotation that undoes rotation `number`."""
    return int(np.flatnonzero((ROTATIONS == ROTATIONS[number].T).all((1, 2)))[0])


def rotate_points(xyz: np.ndarray, number: int, center: np.ndarray) -> np.ndarray:
    """Return points (N, 3) rotated about a center (3,), in the type of `xyz`."""
    return ((xyz - center) @ ROTATIONS[number].T + center).astype(xyz.dtype)


def rotate_volume(values: Values, number: int) -> Values:
    """Return values (..., N, N, N) of a cube rotated about its middle, exactly: voxels only change places."""
    rest = list(range(values.ndim - 3))
    matrix = ROTATIONS[number]
    # Coordinate i of the result is coordinate source[i] of the original; it has axis -1 - i of the array.
    source = np.abs(matrix).argmax(1)
    order = [*rest, *(values.ndim - 1 - int(source[i]) for i in (2, 1, 0))]
    flipped = [values.ndim - 1 - i for i in range(3) if matrix[i].sum() < 0]
    if isinstance(values, Tensor):
        return values.permute(order).flip(flipped)
    return np.flip(values.transpose(order), tuple(flipped))
