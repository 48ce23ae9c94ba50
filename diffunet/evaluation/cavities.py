"""Pockets from the shape of a protein alone, as references that a network has to surpass.

Both start from `buriedness`, which uses nothing but the places and radii of atoms.
"""

from dataclasses import replace

import numpy as np

from ..data.molecules.atoms import Atoms
from ..data.molecules.occupancy import radii_of, scaled_distance
from ..data.volumes.grids import Grid
from .pockets import MIN_VOLUME, Pocket, extract_pockets, mask_center, voxel_volume

PROBE = 1.4
"""Radius of water in Å; a voxel is solvent where its center fits."""
LINE = 10.0
"""Length in Å of the lines to either side, the width of a pocket; longer ones join the clefts between domains."""
LINES = 5
"""Directions, of 7, that end in protein on both sides, at least, in a cavity."""
SMOOTHING = 2.0
"""Standard deviation in Å of the Gaussian in `geometric_probability`."""
GEOMETRIC_THRESHOLD = 0.7
"""Smoothed buriedness above which a voxel belongs to a blob."""
GROWTH = 2.0
"""Distance in Å by which cavities, which consist of the centers of water, grow to the volume of a ligand's target."""
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


def cavities(
    protein: Atoms, grid: Grid, shape: tuple[int, int, int], lines: int = LINES, min_volume: float = MIN_VOLUME
) -> list[Pocket]:
    """Return the regions of solvent with a `buriedness` of at least `lines`, `grown`, the largest volume first.

    The first is the reference "largest cavity".
    """
    buried = (buriedness(protein, grid, shape) >= lines).astype(np.float32)
    return [grown(pocket, grid) for pocket in extract_pockets(buried, grid, 0.5, min_volume)]


def grown(pocket: Pocket, grid: Grid, distance: float = GROWTH) -> Pocket:
    """Return a pocket with all voxels within a distance in Å; its probabilities and its mass stay those of its core."""
    from scipy.ndimage import distance_transform_edt

    steps = np.linalg.norm(grid.affine[:3, :3], axis=0)[::-1]
    mask = np.asarray(distance_transform_edt(~pocket.mask, steps)) <= distance
    volume = float(mask.sum() * voxel_volume(grid))
    return replace(pocket, mask=mask, center=mask_center(mask, grid), volume=volume)


def largest_cavity(protein: Atoms, grid: Grid, shape: tuple[int, int, int]) -> Pocket | None:
    """Return the largest of the `cavities`, None without."""
    return next(iter(cavities(protein, grid, shape)), None)


def geometric_probability(protein: Atoms, grid: Grid, shape: tuple[int, int, int]) -> np.ndarray:
    """Return the probability of a pocket by geometry alone, (D, H, W) float32 in [0, 1].

    It is `buriedness` / 7 averaged over the solvent nearby, by a Gaussian of SMOOTHING Å over solvent alone, and 0
    inside of the protein. The reference "largest probability blob of geometry alone" is the first of `geometric_blobs`.
    """
    from scipy.ndimage import gaussian_filter

    outside = solvent(protein, grid, shape)
    sigma = SMOOTHING / np.linalg.norm(grid.affine[:3, :3], axis=0)[::-1]
    share = buriedness(protein, grid, shape).astype(np.float32) / len(DIRECTIONS)
    weight = gaussian_filter(outside.astype(np.float32), sigma, mode="nearest")
    smooth = gaussian_filter(share, sigma, mode="nearest") / np.maximum(weight, 1e-6)
    return np.clip(np.where(outside, smooth, 0), 0, 1)


def geometric_blobs(
    protein: Atoms, grid: Grid, shape: tuple[int, int, int], threshold: float = GEOMETRIC_THRESHOLD
) -> list[Pocket]:
    """Return the pockets of `geometric_probability` above a threshold, `grown`, the largest mass first."""
    blobs = extract_pockets(geometric_probability(protein, grid, shape), grid, threshold)
    return [grown(pocket, grid) for pocket in blobs]
