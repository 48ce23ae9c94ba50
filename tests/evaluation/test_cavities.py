"""References from geometry against brute force and shapes of known cavities."""

import numpy as np
import pytest
from rotations import rotate_points, rotate_volume
from scipy.spatial.distance import cdist

from diffunet.data.molecules.atoms import Atoms
from diffunet.data.molecules.buriedness import DIRECTIONS, LINE, PROBE, buriedness, solvent
from diffunet.data.molecules.occupancy import box, cube, radii_of, world_of
from diffunet.data.phantoms.globules import globule
from diffunet.evaluation.cavities import cavities, geometric_blobs, geometric_probability, grown, largest_cavity


def carbon(xyz: np.ndarray) -> Atoms:
    def column(text):
        return np.full(len(xyz), text)

    return Atoms(
        xyz.astype(np.float32), column("C"), column("ALA"), column("CB"), column("A"), column("1"), column(False),
        column(""),
    )  # fmt: skip


def shell(inner: float, outer: float, opening: float = -np.inf) -> Atoms:
    """Return carbon between two spheres, and no carbon over `opening` Å in z."""
    places = np.arange(-outer, outer + 0.1, 1.7)
    xyz = np.stack(np.meshgrid(places, places, places), -1).reshape(-1, 3)
    away = np.linalg.norm(xyz, axis=1)
    return carbon(xyz[(away >= inner) & (away <= outer) & ((xyz[:, 2] < opening) | (opening == -np.inf))])


@pytest.mark.parametrize("resolution", [1.5, 2.0])
def test_buriedness_counts_lines_by_brute_force(resolution):
    atoms = carbon(np.random.default_rng(0).uniform(-6, 6, (14, 3)))
    grid, shape = box(atoms.xyz, resolution, 4.0)
    centers = world_of(np.indices(shape).reshape(3, -1).T[:, ::-1], grid)
    outside = (cdist(centers, atoms.xyz) > radii_of(atoms) + PROBE).all(1).reshape(shape)
    np.testing.assert_array_equal(solvent(atoms, grid, shape), outside)
    expected = np.zeros(shape, int)
    for z, y, x in np.argwhere(outside):
        for direction in DIRECTIONS:
            ends = 0
            for sign in (1, -1):
                for step in range(1, int(LINE / (resolution * np.linalg.norm(direction))) + 1):
                    place = tuple(np.array([z, y, x]) + sign * step * np.array(direction[::-1]))
                    if not all(0 <= p < s for p, s in zip(place, shape, strict=True)):
                        break
                    if not outside[place]:
                        ends += 1
                        break
            expected[z, y, x] += ends == 2
    np.testing.assert_array_equal(buriedness(atoms, grid, shape), expected)
    assert expected.max() >= 3


def test_the_cavity_of_a_shell_is_its_inside():
    atoms = shell(7, 11)
    grid, shape = box(atoms.xyz, 1.0)
    found = cavities(atoms, grid, shape)
    assert np.linalg.norm(found[0].center) < 0.3
    assert found[0].volume == pytest.approx(4 / 3 * np.pi * (7 - 1.7 - PROBE + 2.0) ** 3, rel=0.35)
    assert largest_cavity(atoms, grid, shape).volume == found[0].volume
    blob = geometric_blobs(atoms, grid, shape)[0]
    assert np.linalg.norm(blob.center) < 0.3
    assert geometric_probability(atoms, grid, shape)[tuple(s // 2 for s in shape)] > 0.99


def test_a_cup_has_its_cavity_inside_and_a_ball_has_none():
    cup = shell(6, 10, opening=3)
    grid, shape = box(cup.xyz, 1.0)
    assert np.linalg.norm(largest_cavity(cup, grid, shape).center) < 3
    ball = shell(0, 9)
    grid, shape = box(ball.xyz, 1.0)
    assert largest_cavity(ball, grid, shape) is None
    assert not geometric_blobs(ball, grid, shape)


@pytest.mark.parametrize("number", [1, 7, 18])
def test_references_rotate_with_the_protein(number):
    atoms, _ = globule(np.random.default_rng(1))
    center = np.round(atoms.xyz.mean(0)).astype(np.float32)
    grid, shape = cube(center, 35, 1.5)
    rotated = atoms.at(rotate_points(atoms.xyz, number, center))
    before, after = (buriedness(each, grid, shape) for each in (atoms, rotated))
    assert (rotate_volume(before, number) != after).mean() < 1e-4
    smooth = [geometric_probability(each, grid, shape) for each in (atoms, rotated)]
    assert np.abs(rotate_volume(smooth[0], number) - smooth[1]).mean() < 1e-4


def test_growth_is_a_distance():
    atoms = shell(7, 11)
    grid, shape = box(atoms.xyz, 1.0)
    pocket = largest_cavity(atoms, grid, shape)
    more = grown(pocket, grid, 2.5)
    places = [np.argwhere(each.mask) for each in (more, pocket)]
    apart = cdist(*places).min(1)
    assert apart.max() <= 2.5 and more.mass == pocket.mass
    assert more.volume == pytest.approx(more.mask.sum())
    outside = np.argwhere(~more.mask)[::7]
    assert cdist(outside, places[1]).min() > 2.5
