"""Built-in synthetic proteins with a pocket that geometry alone does not find.

A globule has several carved pockets of the same kind of shape. One is lined by aromatic carbons and acids and holds the
ligand; one is lined by bases, one by aliphatic carbon, as decoys.
"""

from typing import NamedTuple

import numpy as np

from ..molecules.atoms import Atoms
from ..molecules.channels import describe
from ..molecules.occupancy import RESOLUTION, cube, ligand_target

RADIUS = 15.0, 18.0
"""Range of the mean radius of a globule in Å: 700 to 2,000 atoms, about 1,200."""
SPACING = 3.3
"""Edge in Å of the body-centered lattice that atoms are displaced from: 1 atom in 18 Å³, as in proteins."""
JITTER = 0.35
"""Standard deviation of the displacement in Å along each axis."""
POCKET = 4.8, 6.0
"""Range of the radius of a pocket in Å."""
DEPTH = 4.5
"""Depth of a pocket's center under the surface in Å, so that it is concave and open."""
LINING = 3.5
"""Thickness in Å of the lining of a pocket."""
PURE = 0.7
"""Share of the lining's atoms with the character of the pocket; the others are of any kind."""
CLEARANCE = 3.2
"""Least distance in Å of a ligand atom to the protein."""
LIGAND_ATOMS = 12, 24
"""Range of the number of ligand atoms."""
BOND = 1.5
"""Length of the ligand's bonds in Å."""

_FREQUENT = {
    "ALA": "CA C O N CB",
    "GLY": "CA C O N",
    "LEU": "CB CG CD1 CD2",
    "VAL": "CG1",
    "ILE": "CD1",
    "LYS": "CD NZ",
}
_FREQUENT |= {"ARG": "CZ NH1", "ASP": "OD1", "GLU": "OE1 CG", "SER": "OG", "THR": "OG1", "ASN": "ND2", "GLN": "OE1"}
_FREQUENT |= {"ILE": "CD1", "PHE": "CZ", "TYR": "CE1", "HIS": "CE1", "MET": "SD"}
ANY = [f"{residue}:{name}" for residue, names in _FREQUENT.items() for name in names.split()]
"""Residue and name of the atoms of a globule, about as frequent as in proteins."""
TRUE = ["PHE:CG", "PHE:CE1", "TYR:CD2", "TRP:CZ2", "ASP:OD1", "GLU:OE2"]
DECOYS = (["LYS:NZ", "ARG:NH1", "ARG:NH2", "LYS:CE"], ["LEU:CD1", "VAL:CG2", "ILE:CD1", "ALA:CB"])
"""Atoms of the lining of the pocket with the ligand, and of the others."""


class Globule(NamedTuple):
    """A synthetic protein with a ligand."""

    atoms: Atoms
    ligand: np.ndarray
    """(M, 3) float32 in Å."""
    centers: np.ndarray
    """(P, 3) centers of the pockets in Å; the first holds the ligand."""
    radii: np.ndarray
    """(P,) radii of the pockets in Å."""


def globule(rng: np.random.Generator) -> tuple[Atoms, np.ndarray]:
    """Return the atoms of a synthetic protein and its ligand, (M, 3) float32 in Å."""
    return draw_globule(rng)[:2]


def draw_globule(rng: np.random.Generator) -> Globule:
    """Return a globule with its pockets.

    The surface is a sphere with three low waves; the sizes, depths and places of the pockets are drawn alike, so shape
    and size do not tell which holds the ligand.
    """
    radius = rng.uniform(*RADIUS)
    waves, phases = rng.standard_normal((3, 3)) * 0.12, rng.uniform(0, 2 * np.pi, 3)

    def surface(directions: np.ndarray) -> np.ndarray:
        """Return the distance of the surface from the middle in directions (N, 3), in Å."""
        return radius * (1 + 0.1 * np.sin(10 * directions @ waves.T + phases).sum(-1))

    directions = _apart_directions(rng, 1 + len(DECOYS))
    centers = directions * (surface(directions) - DEPTH)[:, None]
    radii = rng.uniform(*POCKET, len(centers))

    cells = np.arange(-np.ceil(1.4 * RADIUS[1] / SPACING), np.ceil(1.4 * RADIUS[1] / SPACING) + 1)
    lattice = np.stack(np.meshgrid(cells, cells, cells, indexing="ij"), -1).reshape(-1, 3) * SPACING
    xyz = np.concatenate([lattice, lattice + SPACING / 2]) + rng.uniform(0, SPACING, 3)
    xyz += JITTER * rng.standard_normal(xyz.shape)
    away = np.linalg.norm(xyz, axis=1)
    xyz = xyz[away < surface(xyz / away[:, None])]
    gaps = np.linalg.norm(xyz[:, None] - centers, axis=-1) - radii
    xyz, gaps = xyz[gaps.min(1) > 0], gaps[gaps.min(1) > 0]

    kinds = rng.choice(ANY, len(xyz))
    for pocket, lining in enumerate((TRUE, *DECOYS)):
        chosen = (gaps[:, pocket] < LINING) & (rng.random(len(xyz)) < PURE)
        kinds[chosen] = rng.choice(lining, chosen.sum())
    turn = _random_rotation(rng)
    shift = rng.uniform(-20, 20, 3)
    ligand = _grow(rng, centers[0], radii[0], xyz)
    xyz, ligand, centers = (points @ turn.T + shift for points in (xyz, ligand, centers))
    return Globule(_atoms(xyz, kinds), ligand.astype(np.float32), centers, radii)


def _apart_directions(rng: np.random.Generator, number: int) -> np.ndarray:
    """Return random unit vectors at least 75 degrees apart, (number, 3)."""
    while True:
        directions = rng.standard_normal((number, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        if (directions @ directions.T - 2 * np.eye(number)).max() < np.cos(np.radians(75)):
            return directions


def _random_rotation(rng: np.random.Generator) -> np.ndarray:
    """Return a rotation of uniform distribution, (3, 3)."""
    basis, upper = np.linalg.qr(rng.standard_normal((3, 3)))
    basis *= np.sign(upper.diagonal())
    return basis * np.linalg.det(basis)


def _grow(rng: np.random.Generator, center: np.ndarray, radius: float, protein: np.ndarray) -> np.ndarray:
    """Return a random tree of bonds inside of a pocket, (M, 3), away from the protein (N, 3)."""
    number = int(rng.integers(LIGAND_ATOMS[0], LIGAND_ATOMS[1] + 1))
    near = protein[np.linalg.norm(protein - center, axis=1) < radius + 2 * CLEARANCE]
    atoms = center[None]
    for _ in range(200 * number):
        step = rng.standard_normal(3)
        new = atoms[rng.integers(len(atoms))] + BOND * step / np.linalg.norm(step)
        inside = np.linalg.norm(new - center) < radius - 0.5
        free = np.linalg.norm(near - new, axis=1).min(initial=np.inf) > CLEARANCE
        if inside and free and np.linalg.norm(atoms - new, axis=1).min() > BOND - 1e-6:
            atoms = np.concatenate([atoms, new[None]])
        if len(atoms) == number:
            break
    return atoms


def _atoms(xyz: np.ndarray, kinds: np.ndarray) -> Atoms:
    """Return atoms of kinds such as ALA:CA, each in a residue of its own."""
    residue, name = (np.array(part) for part in zip(*(kind.split(":") for kind in kinds.tolist()), strict=True))
    size = len(xyz)
    return Atoms(
        xyz=xyz.astype(np.float32),
        element=np.array([each[0] for each in name.tolist()]),
        residue=residue,
        name=name,
        chain=np.full(size, "A"),
        number=np.arange(1, size + 1).astype(str),
        hetero=np.zeros(size, bool),
        type=np.full(size, ""),
    )


SIDE = 24
"""Voxels of 2 Å along each axis of the box around a globule."""


def pockets(rng: np.random.Generator, size: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the channels of a globule on a grid, float32 (9, D, H, W), and 1 near its ligand, uint8 (D, H, W).

    Voxels are `molecules.occupancy.RESOLUTION` wide; the globule is in the middle of `SIDE` of them.
    """
    atoms, ligand = globule(rng)
    grid, _ = cube(atoms.xyz.mean(0), max(size), RESOLUTION)
    image = describe(atoms, grid, size).numpy()
    return image, ligand_target(ligand, grid, size).numpy()
