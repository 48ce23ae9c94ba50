"""Synthetic proteins: density, clearance, and a pocket that only its chemistry reveals."""

import numpy as np
from scipy.spatial import KDTree

from diffunet.data.molecules.atoms import protein_of
from diffunet.data.molecules.chemistry import CHANNELS, CHARACTER
from diffunet.data.molecules.occupancy import box, character, ligand_target
from diffunet.data.phantoms import globules
from diffunet.data.phantoms.globules import draw_globule, globule
from diffunet.data.phantoms.registry import PHANTOMS
from diffunet.evaluation.cavities import cavities
from diffunet.evaluation.pockets import dcc

DRAWN = [draw_globule(np.random.default_rng(seed)) for seed in range(24)]


def test_a_globule_is_a_function_of_its_generator():
    atoms, ligand = globule(np.random.default_rng(3))
    np.testing.assert_array_equal(atoms.xyz, DRAWN[3].atoms.xyz)
    np.testing.assert_array_equal(ligand, DRAWN[3].ligand)
    assert len({each.ligand.tobytes() for each in DRAWN}) == len(DRAWN)
    assert atoms.xyz.dtype == ligand.dtype == np.float32
    assert len(protein_of(atoms)) == len(atoms)


def test_all_atoms_have_a_character_in_the_table():
    used = {*globules.ANY, *globules.TRUE, *(kind for lining in globules.DECOYS for kind in lining)}
    assert {tuple(kind.split(":")) for kind in used} <= set(CHARACTER)


def test_the_inside_is_as_dense_as_a_protein_and_pockets_are_empty():
    for each in DRAWN:
        assert 500 < len(each.atoms) < 2200
        tree = KDTree(each.atoms.xyz)
        middle = each.atoms.xyz.mean(0)
        inside = len(tree.query_ball_point(middle, 8)) / (4 / 3 * np.pi * 8**3)
        assert 0.7 / 18 < inside < 1.3 / 18
        assert (tree.query(each.centers)[0] > each.radii - 1e-3).all()
        assert tree.query(each.atoms.xyz, 2)[0][:, 1].min() > 0.5


def test_a_ligand_is_connected_in_its_pocket_and_touches_no_atom():
    for each in DRAWN:
        assert 5 <= len(each.ligand) <= 24
        assert KDTree(each.atoms.xyz).query(each.ligand)[0].min() > globules.CLEARANCE - 1e-3
        assert KDTree(each.ligand).query(each.ligand, 2)[0][:, 1].max() < 1.5 + 1e-3
        assert dcc(each.centers[0], each.ligand) < 4
        grid, shape = box(each.atoms.xyz)
        assert ligand_target(each.ligand, grid, shape).sum() >= 8
    assert np.median([len(each.ligand) for each in DRAWN]) >= 12


def lining_of(each, channel: str) -> np.ndarray:
    """Return the share of a channel among the atoms around each pocket."""
    member = character(each.atoms)[:, CHANNELS.index(channel)]
    tree = KDTree(each.atoms.xyz)
    near = [tree.query_ball_point(center, radius + 3) for center, radius in zip(each.centers, each.radii, strict=True)]
    return np.array([member[index].mean() for index in near])


def test_chemistry_reveals_the_pocket_and_geometry_does_not():
    chemistry = [(lining_of(each, "aromatic") + lining_of(each, "negative")).argmax() == 0 for each in DRAWN]
    assert all(chemistry)
    assert all(lining_of(each, "positive").argmax() == 1 for each in DRAWN)
    largest = np.mean([each.radii.argmax() == 0 for each in DRAWN])
    assert 0.1 < largest < 0.6  # one third, drawn 24 times: 0.05 to 0.62 at three standard errors
    top, top3 = [], []
    for each in DRAWN:
        grid, shape = box(each.atoms.xyz, 1.5)
        hits = [dcc(pocket.center, each.ligand) <= 4 for pocket in cavities(each.atoms, grid, shape)]
        top.append(any(hits[:1]))
        top3.append(any(hits[:3]))
    assert np.mean(top) < 0.65  # a choice among three: 1/3 with a standard error of 0.1
    assert np.mean(top3) > 0.9  # the pockets are found, but not which


def test_the_built_in_set_is_a_globule_on_a_grid():
    """Where the ligand is, there is no heavy atom of the protein, and both lie inside of the box."""
    for index in range(2):
        image, target, names = PHANTOMS["globules"].generate(index)
        assert image.shape == (9, 24, 24, 24) and image.dtype == np.float32
        assert target.shape == (24, 24, 24) and names == ("elsewhere", "pocket")
        assert 20 < target.sum() < 200
        assert image[0][target == 1].mean() < 0.5 < image[0].max()
        faces = [np.take(each, [0, -1], axis) for each in (image[0], target) for axis in range(3)]
        assert max(face.max() for face in faces) < 0.5
