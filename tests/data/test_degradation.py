import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from diffunet.core.errors import UserError
from diffunet.core.rng import BatchRNG
from diffunet.data.degradation import Degradation, Step, image_size
from diffunet.data.digits import digit_images
from diffunet.data.operations import random_mask
from diffunet.data.pixels import denormalize, normalize

LINEAR = {
    "downscale": [{"downscale": 4}],
    "gray": [{"gray": True}],
    "blur": [{"blur": 1.5}],
    "mask": [{"mask": [0.2, 0.6]}],
    "extend": [{"extend": [1, 2, 3, 0]}],
    "all": [{"extend": [2, 2, 0, 4]}, {"gray": True}, {"blur": 0.5}, {"downscale": 2}, {"mask": [0.3, 0.3]}],
}
EXACT = {"downscale 2": [{"downscale": 2}], **{name: LINEAR[name] for name in ("downscale", "gray", "mask", "extend")}}


def degradation(steps, shape, bit_depth=8) -> Degradation:
    return Degradation([Step.model_validate(step) for step in steps], shape, bit_depth)


def rng(seed=0, *args) -> BatchRNG:
    return BatchRNG(torch.Generator().manual_seed(seed), *args)


def photographs(side=32) -> torch.Tensor:
    """Return six crops of scikit-learn's sample photographs, uint8."""
    from sklearn.datasets import load_sample_images

    corners = [(20, 100), (200, 300), (350, 500)]
    crops = [photo[y : y + side, x : x + side] for photo in load_sample_images().images for y, x in corners]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)


def rounded(operator: Degradation, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Return the measurement of images as files hold it: the pixels of its values, its mask, and both as a tensor."""
    values, mask = operator.split(operator.degrade(image, rng()))
    pixels = denormalize(values, 8)
    values = normalize(pixels, 8).double()
    if mask is None:
        return pixels, None, values
    return pixels, mask, torch.cat([values * (1 - mask), mask], dim=1)


# ── operators ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("steps", LINEAR.values(), ids=LINEAR)
def test_the_adjoint_satisfies_its_identity(steps):
    operator = degradation(steps, (3, 16, 24))
    x = torch.randn(3, 3, 16, 24, dtype=torch.float64)
    _, mask = operator.split(operator.degrade(x, rng()))
    y = torch.randn(3, *operator.values_shape, dtype=torch.float64)
    forward = (operator.apply(x, mask) * y).sum()
    torch.testing.assert_close(forward, (x * operator.adjoint(y, mask)).sum(), atol=1e-11, rtol=1e-12)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_downscaling_is_that_of_pillow(factor):
    image = torch.randn(1, 1, 24, 36)
    expected = Image.fromarray(image[0, 0].numpy()).resize((36 // factor, 24 // factor), Image.Resampling.BICUBIC)
    found = degradation([{"downscale": factor}], (1, 24, 36)).apply(image)
    torch.testing.assert_close(found[0, 0], torch.from_numpy(np.array(expected)), atol=1e-5, rtol=1e-5)


def test_gray_is_that_of_pillow():
    photos = photographs()
    found = denormalize(degradation([{"gray": True}], (3, 32, 32)).apply(normalize(photos, 8)), 8)
    for photo, gray in zip(photos, found, strict=True):
        expected = np.array(Image.fromarray(photo.permute(1, 2, 0).numpy()).convert("L"))
        assert np.abs(gray[0].numpy().astype(int) - expected).max() <= 1


@pytest.mark.parametrize("std", [0.0, 0.7, 2.0])
def test_blur_is_that_of_scipy(std):
    from scipy.ndimage import gaussian_filter

    image = torch.randn(2, 3, 17, 20, dtype=torch.float64)
    expected = gaussian_filter(
        image.numpy(), (0, 0, std, std), mode="mirror", radius=(0, 0, *[int(np.ceil(4 * std))] * 2)
    )
    found = degradation([{"blur": std}], (3, 17, 20)).apply(image)
    torch.testing.assert_close(found, torch.from_numpy(expected), atol=1e-12, rtol=0)


def test_each_image_is_blurred_by_its_own_deviation():
    image = torch.randn(5, 2, 12, 12, dtype=torch.float64)
    found = degradation([{"blur": [0.5, 2.0]}], (2, 12, 12)).operations[0](image, rng())
    for index, share in enumerate(rng().uniform_like(image).double()):
        alone = degradation([{"blur": [0.5, 2.0]}], (2, 12, 12)).operations[0]
        alone.std = (0.5 + 1.5 * share.item(),) * 2
        # The kernel of a range reaches as far as that of its highest deviation.
        torch.testing.assert_close(found[index], alone(image[index : index + 1])[0], atol=3e-4, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_loses_more_at_lower_quality(channels):
    image = normalize(photographs(), 8)[:, :channels]
    errors = []
    for quality in (100, 60, 10):
        found = degradation([{"jpeg": [quality, quality]}], (channels, 32, 32)).degrade(image, rng())
        errors.append((found - image).square().mean().item())
    assert 0 < errors[0] < errors[1] / 3 < errors[2] / 9


def test_noise_has_its_deviation():
    noisy = degradation([{"noise": [0.1, 0.1]}], (1, 64, 64)).degrade(torch.zeros(16, 1, 64, 64), rng())
    assert noisy.std().item() == pytest.approx(0.1, rel=0.02)


def test_a_mask_hides_its_share_to_the_pixel():
    image = torch.zeros(200, 1, 9, 14)
    hidden = random_mask((0.3, 0.3), image, rng()).flatten(1).sum(1)
    assert (hidden == round(0.3 * 9 * 14)).all()
    shares = random_mask((0.1, 0.5), image, rng()).flatten(1).mean(1)
    expected = 0.1 + 0.4 * rng().uniform_like(image)
    torch.testing.assert_close(shares, expected, atol=1 / (9 * 14), rtol=0)
    assert len(random_mask((0.3, 0.3), image, rng()).unique(dim=0)) > 190
    for share, filled in ((0.0, 0), (1.0, 9 * 14)):
        assert (random_mask((share, share), image, rng()).flatten(1).sum(1) == filled).all()


RANDOM = [{"blur": [0, 2]}, {"noise": [0, 0.2]}, {"jpeg": [20, 90]}, {"mask": [0.1, 0.6]}]


def test_random_steps_follow_the_position_in_the_batch():
    image, operator = torch.rand(8, 3, 16, 16) * 2 - 1, degradation(RANDOM, (3, 16, 16))
    whole = operator.degrade(image, rng())
    for part in (slice(0, 3), slice(3, 8)):
        torch.testing.assert_close(operator.degrade(image[part], rng(0, part, 8)), whole[part], atol=2 / 255, rtol=0)
    assert not torch.equal(operator.degrade(image, rng(1)), whole)


@pytest.mark.parametrize("steps", [LINEAR["downscale"], LINEAR["gray"], LINEAR["blur"], [{"extend": [2, 2, 1, 3]}]])
def test_flips_commute(steps):
    operator, image = degradation(steps, (3, 16, 16)), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(operator.apply(image.flip(-1)), operator.apply(image).flip(-1), atol=1e-12, rtol=0)


# ── planes ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("steps", LINEAR.values(), ids=LINEAR)
def test_measurements_and_planes_have_their_shapes(steps):
    operator = degradation(steps, (3, 16, 24))
    measurement = operator.degrade(torch.rand(2, 3, 16, 24), rng())
    assert measurement.shape[1:] == operator.measurement_shape
    assert operator.planes(measurement).shape == (2, operator.plane_channels, 16, 24)
    assert image_size([Step.model_validate(step) for step in steps], measurement.shape[2:]) == (16, 24)
    assert operator.is_linear and operator.is_fixed
    assert not degradation(RANDOM, (3, 16, 16)).is_linear


def test_planes_are_white_where_the_image_is_generated():
    image = torch.rand(2, 3, 8, 8) * 2 - 1
    planes = degradation([{"extend": [1, 0, 2, 0]}], (3, 8, 8)).planes(image[..., 2:, 1:])
    assert torch.equal(planes[:, :3, 2:, 1:], image[..., 2:, 1:])
    assert (planes[:, 3, 2:, 1:] == 0).all() and (planes[:, 3, :2] == 1).all() and (planes[:, 3, :, 0] == 1).all()
    assert (planes[:, :3, :2] == 0).all()
    masked = degradation([{"mask": [0.5, 0.5]}], (3, 8, 8))
    planes = masked.planes(masked.degrade(image, rng()))
    assert torch.equal(planes[:, :3], image * (1 - planes[:, 3:]))
    assert planes[:, 3].mean() == 0.5


# ── projection ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("steps", [LINEAR["downscale"], LINEAR["gray"], LINEAR["extend"], LINEAR["all"][:4]])
def test_the_projection_equals_its_closed_form(steps):
    """x + A^T (A A^T)^-1 (y - A x), with A as a matrix, where [-1, 1] is no constraint."""
    operator = degradation(steps, (3, 8, 8))
    matrix = operator.apply(torch.eye(192, dtype=torch.float64).reshape(192, 3, 8, 8)).flatten(1).T
    x, truth = 0.1 * torch.randn(2, 2, 3, 8, 8, dtype=torch.float64)
    y = operator.apply(truth)
    expected = x.flatten(1) + (y - operator.apply(x)).flatten(1) @ torch.linalg.pinv(matrix).T
    found = operator.project(x, y)
    torch.testing.assert_close(found.flatten(1), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(operator.apply(found), y, atol=1e-6, rtol=0)
    torch.testing.assert_close(operator.project(found, y), found, atol=1e-6, rtol=0)


def test_the_projection_is_the_nearest_image_in_the_box():
    """scipy's minimizer of the same problem, with the box active."""
    from scipy.optimize import LinearConstraint, minimize

    operator = degradation([{"downscale": 2}], (1, 4, 4))
    matrix = operator.apply(torch.eye(16, dtype=torch.float64).reshape(16, 1, 4, 4)).flatten(1).T.numpy()
    truth = torch.rand(1, 1, 4, 4, dtype=torch.float64) * 1.8 - 0.9
    x, y = torch.randn(1, 1, 4, 4, dtype=torch.float64), operator.apply(truth)
    assert y.abs().max() < 1
    found = operator.project(x, y)
    assert (found.abs() == 1).any()
    target, goal = x.flatten().numpy(), y.flatten().numpy()
    expected = minimize(
        lambda z: ((z - target) ** 2).sum(),
        truth.flatten().numpy(),
        jac=lambda z: 2 * (z - target),
        bounds=[(-1, 1)] * 16,
        constraints=LinearConstraint(matrix, goal, goal),
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    np.testing.assert_allclose(found.flatten().numpy(), expected.x, atol=1e-4)


@pytest.mark.parametrize("steps", EXACT.values(), ids=EXACT)
@pytest.mark.parametrize("kind", ["digits", "photographs"])
def test_rounded_projections_agree_with_their_source(steps, kind):
    if kind == "digits" and steps == [{"gray": True}]:
        pytest.skip("digits are gray")
    pixels = photographs() if kind == "photographs" else digit_images()[:64]
    truth = normalize(pixels, 8)
    steps = [{"extend": [1, 2, 3, 0]}] if "extend" in steps[0] else steps
    operator = degradation(steps, tuple(truth.shape[1:]))
    source, mask, measurement = rounded(operator, truth)
    sample = (truth + 0.3 * torch.randn_like(truth)).clamp(-1, 1)
    image = denormalize(operator.project(sample, measurement, bit_depth=8), 8)
    again = denormalize(operator.apply(normalize(image, 8), mask), 8)
    known = torch.ones_like(source, dtype=torch.bool) if mask is None else (mask == 0).expand_as(source)
    assert torch.equal(again[known], source[known])
    assert not torch.equal(denormalize(operator.apply(sample, mask), 8)[known], source[known])


def test_projections_of_16_bits_agree():
    operator = degradation([{"downscale": 2}], (5, 16, 16), bit_depth=16)
    truth = torch.rand(2, 5, 16, 16) * 1.6 - 0.8
    source = denormalize(operator.apply(truth), 16)
    image = denormalize(operator.project(torch.zeros_like(truth), normalize(source, 16), 16), 16)
    assert torch.equal(denormalize(operator.apply(normalize(image, 16).double()), 16), source)


def test_a_projection_is_independent_of_its_batch():
    operator = degradation([{"downscale": 2}], (3, 16, 16))
    truth = normalize(photographs(16)[:3], 8)
    measurement = rounded(operator, truth)[2]
    sample = torch.randn_like(truth)
    whole = operator.project(sample, measurement, bit_depth=8)
    for index in range(len(truth)):
        row = slice(index, index + 1)
        assert torch.equal(operator.project(sample[row], measurement[row], bit_depth=8), whole[row])


# ── configuration ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "step, message",
    [
        ({}, "a step has one of .*got none"),
        ({"blur": 1, "downscale": 2}, "got downscale and blur"),
        ({"mask": [0.5, 0.1]}, r"mask: the range is \[low, high\] \(got \[0.5, 0.1\]\)"),
        ({"downscale": 1}, "greater than or equal to 2"),
        ({"jpeg": [0, 50]}, "greater than or equal to 1"),
    ],
)
def test_a_step_has_exactly_one_key(step, message):
    with pytest.raises(ValidationError, match=message):
        Step.model_validate(step)


def test_a_step_is_written_as_it_is_read():
    for steps in LINEAR.values():
        for step in steps:
            read = Step.model_validate(step)
            assert Step.model_validate(read.model_dump(mode="json")) == read
            assert list(read.model_dump()) == list(step)


@pytest.mark.parametrize(
    "steps, shape, bit_depth, message",
    [
        ([{"downscale": 3}], (3, 16, 16), 8, r"by.0.downscale: does not divide 16×16 pixels \(got 3\)"),
        ([{"blur": 1}, {"gray": True}], (1, 8, 8), 8, r"by.1.gray: needs color images .*got 1"),
        ([{"jpeg": [9, 9]}], (3, 8, 8), 16, r"by.0.jpeg: needs images of 8 bits \(got 16\)"),
        ([{"jpeg": [9, 9]}], (5, 8, 8), 8, r"by.0.jpeg: needs 1 or 3 channels \(got 5\)"),
        ([{"extend": [4, 4, 0, 0]}], (3, 8, 8), 8, "by.0.extend: leaves nothing of 8×8"),
        ([{"mask": [0, 1]}, {"blur": 1}], (3, 8, 8), 8, "by.1.blur: follows a mask"),
    ],
)
def test_unsuitable_steps_are_refused(steps, shape, bit_depth, message):
    with pytest.raises(UserError, match=message):
        degradation(steps, shape, bit_depth)
