import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from diffunet.core.errors import UserError
from diffunet.core.rng import BatchRNG
from diffunet.core.settings import settings_from
from diffunet.data.warping import Warping, WarpingConfig

SQUARE, FLAT, CUBE = (16, 16), (12, 20), (6, 12, 12)
ALL = {"rotate": 70, "scale": 0.3, "elastic": 2.0, "gamma": 0.4, "contrast": 0.3, "brightness": 0.5, "noise": 0.2}


def warping(size=SQUARE, channels: int = 1, **config) -> Warping:
    return Warping(WarpingConfig(**{"mirror": "none", **config}), size, [0.0] * channels, [1.0] * channels)


def rng(seed: int = 0, positions: slice = slice(None), batch_size: int | None = None) -> BatchRNG:
    return BatchRNG(torch.Generator().manual_seed(seed), positions, batch_size)


def crop_of(warp: Warping) -> tuple[int, ...]:
    return tuple(side + 2 * margin for side, margin in zip(warp.size, warp.margin, strict=True))


def images(warp: Warping, number: int, channels: int = 1, crop=None) -> torch.Tensor:
    return torch.randn(number, channels, *(crop or crop_of(warp)))


def coordinates(warp: Warping, number: int, seed: int = 0) -> torch.Tensor:
    """Return where each pixel of the patches comes from, in pixels from the center of the crop, (B, dim, *size).

    A ramp along an axis has the place itself as its value, and linear interpolation keeps it. The crop is larger than
    the margin, for elastic displacements beyond three standard deviations.
    """
    sides = tuple(side + 8 for side in crop_of(warp))
    ramps = torch.meshgrid(*(torch.arange(s) - (s - 1) / 2 for s in sides), indexing="ij")
    image = torch.stack(ramps).expand(number, -1, *sides)
    return warp(image, torch.zeros(number, *sides).long(), None, rng(seed))[0]


def places(size) -> torch.Tensor:
    return torch.stack(torch.meshgrid(*(torch.arange(s) - (s - 1) / 2 for s in size), indexing="ij"))


def at_grid_points(field, warp: Warping):
    """Return the values of a field (B, dim, *size) at the points of the elastic grid, which are pixels here."""
    steps = [slice(None, None, (s - 1) // (g - 1)) for s, g in zip(warp.size, warp.grid_size, strict=True)]
    return field[(..., *steps)]


# ── exact cases ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("size", "crop"), [(SQUARE, (16, 16)), (FLAT, (18, 24)), (CUBE, (8, 12, 16))])
def test_without_distortion_the_patches_are_the_centers_of_the_crops(size, crop):
    warp = warping(size)
    image, target, weight = images(warp, 2, 1, crop), torch.randint(-1, 9, (2, *crop)), torch.rand(2, *crop)
    center = (..., *(slice((c - s) // 2, (c - s) // 2 + s) for c, s in zip(crop, size, strict=True)))
    found = warp(image, target, weight, rng())
    assert all(torch.equal(f, x[center]) for f, x in zip(found, (image, target, weight), strict=True))
    assert warp.margin == (0,) * len(size)
    assert warp(image, target, None, rng())[2] is None


def test_quarters_and_mirrors_permute_pixels():
    """All eight symmetries of the square appear equally often, the same one for image, target and weight."""
    warp = warping(mirror="all", rotate="quarters")
    one = torch.arange(256.0).reshape(1, 16, 16)
    image, target, weight = warp(
        one.expand(400, 1, 16, 16), one.long().expand(400, 16, 16), one.expand(400, -1, -1), rng()
    )
    assert torch.equal(image[:, 0].long(), target)
    assert torch.equal(image[:, 0], weight)
    symmetries = [turned for k in range(4) for turned in (one[0].rot90(k), one[0].rot90(k).flip(-1))]
    counts = [int((image[:, 0] == s).flatten(1).all(1).sum()) for s in symmetries]
    assert sum(counts) == 400
    assert min(counts) > 25


def test_quarters_turn_cubes_by_all_of_their_rotations():
    """Those of scipy's octahedral group, about equally often, and the same for image, target and weight."""
    group = Rotation.create_group("O").as_matrix().round().astype(int)
    cube = torch.randn(3, 3, 3)
    index = np.stack(np.meshgrid(*[np.arange(3) - 1] * 3, indexing="ij"), -1)
    expected = {cube.numpy()[tuple(np.moveaxis(index @ turn + 1, -1, 0))].tobytes() for turn in group}
    number = 2400
    batch = cube.expand(number, 3, 3, 3).contiguous()
    warp = warping((3, 3, 3), rotate="quarters")
    image, target, weight = warp(batch[:, None], batch[:, None], batch.abs() + 1, rng())
    found = [each.numpy().tobytes() for each in image[:, 0].contiguous()]
    assert set(found) == expected and len(expected) == 24
    assert min(found.count(turned) for turned in expected) > 60
    assert torch.equal(image, target) and torch.equal(weight, image[:, 0].abs() + 1)


def test_quarters_turn_volumes_in_the_x_y_plane():
    warp = warping(CUBE, rotate="quarters")
    image = images(warp, 1).expand(60, -1, -1, -1, -1)
    turned = warp(image, torch.zeros(60, *CUBE).long(), None, rng())[0]
    counts = [int((turned == image.rot90(k, (-2, -1))).flatten(1).all(1).sum()) for k in range(4)]
    assert sum(counts) == 60
    assert min(counts) > 3


@pytest.mark.parametrize(
    ("mirror", "axes"), [(["x"], [-1]), (["z", "y"], [-2, -3]), ("all", [-1, -2, -3]), ("none", [])]
)
def test_mirrors_are_along_the_named_axes(mirror, axes):
    warp = warping(CUBE, mirror=mirror)
    image = images(warp, 1).expand(100, -1, -1, -1, -1)
    mirrored = warp(image, torch.zeros(100, *CUBE).long(), None, rng())[0]
    flips = [()]
    for axis in axes:
        flips += [(*flip, axis) for flip in flips]
    counts = [int((mirrored == image.flip(flip)).flatten(1).all(1).sum()) for flip in flips]
    assert sum(counts) == 100
    assert min(counts) > 2


# ── places ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [FLAT, CUBE])
def test_rotation_and_scale_are_affine_maps_in_the_x_y_plane(size):
    """The map is fitted to the places: it has no residual, no shift, and the matrix R / factor."""
    warp = warping(size, rotate=30, scale=0.5)
    found, p = coordinates(warp, 300).double(), places(size).flatten(1).double()
    matrices = found.flatten(2) @ torch.linalg.pinv(p)
    torch.testing.assert_close(matrices @ p, found.flatten(2), atol=2e-4, rtol=0)
    factor = matrices[:, -1, -1].hypot(matrices[:, -1, -2]).reciprocal()
    angle = torch.atan2(matrices[:, -2, -1], matrices[:, -1, -1])
    expected = torch.diag_embed(torch.ones(300, len(size), dtype=torch.float64))
    expected[:, -2:, -2:] = torch.stack([angle.cos(), angle.sin(), -angle.sin(), angle.cos()], -1).view(-1, 2, 2)
    torch.testing.assert_close(matrices, expected / factor[:, None, None], atol=1e-4, rtol=0)
    assert angle.abs().max() < math.radians(30) + 1e-4
    assert angle.std() == pytest.approx(math.radians(30) / math.sqrt(3), rel=0.1)
    assert 1 / 1.5 - 1e-4 < factor.min() < 0.7
    assert 1.43 < factor.max() < 1.5 + 1e-4
    assert factor.log().std() == pytest.approx(math.log(1.5) / math.sqrt(3), rel=0.1)


def test_a_disk_is_scaled_in_area():
    warp = warping((64, 64), scale=0.5)
    disk = (places(crop_of(warp)).square().sum(0).sqrt() < 15).long().expand(20, -1, -1)
    image, target, _ = warp(disk[:, None].float(), disk, None, rng())
    row = coordinates(warp, 20)[:, 1, 32]
    factor = 63 / (row[:, -1] - row[:, 0])
    for area in (image[:, 0].sum((1, 2)), target.sum((1, 2))):
        torch.testing.assert_close(area.float(), disk[0].sum() * factor**2, atol=0, rtol=0.03)


@pytest.mark.parametrize(("size", "points"), [((41, 41), 3), ((41, 21), 5), ((9, 17, 17), 3)])
def test_displacements_at_grid_points_have_the_configured_spread(size, points):
    warp = warping(size, elastic=0.7, elastic_grid=points)
    assert warp.grid_size == tuple(1 + (s - 1) * (points - 1) // (max(size) - 1) for s in size)
    displacement = coordinates(warp, 500) - places(size)
    vectors = at_grid_points(displacement, warp)
    assert vectors.mean() == pytest.approx(0, abs=0.03)
    std = vectors.std(dim=0)
    assert torch.allclose(std, torch.full_like(std, 0.7), atol=0.1)  # ± 4 standard errors
    independent = torch.corrcoef(vectors.flatten(1).T) - torch.eye(vectors[0].numel())
    assert independent.abs().max() < 0.25


@pytest.mark.parametrize("size", [(21, 41), (9, 17, 17)])
def test_displacements_are_natural_splines_through_the_grid_points(size):
    warp = warping(size, elastic=1.0, elastic_grid=5)
    field = (coordinates(warp, 3) - places(size)).double().numpy()
    expected = at_grid_points(field, warp)
    for axis, side in enumerate(size, start=2):
        knots = np.linspace(0, side - 1, expected.shape[axis])
        expected = CubicSpline(knots, expected, axis=axis, bc_type="natural")(np.arange(side))
    np.testing.assert_allclose(field, expected, atol=1e-4)


@pytest.mark.parametrize("size", [FLAT, CUBE])
def test_values_are_those_of_scipy_at_the_same_places(size):
    """Also beyond a crop that is smaller than the margin, which is reflected at its outermost pixels."""
    warp = warping(size, **{**ALL, "gamma": 0, "contrast": 0, "brightness": 0, "noise": 0})
    found = coordinates(warp, 4)
    crop = tuple(side + 2 for side in size)
    assert all(c < full for c, full in zip(crop, crop_of(warp), strict=True))
    at = found + (torch.tensor(crop).view(-1, *(1,) * len(size)) - 1) / 2
    assert (at < 0).any()
    image, labels = torch.randn(4, 2, *crop), torch.randint(-1, 256, (4, *crop))
    values, target, weight = warp(image, labels, torch.ones(4, *crop), rng())
    sharp = (at - at.floor() - 0.5).abs().amin(1) > 1e-3  # not between two nearest pixels
    for i in range(4):
        for c in range(2):
            expected = map_coordinates(image[i, c].numpy(), at[i].numpy(), order=1, mode="mirror")
            np.testing.assert_allclose(values[i, c], expected, atol=1e-3)
        nearest = map_coordinates(labels[i].numpy(), at[i].round().numpy(), order=0, mode="mirror")
        np.testing.assert_array_equal(target[i][sharp[i]], nearest[sharp[i].numpy()])
    torch.testing.assert_close(weight, torch.ones_like(weight))


def test_a_target_of_thresholded_values_stays_that_of_the_image():
    warp = warping((48, 48), mirror="all", rotate=180, scale=0.2, elastic=4.0)
    image = torch.as_tensor(gaussian_filter(images(warp, 6).numpy(), (0, 0, 4, 4)))
    image = image / image.std()
    found, target, _ = warp(image, (image[:, 0] > 0).long(), None, rng())
    _, smooth, weight = warp(image, image, image[:, 0] * 0 + 1, rng())
    away = found[:, 0].abs() > 0.25
    assert away.float().mean() > 0.7
    assert torch.equal((found[:, 0] > 0)[away], (target == 1)[away])
    torch.testing.assert_close(smooth, found, atol=1e-5, rtol=0)
    torch.testing.assert_close(weight, torch.ones_like(weight))


# ── margin ────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=40, deadline=None)
@given(
    size=st.lists(st.integers(1, 12), min_size=2, max_size=3),
    rotate=st.sampled_from([0, 5, 30, 45, 90, 180]),
    scale=st.sampled_from([0.0, 0.1, 1.0]),
    seed=st.integers(0, 99),
)
def test_the_margin_suffices_for_rotation_and_scale(size, rotate, scale, seed):
    """A frame around the crop, and with it the reflection of the crop, has no influence on the patches."""
    warp = warping(size, rotate=rotate, scale=scale)
    image = images(warp, 8)
    target, frame = torch.zeros(8, *crop_of(warp)).long(), [1, 1] * len(size)
    framed = torch.nn.functional.pad(image, frame, value=1e4)
    marked = torch.nn.functional.pad(target, frame, value=7)
    expected = warp(image, target, None, rng(seed))[0]
    found, labels, _ = warp(framed, marked, None, rng(seed))
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0)  # 1e4 times the rounding of a place, 1e-5
    assert not labels.any()


def test_the_margin_is_the_least():
    assert warping((21, 21), rotate=180).margin == (5, 5)  # 10 √2 = 14.1
    assert warping((21, 21), rotate=90).margin == (5, 5)
    assert warping((21, 41), rotate=90).margin == (13, 3)  # the half diagonal is 22.4
    assert warping((21, 21), scale=0.5).margin == (5, 5)
    assert warping((9, 21, 21), scale=0.5, rotate=180).margin == (2, 12, 12)
    assert warping((21, 21), elastic=2.0).margin == (6, 6)
    assert warping((21, 21), rotate="quarters").margin == (0, 0)


def test_the_margin_covers_three_standard_deviations_of_an_elastic_displacement():
    warp = warping((33, 33), elastic=2.0)
    half = torch.tensor(crop_of(warp)).view(-1, 1, 1) / 2
    inside = torch.randn(2000, 2, *warp.grid_size) * 2
    reached = (warp._smooth(inside) + places((33, 33))).abs()
    assert 0 < (reached > half).float().mean() < 0.003


# ── weights and unlabeled places ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [SQUARE, CUBE])
def test_values_without_weight_have_no_influence(size):
    warp = warping(size, mirror="all", **ALL)
    shape = (3, *crop_of(warp))
    weight = torch.rand(shape) * (torch.rand(shape) < 0.5)
    image, regression, labels = images(warp, 3), torch.randn(3, 2, *shape[1:]), torch.randint(0, 5, shape)
    for target, other in (
        (labels, torch.where(weight > 0, labels, 99)),
        (regression, torch.where(weight[:, None] > 0, regression, math.nan)),
    ):
        _, first, w = warp(image, target, weight, rng())
        _, second, _ = warp(image, other, weight, rng())
        seen = (w > 0) if target is labels else (w > 0)[:, None].expand_as(first)
        assert 0.3 < seen.float().mean() < 0.7
        assert torch.equal(first[seen], second[seen])


def test_a_constant_target_stays_constant_beside_unlabeled_places():
    warp = warping(**ALL)
    weight = (torch.rand(3, *crop_of(warp)) < 0.5).float()
    target = torch.where(weight[:, None] > 0, 3.0, 0.0)
    _, warped, weight = warp(images(warp, 3), target, weight, rng())
    torch.testing.assert_close(warped[weight[:, None] > 0], torch.full([int((weight > 0).sum())], 3.0))


def test_labels_keep_their_type_and_their_values():
    warp = warping(**ALL)
    for dtype, values in ((torch.uint8, [0, 255]), (torch.int64, [-1, 2**24 - 1]), (torch.bool, [0, 1])):
        target = torch.tensor(values)[torch.randint(0, 2, (2, *crop_of(warp)))].to(dtype)
        warped = warp(images(warp, 2), target, None, rng())[1]
        assert warped.dtype == dtype
        assert set(warped.unique().tolist()) == set(values)


# ── gray values ───────────────────────────────────────────────────────────────────────────────────


def gray(image: torch.Tensor, mean, std, seed: int = 0, **config) -> torch.Tensor:
    warp = Warping(WarpingConfig(mirror="none", **config), image.shape[2:], mean, std)
    target = torch.randint(0, 3, (len(image), *image.shape[2:]))
    weight = torch.rand(target.shape)
    found, labels, weights = warp(image, target, weight, rng(seed))
    assert torch.equal(labels, target)
    assert torch.equal(weights, weight)
    return found


def test_gray_values_change_as_configured():
    image, mean, std = torch.randn(4000, 2, 6, 6) * 3 + 10, [10.0, -4.0], [2.0, 0.5]
    channels = torch.tensor(mean).view(1, 2, 1, 1)

    offset = (gray(image, mean, std, brightness=0.5) - image) / torch.tensor(std).view(1, 2, 1, 1)
    torch.testing.assert_close(offset, offset[:, :1, :1, :1].expand_as(offset), atol=1e-4, rtol=0)
    assert offset.abs().max() < 0.5 + 1e-4
    assert offset[:, 0, 0, 0].std() == pytest.approx(0.5 / math.sqrt(3), rel=0.05)

    slope = (gray(image, mean, std, contrast=0.6) - channels) / (image - channels)
    factor = slope[:, 1, 0, 0].log()
    torch.testing.assert_close(slope[:, 1].log(), factor[:, None, None].expand(-1, 6, 6), atol=1e-3, rtol=0)
    assert factor.abs().max() < math.log(1.6) + 1e-3
    assert factor.std() == pytest.approx(math.log(1.6) / math.sqrt(3), rel=0.05)

    noise = (gray(image, mean, std, noise=0.4) - image) / torch.tensor(std).view(1, 2, 1, 1)
    assert noise.std() == pytest.approx(0.4 / math.sqrt(3), rel=0.03)  # the mean square of a uniform spread
    assert abs(torch.corrcoef(noise.flatten(1)[:, :2].T)[0, 1]) < 0.1

    changed = gray(image, mean, std, gamma=0.5)
    for extreme in (torch.amin, torch.amax):
        torch.testing.assert_close(extreme(changed, (2, 3)), extreme(image, (2, 3)), atol=1e-4, rtol=0)
    low, high = image.amin((2, 3), keepdim=True), image.amax((2, 3), keepdim=True)
    before, after = (((x - low) / (high - low)).clamp(0.01, 0.99).log() for x in (image, changed))
    middle = (before > math.log(0.1)) & (before < math.log(0.8))
    exponent = torch.where(middle, after / before, math.nan)
    typical = exponent.flatten(1).nanmedian(1).values
    assert (exponent - typical.view(-1, 1, 1, 1)).nan_to_num().abs().max() < 0.02
    assert typical.log().abs().max() < math.log(1.5) + 0.01
    assert typical.log().std() == pytest.approx(math.log(1.5) / math.sqrt(3), rel=0.05)


def test_gamma_leaves_a_flat_image():
    image = torch.full((2, 1, 4, 4), 7.0)
    assert torch.equal(gray(image, [0.0], [1.0], gamma=1.0), image)


# ── random numbers, configuration ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [SQUARE, CUBE])
@pytest.mark.parametrize("config", [ALL, {**ALL, "rotate": "quarters"}])
def test_random_numbers_follow_the_position_in_the_batch(size, config):
    warp = warping(size, 2, **{**config, "mirror": "all"})
    shape = (4, *crop_of(warp))
    batch = images(warp, 4, 2), torch.randint(0, 3, shape), torch.rand(shape)
    whole, again = warp(*batch, rng()), warp(*batch, rng())
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    assert not torch.equal(warp(*batch, rng(1))[0], whole[0])
    for part in (slice(0, 2), slice(2, 4)):
        found = warp(*(x[part] for x in batch), rng(0, part, 4))
        assert all(torch.equal(f, x[part]) for f, x in zip(found, whole, strict=True))


def test_patches_of_a_batch_are_distorted_differently():
    warp = warping(**ALL)
    found = coordinates(warp, 5)
    assert torch.pdist(found.flatten(1)).min() > 1


@pytest.mark.parametrize(
    ("size", "config", "match"),
    [
        (SQUARE, {"mirror": ["z"]}, r"augment.mirror: no such axis in 2-D \(got z\); choose from x, y"),
        (FLAT, {"rotate": "quarters"}, r"augment.rotate: .*\(got 12×20\); give an angle"),
        ((9,), {}, r"2 or 3 axes \(got 1\)"),
    ],
)
def test_configs_that_do_not_fit_the_size_are_errors(size, config, match):
    with pytest.raises(UserError, match=match):
        warping(size, **config)


def test_settings_are_read_from_flags():
    flags = {"mirror": "[y, x]", "rotate": "180", "elastic": "10"}
    config = settings_from(WarpingConfig(), WarpingConfig, flags)
    assert (config.mirror, config.rotate) == (("y", "x"), 180)
    assert settings_from(config, WarpingConfig) == config
    assert settings_from(config, WarpingConfig, {"rotate": "quarters"}).rotate == "quarters"
    for flag, word in (("rotate", "181"), ("rotate", "-1"), ("mirror", "[w]"), ("elastic_grid", "1")):
        with pytest.raises(UserError, match=flag):
            settings_from(config, WarpingConfig, {flag: word})


def test_crops_without_the_same_margin_on_both_sides_are_errors():
    with pytest.raises(ValueError, match=r"crops of \(17, 16\)"):
        warping()(torch.zeros(1, 1, 17, 16), torch.zeros(1, 17, 16).long(), None, rng())
