"""How much the solvent around a molecule is surrounded by it, from nothing but the places and radii of atoms."""

import numpy as np

from ..volumes.grids import Grid
from .atoms import Atoms
from .occupancy import radii_of, scaled_distance

PROBE = 1.4
"""Radius of water in Å; a voxel is solvent where its center fits."""
LINE = 10.0
"""Length in Å of the lines to either side, the width of a pocket; longer ones join the clefts between domains."""
DIRECTIONS = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (-1, 1, 1), (1, -1, 1), (1, 1, -1))
"""The axes and the diagonals of a cube, as steps of voxels."""


def _shifted_any(mask: np.ndarray, step: tuple[int, ...], number: int) -> np.ndarray:
    """Return whether any of the next `number` voxels along a step is in a mask (D, H, W); outside nothing is."""
    ahead = np.zeros_like(mask)
    for distance in range(1, number + 1):
        if any(abs(s) * distance >= length for s, length in zip(step, mask.shape, strict=True)):
            break
        shifts = [s * distance for s in step]
        here = tuple(slice(max(0, -s), min(n, n - s)) for s, n in zip(shifts, mask.shape, strict=True))
        there = tuple(slice(max(0, s), min(n, n + s)) for s, n in zip(shifts, mask.shape, strict=True))
        ahead[here] |= mask[there]
    return ahead


def solvent(protein: Atoms, grid: Grid, shape: tuple[int, int, int], probe: float = PROBE) -> np.ndarray:
    """Return the voxels whose centers are farther than the van der Waals radius and `probe` Å from all atoms, bool."""
    every = np.ones((len(protein), 1), bool)
    return ~np.isfinite(scaled_distance(protein.xyz, radii_of(protein) + probe, grid, shape, 1.0, every)[0])


def buriedness(protein: Atoms, grid: Grid, shape: tuple[int, int, int], line: float = LINE) -> np.ndarray:
    """Return the number of directions in which a voxel of solvent is between protein, (D, H, W) uint8, 0 to 7.

    It is the count of protein-solvent-protein events along the 3 axes and 4 diagonals (LIGSITE, Hendlich et al. 1997),
    with lines of at most `line` Å to either side; 0 inside of the protein.
    """
    outside = solvent(protein, grid, shape)
    count = np.zeros(shape, np.uint8)
    for direction in DIRECTIONS:
        number = int(line / np.linalg.norm(grid.affine[:3, :3] @ np.array(direction)))
        step = direction[::-1]
        behind = tuple(-s for s in step)
        count += _shifted_any(~outside, step, number) & _shifted_any(~outside, behind, number)
    return count * outside
