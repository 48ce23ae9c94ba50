"""Where the voxels of a volume are: its grid, and the orientation of the axes in its file."""

from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from torch import Tensor

MILLIMETERS = {"m": 1e3, "cm": 10, "mm": 1, "µm": 1e-3, "um": 1e-3, "nm": 1e-6, "pm": 1e-9, "Å": 1e-7, "inch": 25.4}
"""Lengths by the names that files use for them."""
FLAT = 1e-4
"""Volume of three unit vectors along the axes of a grid below which they lie in a plane."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of a volume are."""

    affine: np.ndarray
    """(4, 4) fp64, from the indices (x, y, z) of the voxel values[..., z, y, x] to its center in millimeters, as NIfTI
    defines them: x to the right, y to the front, z up. Of a file that has a spacing and no place: diagonal."""

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance of neighboring voxels along (z, y, x) in millimeters."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return z, y, x


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume in memory."""

    values: Tensor
    """(C, D, H, W), axes (C, z, y, x): uint8, int16, int32 or fp32."""
    grid: Grid | None
    """None: the file has no spacing."""


class Header(NamedTuple):
    """What the header of a file has, in the axes of the file."""

    shape: tuple[int, int, int, int]
    """Channels, then the sides from the slowest axis (k, j, i) to the fastest."""
    dtype: np.dtype
    affine: np.ndarray | None
    """(4, 4) fp64, from indices (i, j, k) to millimeters."""


def affine_of(spacing: tuple[float, float, float]) -> np.ndarray:
    """Return the affine of a grid that has a spacing (z, y, x) in millimeters and its first voxel at zero."""
    return np.diag([*spacing[::-1], 1.0]).astype(np.float64)


def check_affine(affine: np.ndarray) -> np.ndarray:
    """Return an affine in fp64. Raise ValueError if it gives voxels no place, or no volume."""
    affine = np.asarray(affine, np.float64)
    if affine.shape != (4, 4):
        raise ValueError(f"its affine has the shape {affine.shape} instead of (4, 4)")
    if not np.isfinite(affine).all():
        raise ValueError("its affine has NaN or infinite values")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not lengths.all() or abs(np.linalg.det(affine[:3, :3] / lengths)) < FLAT:
        raise ValueError("its affine is singular: voxels without a volume")
    return affine


@dataclass(frozen=True)
class Orientation:
    """Which of x, y, z the axes (i, j, k) of a file are closest to, and whether they run the same way."""

    axes: tuple[int, ...]
    """Of i, j and k: 0 for x, 1 for y, 2 for z."""
    signs: tuple[int, ...]
    """Of i, j and k: 1 or -1."""

    @classmethod
    def of(cls, affine: np.ndarray | None) -> Self:
        """Return the orientation of an affine; without one, (i, j, k) are (x, y, z).

        Axes are assigned by the rotation nearest to the affine, its polar factor, from the largest cosine on.
        """
        if affine is None:
            return cls((0, 1, 2), (1, 1, 1))
        matrix = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
        left, _, right = np.linalg.svd(matrix)
        rotation = left @ right
        axes, signs = [0, 0, 0], [1, 1, 1]
        free = np.abs(rotation)
        for _ in range(3):
            world, own = np.unravel_index(free.argmax(), free.shape)
            axes[own], signs[own] = int(world), 1 if rotation[world, own] > 0 else -1
            free[world], free[:, own] = -1, -1
        return cls(tuple(axes), tuple(signs))

    @property
    def _reversed(self) -> tuple[int, ...]:
        """Which axes of (C, k, j, i) run against x, y or z."""
        return tuple(3 - own for own in range(3) if self.signs[own] < 0)

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Return values (C, k, j, i) as a view (C, z, y, x)."""
        values = np.flip(values, self._reversed)
        return values.transpose(0, *(3 - self.axes.index(world) for world in (2, 1, 0)))

    def undo(self, values: np.ndarray) -> np.ndarray:
        """Return values (C, z, y, x) as a view (C, k, j, i)."""
        values = values.transpose(0, *(3 - self.axes[own] for own in (2, 1, 0)))
        return np.flip(values, self._reversed)

    def shape(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """Return (C, k, j, i) as (C, z, y, x)."""
        z, y, x = (shape[3 - self.axes.index(world)] for world in (2, 1, 0))
        return shape[0], z, y, x

    def grid(self, affine: np.ndarray, shape: tuple[int, ...]) -> Grid:
        """Return the grid of the values that `apply` returns, from the affine of a file and its (C, k, j, i)."""
        own_of_world = np.eye(4)
        for own, (world, sign) in enumerate(zip(self.axes, self.signs, strict=True)):
            own_of_world[own] = 0
            own_of_world[own, world] = sign
            own_of_world[own, 3] = 0 if sign > 0 else shape[3 - own] - 1
        return Grid(affine @ own_of_world)


def grid_distance(a: Grid, shape_a: tuple[int, ...], b: Grid, shape_b: tuple[int, ...]) -> float:
    """Return the largest distance between corresponding corners of two volumes, in voxels of the first.

    Shapes end with (D, H, W). Corners are those of the outer voxels' faces.
    """
    low = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), axis=-1).reshape(-1, 3)
    corners = [low * shape[:-4:-1] - 0.5 for shape in (shape_a, shape_b)]
    between = np.linalg.solve(a.affine, b.affine)
    apart = corners[1] @ between[:3, :3].T + between[:3, 3] - corners[0]
    return float(np.linalg.norm(apart, axis=1).max())
