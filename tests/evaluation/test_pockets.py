"""Pockets against scikit-image and closed forms; maps against gemmi and the header as published."""

import csv
import json
import math
import struct

import gemmi
import numpy as np
import pytest
import torch
from rotations import ROTATIONS, rotate_points, rotate_volume
from scipy import ndimage
from skimage import measure, morphology

from diffunet.core.errors import UserError
from diffunet.data.molecules.occupancy import box, cube, ligand_target
from diffunet.data.volumes.grids import Grid
from diffunet.evaluation.pockets import (
    COLUMNS,
    Pocket,
    dcc,
    dvo,
    extract_pockets,
    found,
    mask_center,
    mean_scores,
    pli,
    pocket_scores,
    write_ccp4,
    write_pockets,
)


def grid_of(step=(2.0, 2.0, 2.0), origin=(0.0, 0.0, 0.0)) -> Grid:
    affine = np.diag([*step, 1.0])
    affine[:3, 3] = origin
    return Grid(affine)


def field(seed: int, shape=(14, 16, 18)) -> np.ndarray:
    """Return smooth probabilities in [0, 1]."""
    values = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    return 1 / (1 + np.exp(-(values - 0.03) / values.std()))


def block(at, side, shape=(20, 20, 20)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, a + side) for a in at)] = True
    return mask


# ── extraction ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(4))
def test_pockets_equal_those_of_scikit_image(seed):
    """As the published recipe: threshold, closing, components, volume; away from the faces, where it clears them."""
    values = np.pad(field(seed), 2)
    grid = grid_of((1.5, 2.0, 2.5), (-7.0, 3.0, 11.0))
    pockets = extract_pockets(torch.from_numpy(values), grid, 0.6, 60.0)
    labels = measure.label(morphology.closing(values > 0.6, ndimage.generate_binary_structure(3, 1)))
    expected = [region for region in measure.regionprops(labels) if region.area * 7.5 >= 60]
    assert len(pockets) == len(expected) > 1
    for region in expected:
        mask = labels == region.label
        pocket = next(each for each in pockets if (each.mask == mask).all())
        z, y, x = region.centroid
        np.testing.assert_allclose(pocket.center, [1.5 * x - 7, 2 * y + 3, 2.5 * z + 11])
        assert pocket.volume == pytest.approx(region.area * 7.5)
        assert pocket.mean_probability == pytest.approx(values[mask].mean())
        assert pocket.max_probability == values[mask].max()
        assert pocket.mass == pytest.approx(values[mask].sum() * 7.5)
    masses = [pocket.mass for pocket in pockets]
    assert masses == sorted(masses, reverse=True)


def test_pockets_are_ordered_by_mass():
    values = 0.55 * block((1, 1, 1), 5) + 0.99 * block((12, 12, 12), 4)
    assert [each.volume for each in extract_pockets(values, grid_of())] == pytest.approx([125 * 8, 64 * 8])
    values *= np.where(values < 0.6, 0.9, 1)  # 125 · 0.495 < 64 · 0.99
    assert [each.volume for each in extract_pockets(values, grid_of(), 0.4)] == pytest.approx([64 * 8, 125 * 8])


def test_pockets_at_the_faces_are_kept_and_small_ones_left_out():
    values = np.zeros((9, 9, 9))
    values[0, 0:3, 0:3] = values[8, 8, 5:9] = 0.9
    pockets = extract_pockets(values, grid_of(), min_volume=50)
    assert [pocket.mask.sum() for pocket in pockets] == [9]
    assert len(extract_pockets(values, grid_of(), min_volume=32)) == 2
    assert not extract_pockets(np.zeros((3, 3, 3)), grid_of())


def test_a_gap_of_one_voxel_is_closed():
    values = 0.9 * (block((2, 2, 2), 4) | block((2, 2, 7), 4))
    assert len(extract_pockets(values, grid_of())) == 1
    values = 0.9 * (block((2, 2, 2), 4) | block((2, 2, 9), 4))
    assert len(extract_pockets(values, grid_of())) == 2


@pytest.mark.parametrize("number", range(0, 24, 5))
def test_pockets_rotate_with_the_volume(number):
    values = np.pad(field(9, (13, 13, 13)), 1)
    center = np.array([4.0, 5.0, 6.0])
    grid, _ = cube(center, 15, 2.0)
    before = extract_pockets(values, grid)
    after = extract_pockets(rotate_volume(values, number), grid)
    assert len(before) == len(after) > 0
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(other.center, ROTATIONS[number] @ (one.center - center) + center)
        assert one.volume == other.volume
        np.testing.assert_allclose(dcc(one.center, center[None] + 1), dcc(
            other.center, rotate_points(center[None] + 1, number, center)))  # fmt: skip


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: extract_pockets(np.zeros((1, 4, 4, 4)), grid_of()), r"must have 3 axes \(got \(1, 4, 4, 4\)\)"),
        (lambda: extract_pockets(np.full((4, 4, 4), np.nan), grid_of()), r"in \[0, 1\]"),
        (lambda: extract_pockets(np.full((4, 4, 4), 1.5), grid_of()), r"in \[0, 1\] \(got 1.5 to 1.5\)"),
        (lambda: extract_pockets(np.zeros((4, 4, 4)), grid_of(), threshold=1.0), "threshold"),
        (lambda: extract_pockets(np.zeros((4, 4, 4)), grid_of(), min_volume=float("nan")), "min_volume"),
        (lambda: extract_pockets(np.zeros((4, 4, 4)), grid_of((0.0, 1, 1))), "voxels need a volume"),
        (lambda: dvo(np.zeros((2, 2, 2)), np.zeros((2, 2, 3))), "shape"),
        (lambda: pocket_scores([], [], [], grid_of()), "0 targets"),
        (lambda: mean_scores([]), "no cases"),
        (lambda: mean_scores([{"dvo": 1.0}], ["a", "b"]), "give one for each case"),
        (lambda: write_pockets("pockets.txt", []), r"\.csv or \.json \(got \.txt\)"),
        (lambda: write_ccp4("a.ccp4", np.zeros((2, 2)), grid_of()), "must have 3 axes"),
        (lambda: write_ccp4("a.ccp4", np.zeros((2, 2, 2)), grid_of((1.0, -1, 1))), "must lie along x, y, z"),
    ],
)
def test_mistakes_are_errors_of_one_line(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


# ── files ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_a_pocket_list_is_read_back(tmp_path, suffix):
    pockets = extract_pockets(field(3), grid_of(origin=(-3.0, 0, 8)), 0.6, 8)
    path = tmp_path / "out" / f"pockets{suffix}"
    write_pockets(path, pockets)
    with path.open(newline="") as file:
        rows = json.load(file) if suffix == ".json" else list(csv.DictReader(file))
    assert len(rows) == len(pockets) > 1
    for rank, (row, pocket) in enumerate(zip(rows, pockets, strict=True), 1):
        assert tuple(row) == COLUMNS
        assert int(row["rank"]) == rank
        np.testing.assert_allclose([float(row[axis]) for axis in "xyz"], pocket.center, atol=6e-4)
        for name in COLUMNS[4:]:
            assert float(row[name]) == pytest.approx(getattr(pocket, name), abs=6e-5)
    write_pockets(path, [])
    assert path.read_text().startswith("[]" if suffix == ".json" else ",".join(COLUMNS))


@pytest.mark.parametrize("origin", [(-8.0, 6.0, 30.0), (-8.3, 6.1, 29.7)])
def test_a_map_lies_where_its_grid_does(tmp_path, origin):
    """Values at the world coordinates of voxels, by gemmi's interpolation and by the words of the header (MRC2014)."""
    values = np.random.default_rng(0).random((5, 6, 8), np.float32)
    grid = grid_of((2.0, 1.5, 1.0), origin)
    path = tmp_path / "p.ccp4"
    write_ccp4(path, torch.from_numpy(values), grid)

    data = path.read_bytes()
    words = struct.unpack("<10i", data[:40])
    assert words[:4] == (8, 6, 5, 2)  # columns x, rows y, sections z; mode 2, float
    assert struct.unpack("<3i", data[64:76]) == (1, 2, 3)
    assert data[208:212] == b"MAP "
    cell, shift = np.array(struct.unpack("<3f", data[40:52])), np.array(struct.unpack("<3f", data[196:208]))
    step = cell / words[7:10]
    np.testing.assert_allclose(step, [2, 1.5, 1])
    np.testing.assert_allclose(np.array(words[4:7]) * step + shift, origin, rtol=1e-6)
    assert (not shift.any()) == (origin[0] == -8.0)
    (symmetry,) = struct.unpack("<i", data[92:96])
    np.testing.assert_array_equal(np.frombuffer(data[1024 + symmetry :], "<f4").reshape(5, 6, 8), values)

    read = gemmi.read_ccp4_map(str(path))
    read.setup(math.nan)
    for z, y, x in np.ndindex(values.shape):
        where = grid.affine @ [x, y, z, 1] - [*shift, 0]
        assert read.grid.interpolate_value(gemmi.Position(*where[:3])) == pytest.approx(values[z, y, x], abs=1e-5)


# ── scores ────────────────────────────────────────────────────────────────────────────────────────


def test_volumes_overlap_in_place():
    """Blocks of 4³ shifted by 2 along one axis share half of each: IoU 1/3; moved far away they share nothing."""
    target = block((4, 4, 4), 4)
    assert dvo(block((4, 4, 6), 4), target) == pytest.approx(32 / 96)
    assert pli(block((4, 4, 6), 4), target) == pytest.approx(0.5)
    assert dvo(block((14, 14, 14), 4), target) == pli(block((14, 14, 14), 4), target) == 0
    assert dvo(target, target) == pli(np.ones_like(target), target) == 1
    assert np.isnan(dvo(target & False, target & False)) and np.isnan(pli(target, target & False))
    assert dvo(target & False, target) == 0


def test_dcc_is_the_distance_to_the_centroid():
    ligand = np.array([[0, 0, 0], [2, 0, 0], [1, 3, 0.0]])
    assert dcc(np.array([1, 1, 5.0]), ligand) == pytest.approx(5)


def pocket_at(*center: float, mask=None) -> Pocket:
    return Pocket(np.array(center), 1.0, 1.0, 1.0, 1.0, block((0, 0, 0), 1) if mask is None else mask)


def test_top_n_counts_the_first_pockets_only():
    ligands = [np.zeros((1, 3)), np.full((1, 3), 50.0)]
    far, near, on_limit = pocket_at(200, 0, 0), pocket_at(1, 0, 0), pocket_at(50, 50, 54)
    assert found([near, far, on_limit], ligands) == [True, False]
    assert found([near, far, on_limit], ligands, extra=2) == [True, True]
    assert found([far, far, far, far, near], ligands, extra=2) == [False, False]
    assert found([pocket_at(50, 50, 54.01)], ligands) == [False, False]
    assert found([], ligands, extra=2) == [False, False]


def test_scores_of_a_case_and_of_a_missed_one():
    ligand = np.array([[10.0, 10, 10], [12, 12, 12]])
    grid, shape = box(ligand, 1.0, 8.0)
    target = ligand_target(ligand, grid, shape)
    perfect = extract_pockets(target.float(), grid)
    scores = pocket_scores(perfect, [ligand], [target], grid)
    assert scores == {
        "dcc": pytest.approx(0, abs=1e-6), "top_n": 1, "top_n_plus_2": 1, "dvo": 1, "pli": 1, "missed": 0, "pockets": 1,
    }  # fmt: skip
    assert mask_center(target, grid) == pytest.approx([11, 11, 11])
    missed = pocket_scores([], [ligand], [target], grid)
    assert missed["dcc"] == pytest.approx(3**0.5 * 19)  # the diagonal
    assert (missed["dvo"], missed["pli"], missed["top_n_plus_2"], missed["missed"]) == (0, 0, 0, 1)
    third = [pocket_at(90, 0, 0, mask=target.numpy() > 1), pocket_at(91, 0, 0), *perfect]
    scores = pocket_scores(third, [ligand], [target], grid)
    assert (scores["top_n"], scores["top_n_plus_2"], scores["dvo"]) == (0, 1, 0)


def test_means_have_errors_of_independent_clusters():
    values = np.random.default_rng(1).random(30)
    cases = [{"dvo": value} for value in values]
    assert mean_scores(cases)["dvo"] == pytest.approx((values.mean(), values.std(ddof=1) / 30**0.5))
    # Each case three times in its cluster is no new information.
    tripled = mean_scores([case for case in cases for _ in range(3)], [i for i in range(30) for _ in range(3)])
    assert tripled["dvo"] == pytest.approx(mean_scores(cases)["dvo"])
    assert np.isnan(mean_scores(cases, ["a"] * 30)["dvo"][1])
