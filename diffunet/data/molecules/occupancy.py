"""Molecules on a grid: channels of smooth occupancy, and the target of a ligand.

Values have axes (C, z, y, x); a grid maps indices (x, y, z) of a voxel's center to Å.
"""

import math

import numpy as np
import torch
from torch import Tensor

from ...core.errors import UserError
from ..volumes.grids import Grid
from .atoms import Atoms
from .chemistry import BOND_TOLERANCE, CHANNELS, CHARACTER, COVALENT, DEFAULT_RADIUS, LETTERS, METALS, RADII

RESOLUTION = 2.0
"""Side of a voxel in Å, as Kalasanty (Stepniewska-Dziubinska et al. 2020), whose 36³ voxels hold most chains whole.

A success is a center within 4 Å, two voxels, and a box has an eighth of the voxels of 1 Å.
"""
MARGIN = 6.0
"""Distance in Å from the outermost atoms to the faces of a box: ligands on a surface are inside."""
REACH = 2.2
"""Occupancy ends at this multiple of the van der Waals radius, where it is 8e-5."""
LIGAND_RADIUS = 2.5
"""Radius in Å of a ligand atom in a target, see `ligand_target`."""
HYDROXYL = 1.32
"""Length in Å between the bonds of carbon to the oxygen of a carbonyl, 1.23, and of a hydroxyl, 1.36 to 1.43."""
LARGEST = 256**3
"""Voxels of a box, at most: 512 Å in each direction at 2 Å."""
CHUNK = 2**20
"""Pairs of an atom and a voxel computed at once."""


# ── grids ─────────────────────────────────────────────────────────────────────────────────────────


def box(xyz: np.ndarray, resolution: float = RESOLUTION, margin: float = MARGIN) -> tuple[Grid, tuple[int, int, int]]:
    """Return a grid around points (N, 3), with voxels of `resolution` Å, and its shape (D, H, W).

    Centers of voxels are at whole multiples of the resolution, so that a CCP4 map holds the origin exactly and boxes of
    the same protein agree. Raise UserError at a resolution that is not positive or gives more than 256³ voxels.
    """
    _check_resolution(resolution)
    low = np.floor((xyz.min(0) - margin) / resolution).astype(np.int64)
    high = np.ceil((xyz.max(0) + margin) / resolution).astype(np.int64)
    size = (high - low + 1).tolist()
    if math.prod(size) > LARGEST:
        raise UserError(f"grid: {size[0]}x{size[1]}x{size[2]} voxels (got {resolution} Å); use larger voxels")
    return _grid(low * resolution, resolution), (size[2], size[1], size[0])


def cube(center: np.ndarray, side: int, resolution: float = RESOLUTION) -> tuple[Grid, tuple[int, int, int]]:
    """Return a grid of `side`³ voxels whose middle is `center` (3,), in Å, and its shape (D, H, W)."""
    _check_resolution(resolution)
    return _grid(np.asarray(center, np.float64) - (side - 1) / 2 * resolution, resolution), (side, side, side)


def _check_resolution(resolution: float) -> None:
    if not (math.isfinite(resolution) and resolution > 0):
        raise UserError(f"resolution: a voxel needs a positive size in Å (got {resolution}); use {RESOLUTION:g}")


def _grid(origin: np.ndarray, resolution: float) -> Grid:
    affine = np.diag([resolution, resolution, resolution, 1.0])
    affine[:3, 3] = origin
    return Grid(affine)


def voxel_of(xyz: np.ndarray, grid: Grid) -> np.ndarray:
    """Return the fractional indices (x, y, z) of world coordinates (N, 3), float64."""
    inverse = np.linalg.inv(grid.affine)
    return np.asarray(xyz, np.float64) @ inverse[:3, :3].T + inverse[:3, 3]


def world_of(index: np.ndarray, grid: Grid) -> np.ndarray:
    """Return the world coordinates in Å of indices (x, y, z), (N, 3) float64."""
    return np.asarray(index, np.float64) @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def scaled_distance(
    xyz: np.ndarray, radii: np.ndarray, grid: Grid, shape: tuple[int, int, int], reach: float, rows: np.ndarray
) -> np.ndarray:
    """Return the least of (distance / radius)² over the points of each row, at each voxel, (K, D, H, W) float32.

    xyz: (N, 3) in Å; radii: (N,) in Å; rows: (N, K) bool, the rows that a point belongs to. Beyond `reach` radii of all
    points it is infinite. Any affine is allowed.
    """
    nearest = np.full((rows.shape[1], math.prod(shape)), np.inf, np.float32)
    axes = np.asarray(grid.affine[:3, :3], np.float64)
    place = voxel_of(xyz, grid)
    corner = np.rint(place)
    rest = (place - corner) @ axes.T
    size = np.array(shape[::-1])
    for radius in np.unique(radii):
        # Along an index: the reach times the length of that row of the inverse, and half a voxel to the atom.
        extent = np.floor(reach * radius * np.linalg.norm(np.linalg.inv(axes), axis=1) + 0.5).astype(np.int64)
        steps = np.stack(np.meshgrid(*(np.arange(-each, each + 1) for each in extent), indexing="ij"), -1).reshape(
            -1, 3
        )
        offsets = steps @ axes.T
        farthest = reach * radius + np.linalg.norm(axes, axis=0).sum() / 2
        near = np.square(offsets).sum(1) <= farthest**2
        steps, offsets = steps[near], offsets[near]
        chosen = np.flatnonzero(radii == radius)
        for part in np.array_split(chosen, max(1, math.ceil(len(chosen) * len(steps) / CHUNK))):
            squared = np.zeros((len(part), len(steps)), np.float32)
            inside = np.ones(squared.shape, bool)
            flat = np.zeros(squared.shape, np.int64)
            for axis in (2, 1, 0):
                squared += np.square((offsets[:, axis] - rest[part, axis, None]) / radius, dtype=np.float32)
                index = corner[part, axis, None].astype(np.int64) + steps[:, axis]
                inside &= (index >= 0) & (index < size[axis])
                flat = flat * size[axis] + index
            inside &= squared <= reach**2
            for row in range(rows.shape[1]):
                own = np.flatnonzero(rows[part, row])
                used = inside[own]
                np.minimum.at(nearest[row], flat[own][used], squared[own][used])
    return nearest.reshape(-1, *shape)


# ── channels ──────────────────────────────────────────────────────────────────────────────────────


def radii_of(atoms: Atoms) -> np.ndarray:
    """Return the van der Waals radii of atoms in Å, (N,) float64."""
    return np.array([RADII.get(element, DEFAULT_RADIUS) for element in atoms.element.tolist()])


def character(atoms: Atoms) -> np.ndarray:
    """Return which channels of `chemistry.CHANNELS` each atom belongs to, (N, 8) bool.

    Of amino acids it follows from the names of residue and atom (`chemistry.CHARACTER`); of other groups from the
    distances of their atoms and the atom types, where given.
    """
    found = np.zeros((len(atoms), len(CHANNELS)), bool)
    found[:, 0] = True
    found[:, -1] = np.isin(atoms.element, sorted(METALS))
    keys = list(zip(atoms.residue.tolist(), atoms.name.tolist(), strict=True))
    for row, key in enumerate(keys):
        for letter in CHARACTER.get(key, ""):
            found[row, LETTERS[letter]] = True
    others = np.array([key not in CHARACTER for key in keys]) & ~found[:, -1]
    if others.any():
        found[others] |= _character_by_bonds(atoms)[others]
    return found


def _character_by_bonds(atoms: Atoms) -> np.ndarray:
    """Return which channels each atom belongs to by its bonds and type, (N, 8) bool; hydrogens are not needed.

    Carbon without nitrogen, oxygen or halogen beside it is hydrophobic. Nitrogen of one bond is a donor, of two also an
    acceptor unless in an amide, of three neither. Oxygen is an acceptor; of one bond it is negative on phosphorus, or
    on a carbon with another such oxygen, and a donor if the bond is longer than HYDROXYL. Sulfur of up to two bonds is
    an acceptor.
    """
    from scipy.spatial import KDTree

    element = atoms.element
    covalent = np.array([COVALENT.get(each, 0.0) for each in element.tolist()])
    pairs = KDTree(atoms.xyz).query_pairs(2 * BOND_TOLERANCE * max(covalent.max(), 1.0), output_type="ndarray")
    i, j = np.concatenate([pairs, pairs[:, ::-1]]).T
    apart = np.linalg.norm(atoms.xyz[i] - atoms.xyz[j], axis=1)
    bonded = (apart <= BOND_TOLERANCE * (covalent[i] + covalent[j])) & (covalent[i] > 0) & (covalent[j] > 0)
    i, j = i[bonded], j[bonded]

    def count(which: np.ndarray) -> np.ndarray:
        """Return the number of neighbors of each atom that are `which`, (N,)."""
        return np.bincount(i, which[j], minlength=len(atoms)).astype(np.int64)

    degree = count(np.ones(len(atoms), bool))
    terminal = (element == "O") & (degree == 1)
    longest = np.zeros(len(atoms), np.float32)
    np.maximum.at(longest, i, apart[bonded])
    hydroxyl = terminal & (longest > HYDROXYL)
    carbonyl = (element == "C") & (count(terminal & ~hydroxyl) > 0)
    acid = (element == "P") | ((element == "C") & (count(terminal & ~hydroxyl) == 2))
    nitrogen, polar = element == "N", np.isin(element, ("N", "O", "F", "Cl", "Br", "I"))
    aromatic = np.isin(atoms.type, ("A", "C.ar"))
    sulfur = np.isin(element, ("S", "Se")) & (degree <= 2)
    columns = {
        "hydrophobic": (element == "C") & (count(polar) == 0),
        "aromatic": aromatic & (element == "C"),
        "donor": (nitrogen & (degree <= 2)) | (hydroxyl & (count(acid) == 0)),
        "acceptor": (element == "O") | sulfur | (nitrogen & (degree == 2) & (count(carbonyl) == 0)),
        "positive": np.isin(atoms.type, ("N.4",)),
        "negative": (terminal & (count(acid) > 0)) | (atoms.type == "O.co2"),
    }
    nothing = np.zeros(len(atoms), bool)
    return np.stack([columns.get(channel, nothing) for channel in CHANNELS], 1)


def rasterize(atoms: Atoms, grid: Grid, shape: tuple[int, int, int]) -> Tensor:
    """Return the occupancy of each channel of `chemistry.CHANNELS` at each voxel, in [0, 1], (8, D, H, W) float32.

    The occupancy by an atom at distance r is 1 - exp(-(r_vdw / r)^12), and that of a channel is the largest of its
    atoms' (Jiménez et al. 2017, equation 1); it is 0 beyond REACH radii, where it is below 1e-4.
    """
    squared = scaled_distance(atoms.xyz, radii_of(atoms), grid, shape, REACH, character(atoms))
    with np.errstate(divide="ignore", over="ignore"):
        return torch.from_numpy(-np.expm1(-(squared**-6)))


def ligand_target(ligand: np.ndarray, grid: Grid, shape: tuple[int, int, int], radius: float = LIGAND_RADIUS) -> Tensor:
    """Return 1 where the center of a voxel is within `radius` Å of a ligand atom, else 0, (D, H, W) uint8.

    ligand: coordinates of heavy atoms (M, 3), or points of a cavity. The default, 2.5 Å, is the radius of an atom, 1.7,
    and about half of the diagonal of a voxel of 1 Å. It is more than half of that of a voxel of 2 Å, 1.73, so each atom
    inside marks at least one; yet it is less than the distance at which atoms touch, 3.4 Å, so the target ends before
    the centers of the protein's atoms.
    """
    every = np.ones((len(ligand), 1), bool)
    squared = scaled_distance(np.asarray(ligand), np.full(len(ligand), radius), grid, shape, 1.0, every)
    return torch.from_numpy(np.isfinite(squared[0]).astype(np.uint8))
