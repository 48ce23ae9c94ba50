"""Built-in volumes: what is in them, and what does not separate it."""

from functools import lru_cache

import numpy as np
import pytest
from scipy import ndimage
from skimage.filters import threshold_multiotsu

from diffunet.data.phantoms.random_solids import ball_distance, ellipsoid, places, rotation, smooth_field, tubes_depth
from diffunet.data.phantoms.registry import PHANTOMS, Phantom
from diffunet.data.phantoms.solids import BRAIN_CHANNELS

SOLIDS = [name for name, one in PHANTOMS.items() if len(one.size) == 3 and name != "globules"]


@lru_cache
def case(name: str, index: int) -> Phantom:
    """Return a built-in case of the set's own size."""
    return PHANTOMS[name].generate(index)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / max(a.sum() + b.sum(), 1)


def best_window(image: np.ndarray, target: np.ndarray, sigmas: tuple[float, ...] = (0, 1.2)) -> float:
    """Return the largest Dice of any range of gray levels, after the best smoothing."""
    best = 0.0
    for sigma in sigmas:
        smooth = ndimage.gaussian_filter(image.astype(np.float32), sigma) if sigma else image
        edges = np.unique(np.quantile(smooth.ravel()[::5], np.linspace(0, 1, 101)))
        inside, _ = np.histogram(smooth[target], edges)
        every, _ = np.histogram(smooth, edges)
        inside, every = (np.concatenate([[0], counts.cumsum()]) for counts in (inside, every))
        hit, taken = inside[None] - inside[:, None], every[None] - every[:, None]
        best = max(best, float((2 * hit / np.maximum(taken + target.sum(), 1)).max()))
    return best


@pytest.mark.parametrize("name", SOLIDS)
def test_a_case_is_a_function_of_seed_and_index(name):
    cases = {}
    for seed, index in [(0, 0), (0, 1), (1, 0)]:
        np.random.seed(seed + 7)  # the global state must not matter
        cases[seed, index] = PHANTOMS[name].generate(index, (24, 32, 20), seed)
    for (seed, index), case in reversed(cases.items()):
        again = PHANTOMS[name].generate(index, (24, 32, 20), seed)
        assert np.array_equal(case.image, again.image)
        assert np.array_equal(case.target, again.target)
    assert len({case.image.tobytes() for case in cases.values()}) == 3
    assert len({case.target.tobytes() for case in cases.values()}) == 3


@pytest.mark.parametrize("name", SOLIDS)
@pytest.mark.parametrize("size", [(16, 16, 16), (16, 30, 41), (48, 20, 33), None])
def test_shapes_types_and_classes(name, size):
    phantoms = PHANTOMS[name]
    for index in range(6 if size == (16, 16, 16) else 2):
        image, target, names = phantoms.generate(index, size)
        assert image.shape == (4 if name == "lesions" else 1, *(size or (64, 64, 64)))
        assert image.dtype == (np.int16 if name == "liver" else np.uint8)
        assert target.dtype == np.uint8
        assert target.shape == image.shape[1:]
        assert np.unique(target).tolist() == list(range(len(names)))
        assert all(channel.std() > 5 for channel in image)


def test_no_window_separates_tubules():
    for index in range(3):
        image, target, _ = case("tubules", index)
        shares = np.bincount(target.ravel()) / target.size
        assert 0.3 < shares[0] < 0.9
        assert shares[1:].min() > 0.04
        for part, most in ((1, 0.75), (2, 0.5)):
            assert best_window(image[0], target == part) < most
        smooth = ndimage.gaussian_filter(image[0].astype(float), 1)
        assert smooth[target == 1].mean() > smooth[target != 1].mean() + 15  # walls are bright nevertheless


def test_walls_enclose_the_inside():
    """From the inside, no path of face neighbors leads to the background without crossing a wall."""
    for index in range(4):
        _, target, _ = PHANTOMS["tubules"].generate(index, (40, 40, 40))
        grown = ndimage.binary_dilation(target == 2)
        assert not (grown & (target == 0)).any()
        wall = ndimage.distance_transform_edt(target != 0)[target == 2]
        assert wall.min() > 1.5


def test_tubules_are_long_and_branch():
    """Trees cross the volume: the parts are few, and the largest reaches two of its faces."""
    for index in range(3):
        _, target, _ = case("tubules", index)
        parts, number = ndimage.label(target > 0)
        assert 1 <= number <= 25
        largest = parts == np.bincount(parts.ravel())[1:].argmax() + 1
        faces = [largest.take(edge, axis).any() for axis in range(3) for edge in (0, -1)]
        assert sum(faces) >= 2


def test_tumors_are_nested_in_the_brain():
    """Core touches no background apart from cuts by the brain's surface; the enhancing part lies inside of the core."""
    for index in range(4):
        image, target, names = case("lesions", index)
        core, edema, enhancing = (names.index(name) for name in ("core", "edema", "enhancing"))
        brain = image.max(0) > 0
        inner = ndimage.binary_erosion(brain, iterations=4)
        around = ndimage.binary_dilation(target == enhancing) & (target != enhancing) & inner
        assert (target[around] == core).mean() > 0.97
        around = ndimage.binary_dilation(np.isin(target, [core, enhancing])) & np.isin(target, [0, edema]) & inner
        assert (target[around] == edema).mean() > 0.97
        volumes = [np.isin(target, region).sum() for region in ([1, 2, 3], [1, 3], [3])]
        assert volumes[0] > 1.5 * volumes[1] > 2 * volumes[2] > 0
        assert 0.005 < volumes[0] / target.size < 0.2
        assert not target[~brain].any()


def test_no_channel_shows_the_parts_of_tumors_alone():
    regions = {"flair": ([1, 2, 3], 0.9), "t1ce": ([3], 0.75), "t1": ([1, 3], 0.75)}
    for name, (region, most) in regions.items():
        found = []
        for index in range(3):
            image, target, _ = case("lesions", index)
            found.append(best_window(image[BRAIN_CHANNELS.index(name)], np.isin(target, region)))
        assert np.mean(found) < most, name
        assert np.mean(found) > 0.2, name  # each has some information


def test_a_liver_needs_a_window_and_more():
    for index in range(4):
        image, target, _ = case("liver", index)
        inside = target > 0
        assert -1000 <= image.min() < -900
        assert 400 < image.max() <= 1500
        assert 0.05 < inside.mean() < 0.3
        assert 80 < np.median(image[0][inside]) < 130
        soft = ndimage.binary_dilation(inside, iterations=6) & ~inside & (np.abs(image[0]) < 250)
        contrast = np.median(image[0][inside]) - np.median(image[0][soft])
        assert 5 < contrast < 0.06 * np.ptp(image)
        assert best_window(image[0], inside) < 0.88
        # A split of the whole range into three finds air, and no liver.
        low, high = threshold_multiotsu(image[0], 3)
        parts = [image[0] < low, (image[0] >= low) & (image[0] < high), image[0] >= high]
        assert max(dice(part, inside) for part in parts) < 0.5
        assert np.bincount(ndimage.label(inside)[0].ravel())[1:].max() > 0.95 * inside.sum()
        assert (np.argwhere(inside)[:, 2] + 0.5).mean() > 34  # on the patient's right


def test_smooth_fields_are_standard_normal_and_correlated_over_their_scale():
    rng = np.random.default_rng(0)
    fields = np.stack([smooth_field(rng, (9, 12, 30), 6) for _ in range(2000)])
    assert fields.dtype == np.float32
    assert np.allclose(fields.mean(0), 0, atol=5.5 / 2000**0.5)
    assert np.allclose(fields.std(0), 1, atol=5.5 / 4000**0.5)
    near, far = ((fields[:, 4, 5, 3] * fields[:, 4, 5, 3 + lag]).mean() for lag in (2, 25))
    across = (fields[:, 0, 5, 3] * fields[:, 8, 5, 3]).mean()
    assert near > 0.8
    assert abs(far) < 0.1
    assert across < 0.5


def test_balls_tubes_and_ellipsoids():
    size = (12, 15, 18)
    grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1)
    for center in ([5, 7, 9.5], [-1, 3, 20], [40, 40, 40]):
        drawn = np.zeros(size, bool)
        window, apart = ball_distance(np.array(center), 4, size)
        drawn[window] = apart <= 4
        assert np.array_equal(drawn, np.linalg.norm(grid - center, axis=-1) <= 4)
    matrix = rotation(np.random.default_rng(0))
    assert np.allclose(matrix @ matrix.T, np.eye(3))
    distance = ellipsoid(np.random.default_rng(1), np.array([20, 20, 20]), np.array([5, 8, 12]), (41, 41, 41))
    assert np.isclose((distance < 1).sum(), 4 / 3 * np.pi * 5 * 8 * 12, rtol=0.03)
    depth = tubes_depth(np.random.default_rng(2), (30, 30, 30), 1, (4, 4))
    assert 3 < depth.max() <= 4
    assert depth.min() == -2
    assert np.allclose(
        [axis.ravel()[[0, -1]] for axis in places((4, 5, 8))], [[-0.75, 0.75], [-0.8, 0.8], [-7 / 8, 7 / 8]]
    )
