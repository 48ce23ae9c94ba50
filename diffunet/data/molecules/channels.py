"""A protein as the channels that a network gets: its chemistry, and where it surrounds solvent."""

import torch
from torch import Tensor

from ..volumes.grids import Grid, Volume
from .atoms import Atoms
from .buriedness import DIRECTIONS, buriedness
from .chemistry import CHANNELS
from .occupancy import MARGIN, RESOLUTION, box, rasterize

NAMES = (*CHANNELS, "buriedness")
"""Of the channels of `describe`."""


def describe(atoms: Atoms, grid: Grid, shape: tuple[int, int, int]) -> Tensor:
    """Return the occupancies of atoms (`rasterize`) and the share of directions by which solvent is buried.

    (9, D, H, W) float32 in [0, 1]. Buriedness reaches farther than a small network sees, and it alone finds many sites.
    """
    buried = torch.from_numpy(buriedness(atoms, grid, shape)).float() / len(DIRECTIONS)
    return torch.cat([rasterize(atoms, grid, shape), buried[None]])


def voxelize(atoms: Atoms, resolution: float = RESOLUTION, margin: float = MARGIN) -> Volume:
    """Return the channels of atoms (`describe`) in the `box` around them. Raise UserError as `box` does."""
    grid, shape = box(atoms.xyz, resolution, margin)
    return Volume(describe(atoms, grid, shape), grid)
