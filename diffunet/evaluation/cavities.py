"""Pockets from the shape of a protein alone, as references that a network has to surpass.

Both start from `buriedness`, which uses nothing but the places and radii of atoms.
"""

from dataclasses import replace

import numpy as np

from ..data.molecules.atoms import Atoms
from ..data.molecules.buriedness import DIRECTIONS, buriedness, solvent
from ..data.volumes.grids import Grid
from .pockets import MIN_VOLUME, Pocket, extract_pockets, mask_center, voxel_volume

LINES = 5
"""Directions, of 7, that end in protein on both sides, at least, in a cavity."""
SMOOTHING = 2.0
"""Standard deviation in Å of the Gaussian in `geometric_probability`."""
GEOMETRIC_THRESHOLD = 0.7
"""Smoothed buriedness above which a voxel belongs to a blob."""
GROWTH = 2.0
"""Distance in Å by which cavities, which consist of the centers of water, grow to the volume of a ligand's target."""


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
