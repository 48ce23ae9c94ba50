"""Molecules on grids against closed forms, brute force and the symmetry of the cube."""

import numpy as np
import pytest
import torch
from rotations import ROTATIONS, inverse_rotation, rotate_points, rotate_volume
from scipy.spatial.distance import cdist

from diffunet.core.errors import UserError
from diffunet.data.molecules import occupancy
from diffunet.data.molecules.atoms import Atoms
from diffunet.data.molecules.chemistry import CHANNELS, CHARACTER, RADII, SIDE_CHAINS
from diffunet.data.molecules.occupancy import (
    box,
    character,
    cube,
    ligand_target,
    radii_of,
    rasterize,
    voxel_of,
    world_of,
)
from diffunet.data.volumes.grids import Grid

NAMES = sorted(CHARACTER)


def atoms_at(xyz, residue="ALA", name="CB", element="C", type="") -> Atoms:
    size = len(xyz)
    columns = [np.full(size, each) if isinstance(each, str) else np.array(each) for each in (element, residue, name)]
    return Atoms(
        np.asarray(xyz, np.float32), *columns, np.full(size, "A"), np.full(size, "1"), np.zeros(size, bool),
        np.full(size, type) if isinstance(type, str) else np.array(type),
    )  # fmt: skip


def random_atoms(seed: int, number: int, extent: float) -> Atoms:
    """Return atoms of all residues and some metals at random places."""
    rng = np.random.default_rng(seed)
    chosen = [NAMES[i] for i in rng.integers(0, len(NAMES), number)]
    element = ["Se" if name == "SE" else name[0] for _, name in chosen]
    residue, name = zip(*chosen, strict=True)
    metal = rng.random(number) < 0.1
    return atoms_at(
        rng.uniform(0, extent, (number, 3)),
        np.where(metal, "ZN", residue), np.where(metal, "ZN", name), np.where(metal, "Zn", element),
    )  # fmt: skip


def centers(grid: Grid, shape: tuple[int, int, int]) -> np.ndarray:
    """Return the world coordinates of all voxels, (D * H * W, 3), by homogeneous coordinates."""
    z, y, x = np.indices(shape).reshape(3, -1)
    return (grid.affine @ np.stack([x, y, z, np.ones_like(x)]))[:3].T


# ── grids ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("resolution", [0.5, 1.0, 2.0, 1.3])
def test_a_box_holds_all_points_with_the_margin_and_is_no_larger(resolution):
    xyz = np.random.default_rng(0).uniform(-20, 35, (50, 3))
    grid, shape = box(xyz, resolution, 6.0)
    inside = centers(grid, shape)
    assert (inside.min(0) <= xyz.min(0) - 6).all() and (inside.min(0) > xyz.min(0) - 6 - resolution).all()
    assert (inside.max(0) >= xyz.max(0) + 6).all() and (inside.max(0) < xyz.max(0) + 6 + resolution).all()
    np.testing.assert_allclose(inside[0] / resolution, np.rint(inside[0] / resolution), atol=1e-9)
    np.testing.assert_allclose(world_of(voxel_of(xyz, grid), grid), xyz)


def test_boxes_without_sense_are_refused():
    for resolution in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UserError, match="positive size"):
            box(np.zeros((1, 3)), resolution)
    with pytest.raises(UserError, match="use larger voxels"):
        box(np.array([[0, 0, 0], [300, 300, 300.0]]), 0.5)


def test_a_cube_is_centered():
    grid, shape = cube(np.array([1.0, 2.0, 3.0]), 6, 2.0)
    assert shape == (6, 6, 6)
    np.testing.assert_allclose(centers(grid, shape).mean(0), [1, 2, 3])


# ── channels ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("element", ["C", "N", "S", "Zn"])
def test_the_occupancy_of_one_atom_is_the_published_function(element):
    where = np.array([[0.3, -0.2, 0.1]])
    grid, shape = box(where, 0.5, 5.0)
    values = rasterize(atoms_at(where, element=element), grid, shape)[0].numpy().ravel()
    distance = cdist(centers(grid, shape), where)[:, 0]
    expected = 1 - np.exp(-((RADII[element] / distance) ** 12))
    near = distance < 2.2 * RADII[element] - 1e-3
    np.testing.assert_allclose(values[near], expected[near], atol=1e-5)
    assert not values[~near & (distance > 2.2 * RADII[element] + 1e-3)].any()
    assert expected[~near].max() < 1e-4
    assert values[np.argmin(distance)] == 1


def test_an_atom_on_a_voxel_and_none_nearby():
    grid, shape = cube(np.zeros(3), 3, 2.0)
    values = rasterize(atoms_at([[0, 0, 0]]), grid, shape)
    assert values[0, 1, 1, 1] == 1
    assert not rasterize(atoms_at([[90, 0, 0]]), grid, shape).any()
    assert not np.signbit(rasterize(atoms_at([[90, 0, 0]]), grid, shape).numpy()).any()


OBLIQUE = np.array([[1.1, 0.3, 0, -4], [-0.2, 0.9, 0.1, -3], [0, 0.2, 1.4, -5], [0, 0, 0, 1]])


@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize("chunk", [2**20, 500])
def test_channels_are_maxima_over_their_atoms_by_brute_force(monkeypatch, oblique, chunk):
    monkeypatch.setattr(occupancy, "CHUNK", chunk)
    atoms = random_atoms(1, 60, 12)
    grid, shape = (Grid(OBLIQUE), (12, 15, 17)) if oblique else box(atoms.xyz, 1.0, -1.0)  # some atoms lie outside
    values = rasterize(atoms, grid, shape).numpy()
    ratio = cdist(centers(grid, shape), atoms.xyz) / radii_of(atoms)
    each = np.where(ratio <= 2.2, -np.expm1(-(ratio**-12.0)), 0)
    for channel, members in enumerate(character(atoms).T):
        expected = each[:, members].max(1).reshape(shape) if members.any() else np.zeros(shape)
        np.testing.assert_allclose(values[channel], expected, atol=2e-5)


BONDS = """ALA CA-CB; ARG CB-CG CG-CD CD-NE NE-CZ CZ-NH1 CZ-NH2; ASN CB-CG CG-OD1 CG-ND2; ASP CB-CG CG-OD1 CG-OD2;
CYS CB-SG; GLN CB-CG CG-CD CD-OE1 CD-NE2; GLU CB-CG CG-CD CD-OE1 CD-OE2; GLY; HIS CB-CG CG-ND1 CG-CD2 ND1-CE1 CD2-NE2
CE1-NE2; ILE CB-CG1 CB-CG2 CG1-CD1; LEU CB-CG CG-CD1 CG-CD2; LYS CB-CG CG-CD CD-CE CE-NZ; MET CB-CG CG-SD SD-CE;
MSE CB-CG CG-SE SE-CE; PHE CB-CG CG-CD1 CG-CD2 CD1-CE1 CD2-CE2 CE1-CZ CE2-CZ; PRO CB-CG CG-CD CD-N; SER CB-OG;
THR CB-OG1 CB-CG2; TRP CB-CG CG-CD1 CG-CD2 CD1-NE1 NE1-CE2 CD2-CE2 CD2-CE3 CE2-CZ2 CE3-CZ3 CZ2-CH2 CZ3-CH2;
TYR CB-CG CG-CD1 CG-CD2 CD1-CE1 CD2-CE2 CE1-CZ CE2-CZ CZ-OH; VAL CB-CG1 CB-CG2"""


def test_the_table_follows_from_the_bonds_of_each_amino_acid():
    """Hydrophobic carbon: no N or O beside it; aromatic: in a ring of four residues; and known charges."""
    bonds = {line.split()[0]: [bond.split("-") for bond in line.split()[1:]] for line in BONDS.split(";")}
    assert set(bonds) == set(SIDE_CHAINS)
    charged = {"p": set(), "n": set()}
    for residue, pairs in bonds.items():
        pairs = [*pairs, ["N", "CA"], ["CA", "C"], ["C", "O"]] + ([["CA", "CB"]] if residue != "GLY" else [])
        names = {name for pair in pairs for name in pair}
        assert {name for r, name in CHARACTER if r == residue} == names | {"OXT"}
        ring = residue in ("PHE", "TYR", "TRP", "HIS")
        for name in names:
            letters = CHARACTER[residue, name]
            beside = {(set(pair) - {name}).pop()[0] for pair in pairs if name in pair}
            assert ("h" in letters) == (name[0] == "C" and not beside & {"N", "O"}), (residue, name)
            assert ("r" in letters) == (ring and name[0] == "C" and name not in ("C", "CA", "CB")), (residue, name)
            assert ("a" in letters or "d" in letters) == (name[0] in "NOS" and (residue, name) != ("PRO", "N"))
            for sign, found in charged.items():
                if sign in letters:
                    found.add(residue)
    assert charged == {"p": {"ARG", "LYS"}, "n": {"ASP", "GLU"}}


def by_type(atoms: Atoms) -> list[set[str]]:
    return [{CHANNELS[i] for i in np.flatnonzero(row)} - {"heavy"} for row in character(atoms)]


def test_other_groups_have_the_character_of_their_bonds():
    """Acetate, N-methylacetamide, methanol, phosphate and benzene without a table, at textbook distances."""
    acetate = [(0, 0, 0), (1.52, 0, 0), (2.1, 1.1, 0), (2.1, -1.1, 0)]
    amide = [(0, 30, 0), (1.52, 30, 0), (2.1, 31.08, 0), (2.2, 28.85, 0), (3.65, 28.8, 0)]
    methanol = [(0, 60, 0), (1.42, 60, 0)]
    phosphate = [(0, 90, 0), (0.9, 90.9, 0.9), (-0.9, 89.1, 0.9), (0.9, 89.1, -0.9), (-0.9, 90.9, -0.9)]
    ring = [(1.39 * np.cos(a), 120 + 1.39 * np.sin(a), 0) for a in np.arange(6) * np.pi / 3]
    atoms = atoms_at(
        acetate + amide + methanol + phosphate + ring, "UNK", "", list("CCOO" + "CCONC" + "CO" + "POOOO" + "C" * 6),
        [""] * 16 + ["A"] * 6,
    )  # fmt: skip
    found = by_type(atoms)
    assert found[:4] == [{"hydrophobic"}, set(), {"acceptor", "negative"}, {"acceptor", "negative"}]
    assert found[4:9] == [{"hydrophobic"}, set(), {"acceptor"}, {"donor"}, set()]
    assert found[9:11] == [set(), {"donor", "acceptor"}]
    assert found[11:16] == [set()] + [{"acceptor", "negative"}] * 4
    assert found[16:] == [{"hydrophobic", "aromatic"}] * 6
    assert by_type(atoms_at([[0, 0, 0]], "ZN", "ZN", "Zn")) == [{"metal"}]


# ── target ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("radius", [1.8, 2.5, 6.0])
@pytest.mark.parametrize("resolution", [1.0, 2.0])
def test_a_target_is_within_the_radius_of_the_ligand(radius, resolution):
    ligand = np.random.default_rng(3).uniform(0, 9, (12, 3))
    grid, shape = box(ligand, resolution, 4.0)
    target = ligand_target(ligand, grid, shape, radius)
    expected = cdist(centers(grid, shape), ligand).min(1) <= radius
    np.testing.assert_array_equal(target.numpy().ravel(), expected)
    assert target.dtype == torch.uint8 and target.shape == shape


def test_each_atom_marks_a_voxel_of_two_angstroms():
    rng = np.random.default_rng(4)
    for place in rng.uniform(0, 2, (200, 3)):
        grid, shape = cube(np.zeros(3), 8, 2.0)
        assert ligand_target(place[None], grid, shape).any()


# ── rotations ─────────────────────────────────────────────────────────────────────────────────────


def test_the_rotations_are_the_group_of_the_cube():
    assert ROTATIONS.shape == (24, 3, 3)
    assert len({matrix.tobytes() for matrix in ROTATIONS}) == 24
    np.testing.assert_array_equal(ROTATIONS[0], np.eye(3))
    products = {(a @ b).tobytes() for a in ROTATIONS for b in ROTATIONS}
    assert products == {matrix.tobytes() for matrix in ROTATIONS}
    assert all(round(np.linalg.det(matrix)) == 1 for matrix in ROTATIONS)


@pytest.mark.parametrize("number", range(24))
@pytest.mark.parametrize("side", [12, 13])
def test_the_raster_of_rotated_atoms_is_the_rotated_raster(number, side):
    center = np.array([3.0, -2.0, 5.0])
    atoms = random_atoms(5, 40, 18)
    atoms = atoms.at(atoms.xyz - 9 + center)
    grid, shape = cube(center, side, 1.5)
    rotated = atoms.at(rotate_points(atoms.xyz, number, center))
    expected = rotate_volume(rasterize(atoms, grid, shape), number)
    torch.testing.assert_close(rasterize(rotated, grid, shape), expected, atol=1e-4, rtol=0)
    back = rotate_volume(expected, inverse_rotation(number))
    torch.testing.assert_close(back, rasterize(atoms, grid, shape), atol=0, rtol=0)
    np.testing.assert_array_equal(rotate_volume(rasterize(atoms, grid, shape).numpy(), number), expected.numpy())
