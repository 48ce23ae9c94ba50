import zlib

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import cKDTree

from diffunet.core.errors import UserError
from diffunet.core.rng import seed_for
from diffunet.data.phantoms import shapes as shapes_module
from diffunet.data.phantoms.lattice import draw_lattice
from diffunet.data.phantoms.random_fields import disk_distance, distance_to_border, smooth_noise, voronoi, warped_grid
from diffunet.data.phantoms.registry import PHANTOMS

IMAGES = [name for name, one in PHANTOMS.items() if len(one.size) == 2]
CROSS = ndimage.generate_binary_structure(2, 1)


def generator(name: str, index: int, seed: int = 0) -> np.random.Generator:
    """Return the generator of a built-in case."""
    return np.random.default_rng(seed_for(zlib.crc32(name.encode()), seed, index))


def dice(a, b) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("name", IMAGES)
def test_a_case_is_a_function_of_seed_and_index(name):
    cases = {}
    for seed, index in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        np.random.seed(seed + 7)  # the global state must not matter
        cases[seed, index] = PHANTOMS[name].generate(index, (64, 96), seed)
    for (seed, index), case in reversed(cases.items()):
        again = PHANTOMS[name].generate(index, (64, 96), seed)
        assert np.array_equal(case.image, again.image)
        assert case.target.tobytes() == again.target.tobytes()  # NaN is unknown
    assert len({case.image.tobytes() for case in cases.values()}) == 4
    assert len({case.target.tobytes() for case in cases.values()}) == 4


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("size", [(64, 64), (65, 130), None])
def test_shapes_and_types(name, size):
    phantoms = PHANTOMS[name]
    image, target, names = phantoms.generate(2, size)
    size = size or (256, 256)
    assert image.shape[1:] == size
    signed = name == "undersampled" or name.startswith("water-fat")
    assert image.dtype == (np.float32 if signed else np.uint16 if name == "bands" else np.uint8)
    assert image.std() > (0.02 if signed else 0.02 * np.iinfo(image.dtype).max) or name == "bands"
    assert names == phantoms.names
    if phantoms.kind == "classes":
        assert target.dtype == np.uint8
        assert target.shape == size
        assert set(np.unique(target)) == set(range(len(names)))
    elif phantoms.kind == "instances":
        assert target.dtype == np.uint16
        assert set(np.unique(target)) == set(range(target.max() + 1))
    else:
        assert target.dtype == np.float32
        assert target.shape == (len(names), *size)
        known = np.isfinite(target)
        assert 0.2 < known.mean() < 1 if name.startswith("water-fat") else known.all()
        assert target[known].min() >= 0 or name in ("water-fat-maps", "undersampled")


def test_small_sizes_are_refused():
    with pytest.raises(UserError, match="at least 64x64 pixels"):
        PHANTOMS["shapes"].generate(0, (64, 63))
    with pytest.raises(UserError, match="at least 16x16x16 voxels"):
        PHANTOMS["liver"].generate(0, (16, 16, 15))
    with pytest.raises(UserError, match="at least 64x64 pixels \\(got 64x64x64\\)"):
        PHANTOMS["shapes"].generate(0, (64, 64, 64))


def test_smooth_noise_is_standard_normal_at_each_pixel_and_correlated_over_its_scale():
    rng = np.random.default_rng(0)
    fields = np.stack([smooth_noise(rng, (24, 30), 6) for _ in range(3000)])
    assert np.allclose(fields.mean(0), 0, atol=5 / 3000**0.5)
    assert np.allclose(fields.std(0), 1, atol=5 / 6000**0.5)
    near, far = ((fields[:, 12, 5] * fields[:, 12, 5 + lag]).mean() for lag in (2, 24))
    assert near > 0.8
    assert abs(far) < 0.1


def test_voronoi_finds_the_nearest_site():
    """With equal round sites these are the nearest ones of a k-d tree, across tiles, warped or not."""
    size = (100, 150)
    grid = warped_grid(np.random.default_rng(1), size, 4, 20)
    regions = voronoi(np.random.default_rng(2), grid, 13)
    rng = np.random.default_rng(2)
    (top, bottom), (left, right) = ((axis.min() - 13, axis.max() + 13) for axis in grid)
    number = round((bottom - top) * (right - left) / 13**2)
    y, x = rng.uniform(top, bottom, number), rng.uniform(left, right, number)
    _, nearest = cKDTree(np.stack([y, x], 1)).query(np.stack([axis.ravel() for axis in grid], 1))
    assert (regions.ravel() != nearest).mean() < 1e-3


def test_voronoi_of_ellipses_does_not_depend_on_the_tiles(monkeypatch):
    grid = warped_grid(np.random.default_rng(1), (130, 100), 4, 20)
    tiled = voronoi(np.random.default_rng(3), grid, 20, size_spread=0.5, elongation=0.5)
    monkeypatch.setattr("diffunet.data.phantoms.random_fields.TILE", 200)
    whole = voronoi(np.random.default_rng(3), grid, 20, size_spread=0.5, elongation=0.5)
    assert (tiled != whole).mean() < 1e-3


def test_distance_to_border_of_two_halves():
    regions = np.repeat([[0, 0, 0, 1, 1, 1]], 3, axis=0)
    assert distance_to_border(regions)[1].tolist() == [2, 1, 0, 1, 2, 3]
    assert distance_to_border(regions.T)[:, 1].tolist() == [2, 1, 0, 1, 2, 3]


@pytest.mark.parametrize("center", [(5, 8), (5.3, 7.8), (-2.6, 3), (-9.5, 5), (21.2, 30.9), (40, 50)])
def test_the_window_of_a_disk_has_all_its_pixels(center):
    size = (20, 30)
    y, x = np.mgrid[:20, :30]
    expected = np.hypot(y - center[0], x - center[1]) <= 4
    drawn = np.zeros(size, bool)
    window, apart = disk_distance(center, 4, size)
    drawn[window] = apart <= 1
    assert np.array_equal(drawn, expected)


def test_membranes_have_their_share_and_no_threshold_separates_them():
    """The real slices of ISBI 2012: 19 to 27 % and errors of 0.14 to 0.18 by the best threshold after smoothing."""
    for index in range(6):
        image, target, _ = PHANTOMS["membranes"].generate(index)
        assert 0.18 < (target == 0).mean() < 0.25
        for sigma in (0.7, 1.0, 1.5, 2.5):
            smooth = ndimage.gaussian_filter(image[0].astype(float), sigma)
            errors = [((smooth < level) == target).mean() for level in range(40, 180, 4)]
            assert min(errors) > 0.1
        gray = image[0].astype(float)
        assert gray[target == 0].mean() < gray[target == 1].mean() - 35  # membranes are dark nevertheless


def test_cells_between_membranes_are_separate_and_not_tiny():
    """Hardly any two cells meet at a corner: components with four and with eight neighbors are about as many."""
    for index in range(6):
        _, target, _ = PHANTOMS["membranes"].generate(index)
        cells, number = ndimage.label(target, CROSS)
        assert 25 < number < 100
        assert ndimage.label(target, np.ones((3, 3)))[1] >= 0.97 * number
        assert np.bincount(cells.ravel())[1:].min() >= 24


def test_instances_are_connected_and_most_touch_others():
    touching, number = 0, 0
    for index in range(6):
        image, target, _ = PHANTOMS["cells"].generate(index)
        for instance, window in enumerate(ndimage.find_objects(target), start=1):
            assert ndimage.label(target[window] == instance, CROSS)[1] == 1
            assert (target[window] == instance).sum() >= 20
            around = ndimage.binary_dilation(target == instance, CROSS) & (target > 0) & (target != instance)
            touching += around.any()
        number += target.max()
        inside = image[0][target > 0].mean()
        assert inside > 2 * image[0][target == 0].mean()
        brightness = ndimage.mean(image[0], target, np.arange(1, target.max() + 1))
        assert np.quantile(brightness, 0.9) > 2 * np.quantile(brightness, 0.1)
    assert touching > 0.6 * number


def test_no_sliver_at_the_edge_of_the_image_is_an_instance():
    for index in range(30):
        _, target, _ = PHANTOMS["cells"].generate(index, (64, 64))
        assert np.bincount(target.ravel()).min() >= 20


def test_filled_shapes_are_solved_by_a_threshold():
    for index in range(6):
        image, target, _ = PHANTOMS["shapes"].generate(index)
        level = 255 * (shapes_module.BACKGROUND + shapes_module.INK / 2)
        assert dice(ndimage.gaussian_filter(image[0].astype(float), 1) > level, target > 0) > 0.99


def test_the_inside_of_contours_looks_like_the_outside():
    """Away from the contour, means and standard deviations agree within three standard errors over many cases."""
    inside, outside = [], []
    for index in range(30):
        image, target, _ = PHANTOMS["contours"].generate(index)
        inside.append(image[0][ndimage.binary_erosion(target, iterations=6)].astype(float))
        outside.append(image[0][ndimage.binary_erosion(target == 0, iterations=3)].astype(float))
    inside, outside = np.concatenate(inside), np.concatenate(outside)
    error = outside.std() * (1 / len(inside) + 1 / len(outside)) ** 0.5
    assert abs(inside.mean() - outside.mean()) < 3 * error
    assert abs(inside.std() - outside.std()) < 3 * error / 2**0.5
    assert abs(inside.mean() / 255 - shapes_module.BACKGROUND) < 0.001


def test_contours_are_closed_and_enclose_the_target():
    """Flooding from the border stops at the contour: the whole image determines the target."""
    for index in range(6):
        image, target, _ = PHANTOMS["contours"].generate(index)
        smooth = ndimage.gaussian_filter(image[0].astype(float), 0.8)
        line = smooth > 255 * (shapes_module.BACKGROUND + 0.45 * shapes_module.INK)
        solved = ndimage.binary_fill_holes(ndimage.binary_closing(np.pad(line, 3), iterations=2))[3:-3, 3:-3]
        solved = ndimage.binary_opening(solved, iterations=4)
        assert dice(solved, target > 0) > 0.97


@pytest.mark.parametrize("name", ["shapes", "contours"])
def test_shapes_are_large_and_within_the_image(name):
    longer = []
    for index in range(20):
        _, target, _ = PHANTOMS[name].generate(index)
        parts, number = ndimage.label(target)
        assert number in (1, 2)
        longer += [max(s.stop - s.start for s in window) for window in ndimage.find_objects(parts)]
        edge = np.concatenate([target[0], target[-1], target[:, 0], target[:, -1]])
        assert not edge.any()
    assert min(longer) >= 0.34 * 256
    assert max(longer) <= 0.61 * 256
    assert 100 < np.mean(longer) < 140


def test_grain_boundaries_are_thin_closed_and_partly_faint():
    for index in range(3):
        image, target, _ = PHANTOMS["grains"].generate(index)
        assert ndimage.label(target, CROSS)[1] > 40
        assert 0.1 < (target == 0).mean() < 0.3
        gray = ndimage.gaussian_filter(image[0].astype(float), 1)
        contrast = (ndimage.uniform_filter(gray, 11) - gray)[target == 0]
        assert np.quantile(contrast, 0.1) < 2 < 8 < np.quantile(contrast, 0.8)


def test_vacancies_are_the_missing_sites_of_the_lattice():
    size = (256, 256)
    for index in range(6):
        image, target, _ = PHANTOMS["defects"].generate(index)
        sites, spacing, vacant = draw_lattice(generator("defects", index), size)
        disks, number = ndimage.label(target)
        assert number == vacant.sum() > 0
        assert target.mean() < 0.02
        centers = np.array(ndimage.center_of_mass(target, disks, np.arange(1, number + 1)))
        apart, _ = cKDTree(sites[vacant]).query(centers)
        assert apart.max() < 0.5
        areas = np.bincount(disks.ravel())[1:]
        assert np.allclose(areas, np.pi * (spacing / 3) ** 2, rtol=0.25)
        # The image is dark at vacant sites and bright at the others.
        smooth = ndimage.gaussian_filter(image[0].astype(float), 1.5)
        inside = ((sites > spacing) & (sites < 255 - spacing)).all(1)
        values = ndimage.map_coordinates(smooth, sites.T, order=1)
        assert values[vacant].mean() < values[inside & ~vacant].mean() - 40


def test_a_lattice_is_hexagonal():
    sites, spacing, _ = draw_lattice(np.random.default_rng(4), (200, 150))
    inner = sites[((sites > 2 * spacing) & (sites < np.array([200, 150]) - 2 * spacing)).all(1)]
    apart, _ = cKDTree(sites).query(inner, k=8)
    assert abs(apart[:, 1:7].mean() / spacing - 1) < 0.05
    assert abs(apart[:, 7].mean() / spacing - 3**0.5) < 0.15
    area = (200 * 150) / ((sites > 0) & (sites < [200, 150])).all(1).sum()
    assert abs(area / (spacing**2 * 3**0.5 / 2) - 1) < 0.08


def test_a_stain_is_inside_of_cells_and_seen_in_the_image():
    for index in range(3):
        image, target, _ = PHANTOMS["stain"].generate(index)
        stained = target[0] > 0.15
        assert 0.03 < stained.mean() < 0.5
        gray = image[0].astype(float)
        correlation = np.corrcoef(gray.ravel(), target.ravel())[0, 1]
        assert -0.9 < correlation < -0.3  # dense nuclei are dark, and a linear map is not enough
        within = ndimage.binary_erosion(stained, iterations=2)
        fine = [a - ndimage.gaussian_filter(a, 4) for a in (ndimage.gaussian_filter(gray, 1), target[0])]
        assert np.corrcoef(fine[0][within], fine[1][within])[0, 1] < -0.4  # chromatin, not only the outline


def test_bands_are_reflectances_with_correlated_bands_and_sharp_edges():
    for index in range(3):
        image, target, names = PHANTOMS["bands"].generate(index)
        assert len(names) == 4
        assert image.shape == (5, 256, 256)
        assert target.min() >= 0.001
        assert target.max() <= 1
        correlation = np.corrcoef(target.reshape(4, -1))
        assert correlation[:3, :3].min() > 0.7
        assert correlation[3, :3].max() < 0.7  # near infrared is not a copy of the visible bands
        step = np.abs(np.diff(target[2], axis=1))
        assert np.quantile(step, 0.999) > 10 * np.median(step)
