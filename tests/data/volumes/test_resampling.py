"""Volumes on other grids: closed forms, scipy and nibabel as second opinions."""

import nibabel
import numpy as np
import pytest
import torch
from nibabel.processing import resample_from_to
from scipy import ndimage

from diffunet.data.volumes.grids import Grid, affine_of, grid_distance
from diffunet.data.volumes.resampling import resample, resample_back, resized_grid

SPACINGS = [(1, 1, 1), (2.5, 1, 1), (0.7, 1.3, 0.4), (3, 2, 1.6)]


def grid_of(*spacing: float, turn: float = 0.3) -> Grid:
    """Return an oblique grid."""
    affine = affine_of(spacing)
    cosine, sine = np.cos(turn), np.sin(turn)
    return Grid(np.array([[cosine, -sine, 0, 5], [sine, cosine, 0, -9], [0, 0, 1, 40], [0, 0, 0, 1]]) @ affine)


def places(grid: Grid, shape: tuple[int, ...]) -> np.ndarray:
    """Return the millimeters (3, D, H, W) of all voxels."""
    z, y, x = np.meshgrid(*map(np.arange, shape), indexing="ij")
    index = np.stack([x, y, z, np.ones_like(x)], -1)
    return np.moveaxis(index @ grid.affine.T, -1, 0)[:3]


def blob(grid: Grid, shape: tuple[int, ...], center: np.ndarray, radius: float) -> np.ndarray:
    """Return a Gaussian around a place in millimeters, (1, D, H, W)."""
    apart = places(grid, shape) - center[:, None, None, None]
    return np.exp(-(apart**2).sum(0, keepdims=True) / (2 * radius**2)).astype(np.float32)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("shape", [(9, 12, 14), (1, 12, 14)])
def test_constants_stay_and_the_box_keeps_its_corners(spacing, shape):
    grid = grid_of(2, 1, 1.5)
    found, new = resample(torch.full((2, *shape), 7.0), grid, spacing, nearest=False)
    assert torch.allclose(found, torch.tensor(7.0), rtol=1e-6)
    expected = [max(1, round(n * s / t)) for n, s, t in zip(shape, grid.spacing, spacing, strict=True)]
    assert list(found.shape[1:]) == expected
    faces = [
        g.affine[:3, :3] @ (corner * np.array(n[::-1]) - 0.5) + g.affine[:3, 3]
        for corner in ([0, 0, 0], [1, 1, 1], [0, 1, 0])
        for g, n in ((grid, shape), (new, found.shape[1:]))
    ]
    assert np.allclose(faces[::2], faces[1::2])
    # Spacing times number is the length of the box; only rounding keeps the spacing from what was requested.
    for side, before, length, step in zip(found.shape[1:], shape, grid.spacing, new.spacing, strict=True):
        assert np.isclose(side * step, before * length)
    assert all(0.5 < found / wanted < 2 for found, wanted in zip(new.spacing[1:], spacing[1:], strict=True))


@pytest.mark.parametrize("spacing", SPACINGS)
def test_ramps_stay_ramps(spacing):
    """The coordinates of the voxels themselves, away from the ends, where values beyond the center are constant."""
    grid, shape = grid_of(2, 1, 1.5), (30, 40, 36)
    found, new = resample(torch.from_numpy(places(grid, shape)), grid, spacing, nearest=False)
    factors = [a / b for a, b in zip(new.spacing, grid.spacing, strict=True)]
    inner = tuple(slice(rim, -rim) for rim in (int(np.ceil((1 + (2 * f if f > 1.5 else 0)) / f)) + 1 for f in factors))
    apart = found.numpy() - places(new, tuple(found.shape[1:]))
    assert np.abs(apart[(slice(None), *inner)]).max() < 2e-3


def shift(spacing: tuple[float, float, float], nearest: bool, aside: np.ndarray) -> np.ndarray:
    """Return by how much a ball moves, in voxels of the finer grid along x, y and z."""
    grid, shape = grid_of(2, 1, 1.5, turn=0), (24, 48, 32)
    values = blob(grid, shape, places(grid, shape)[:, 11, 25, 15] + aside, 5)
    if nearest:
        values = (values > 0.3).astype(np.uint8)
    found, new = resample(torch.from_numpy(values), grid, spacing, nearest)
    assert found.dtype == (torch.uint8 if nearest else torch.float32)
    before, after = (
        (places(g, v.shape[1:]) * v).sum((1, 2, 3)) / v.sum() for g, v in ((grid, values), (new, found.numpy()))
    )
    return (after - before) / np.minimum(grid.spacing, new.spacing)[::-1]


@pytest.mark.parametrize("spacing", [*SPACINGS, (4, 2, 3)])
def test_centroids_stay(spacing):
    assert (np.abs(shift(spacing, False, np.array([0.3, 0.4, -0.2]))) < 0.05).all()


@pytest.mark.parametrize("spacing", [*SPACINGS, (4, 2, 3)])
def test_labels_are_moved_no_way_on_average(spacing):
    """Each ball is rounded in its own way, by some tenths of a voxel."""
    rng = np.random.default_rng(0)
    shifts = np.array([shift(spacing, True, rng.uniform(-2, 2, 3)) for _ in range(20)])
    assert np.abs(shifts.mean(0)).max() < 0.12
    assert np.abs(shifts).max() < 0.4


@pytest.mark.parametrize("spacing", SPACINGS)
def test_labels_survive_there_and_back(spacing):
    grid, shape = grid_of(2, 1, 1.5), (24, 48, 32)
    middle = places(grid, shape)[:, 12, 24, 16]
    labels = (blob(grid, shape, middle, 6) > 0.3).astype(np.uint8)
    there, _ = resample(torch.from_numpy(labels), grid, spacing, nearest=True)
    one_hot = torch.cat([there == 0, there == 1])
    back = resample_back(one_hot, shape).argmax(0).numpy()
    assert set(np.unique(there)) == {0, 1}
    # Voxels of 3 mm on a ball of 9 mm radius leave out more than those of 1 mm.
    assert dice(back > 0, labels[0] > 0) > (0.9 if spacing == (3, 2, 1.6) else 0.95)


def test_linear_interpolation_is_that_of_scipy_and_nibabel():
    """Reductions below 1.5 are not smoothed: the same values as `map_coordinates` and `resample_from_to`."""
    rng = np.random.default_rng(0)
    grid, shape = grid_of(2, 1, 1.5), (7, 9, 8)
    values = rng.random(shape).astype(np.float32)
    found, new = resample(torch.from_numpy(values[None]), grid, (1.4, 1.3, 0.9), nearest=False)
    size = tuple(found.shape[1:])
    centers = [(np.arange(n) + 0.5) * m / n - 0.5 for n, m in zip(size, shape, strict=True)]
    truth = ndimage.map_coordinates(values, np.meshgrid(*centers, indexing="ij"), order=1, mode="nearest")
    assert np.allclose(found[0].numpy(), truth, atol=1e-5)
    moved = resample_from_to(
        nibabel.Nifti1Image(values.T, grid.affine), (size[::-1], new.affine), order=1, mode="nearest"
    )
    assert np.allclose(found[0].numpy(), np.asarray(moved.dataobj).T, atol=1e-4)


def test_nearest_is_that_of_scipy():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 1000, (7, 9, 8)).astype(np.int16)
    found, _ = resample(torch.from_numpy(values[None]), Grid(np.eye(4)), (0.6, 1.7, 1), nearest=True)
    centers = [(np.arange(n) + 0.5) * m / n - 0.5 for n, m in zip(found.shape[1:], values.shape, strict=True)]
    truth = ndimage.map_coordinates(values, np.meshgrid(*centers, indexing="ij"), order=0, mode="nearest")
    assert found.dtype == torch.int16
    assert np.array_equal(found[0].numpy(), truth)


@pytest.mark.parametrize("factor", [1.6, 2, 3, 5])
def test_what_is_reduced_is_smoothed_by_the_stated_gaussian(factor):
    """A fine stripe pattern fades as the transfer function of the Gaussian demands, instead of aliasing."""
    number, period = 600, 4.2
    place = np.arange(number, dtype=np.float32)
    wave = np.cos(2 * np.pi * place / period)[None, None, None]
    found, _ = resample(torch.from_numpy(wave), Grid(np.eye(4)), (1, 1, factor), nearest=False)
    variance = (factor**2 - 1) / (8 * np.log(2))
    blurred = ndimage.gaussian_filter1d(wave[0, 0, 0].astype(float), variance**0.5, mode="nearest", truncate=6)
    size = found.shape[-1]
    center = (np.arange(size) + 0.5) * number / size - 0.5
    truth = np.interp(center, place, blurred)
    assert np.abs(found[0, 0, 0].numpy() - truth).max() < 1e-3
    amplitude = np.exp(-variance * (2 * np.pi / period) ** 2 / 2)
    assert np.abs(found[0, 0, 0, 5:-5].numpy()).max() < amplitude + 1e-3


def test_an_odd_enlargement_is_undone_exactly():
    values = torch.rand(2, 5, 6, 7)
    there, _ = resample(values, Grid(np.eye(4)), (1 / 3, 1 / 5, 1), nearest=False)
    assert there.shape == (2, 15, 30, 7)
    assert torch.allclose(resample_back(there, (5, 6, 7)), values, atol=1e-6)


@pytest.mark.parametrize("shape", [(10, 12, 9), (6, 30, 20)])
def test_planes_are_parts_of_the_whole(shape):
    values = torch.rand(2, 6, 15, 20)
    whole = resample_back(values, shape)
    for planes in (slice(0, 3), slice(3, 4), slice(4, None)):
        assert torch.allclose(resample_back(values, shape, planes), whole[:, planes], atol=1e-6)


def test_a_grid_that_is_resized_and_back_is_the_same():
    grid = grid_of(2, 1, 1.5)
    there = resized_grid(grid, (9, 12, 14), (20, 5, 14))
    assert grid_distance(grid, (9, 12, 14), there, (20, 5, 14)) < 1e-9
    assert np.allclose(resized_grid(there, (20, 5, 14), (9, 12, 14)).affine, grid.affine)
