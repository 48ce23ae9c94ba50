"""The Fourier transform against its definition, adjoints, sampling patterns, and consistent images."""

import math

import pytest
import torch

from diffunet.core.errors import UserError
from diffunet.core.fourier import Cartesian, sampled_lines, to_image, to_kspace


def complex_normal(*size: int) -> torch.Tensor:
    return torch.randn(*size, dtype=torch.complex128)


def inner(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a.conj() * b).sum()


def coils(number: int, size: tuple[int, ...], examples: int = 2) -> torch.Tensor:
    """Return sensitivities with a square sum of one at each place."""
    maps = complex_normal(examples, number, *size)
    return maps / maps.abs().square().sum(1, keepdim=True).sqrt()


@pytest.mark.parametrize("size", [(6,), (5, 6), (3, 4, 5)])
def test_the_transform_equals_its_definition(size):
    """F(k) = sum_x f(x) exp(-2 pi i k x / N) / sqrt(N) with x and k from -N/2 on, by matrix products."""
    image, expected = complex_normal(2, *size), None
    expected = image
    for axis, number in enumerate(size, start=1):
        place = torch.arange(number, dtype=torch.float64) - number // 2
        matrix = torch.exp(-2j * math.pi * torch.outer(place, place) / number) / math.sqrt(number)
        expected = torch.movedim(torch.tensordot(matrix, expected, dims=([1], [axis])), 0, axis)
    torch.testing.assert_close(to_kspace(image, len(size)), expected)
    torch.testing.assert_close(to_image(expected, len(size)), image)


def test_a_constant_image_is_the_central_place():
    kspace = to_kspace(torch.ones(8, 6, dtype=torch.complex128))
    assert kspace[4, 3].real.item() == pytest.approx(48**0.5)
    assert kspace.abs().sum().item() == pytest.approx(48**0.5)


@pytest.mark.parametrize("number", [0, 3])
def test_the_adjoint_is_the_adjoint(number):
    size = (7, 8)
    mask = torch.rand(2, 1, 8) < 0.5
    operator = Cartesian(mask, coils(number, size) if number else None)
    image, kspace = complex_normal(2, 2, *size), complex_normal(2, 2, max(number, 1), *size)
    torch.testing.assert_close(inner(operator.apply(image), kspace), inner(image, operator.adjoint(kspace)))


def test_sampling_is_a_function_of_seed_step_and_position():
    masks = {
        key: sampled_lines(64, 4, seed=key[0], step=key[1], position=key[2])
        for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    }
    for (seed, step, position), mask in masks.items():
        torch.manual_seed(seed + 5)
        assert torch.equal(mask, sampled_lines(64, 4, seed=seed, step=step, position=position))
    assert len({mask.numpy().tobytes() for mask in masks.values()}) == 4


@pytest.mark.parametrize(("number", "acceleration"), [(64, 4), (101, 3), (256, 8), (64, 1)])
def test_random_lines_have_a_full_center_and_the_acceleration(number, acceleration):
    counts = torch.zeros(number)
    for step in range(300):
        lines = sampled_lines(number, acceleration, 0.08, step=step)
        assert lines.sum() == round(number / acceleration)
        counts += lines
    middle = round(0.08 * number)
    start = number // 2 - middle // 2
    assert (counts[start : start + middle] == 300).all()
    share = (round(number / acceleration) - middle) / (number - middle)
    others = torch.cat([counts[:start], counts[start + middle :]]) / 300
    assert (others - share).abs().max() <= 5 * math.sqrt(share * (1 - share) / 300) + 1e-9


def test_uniform_lines_are_evenly_spaced():
    starts = set()
    for step in range(40):
        lines = sampled_lines(64, 4, 0.0, "uniform", step=step).nonzero()[:, 0]
        assert (lines.diff() == 4).all()
        assert len(lines) == 16
        starts.add(int(lines[0]))
    assert starts == {0, 1, 2, 3}
    assert sampled_lines(64, 4, 0.25, "uniform")[24:40].all()


def test_impossible_samplings_are_refused():
    with pytest.raises(UserError, match="acceleration: at least 1"):
        sampled_lines(64, 0.5)
    with pytest.raises(UserError, match="32 central lines are more than the 16"):
        sampled_lines(64, 4, 0.5)


@pytest.mark.parametrize("number", [0, 4])
def test_consistent_images_agree_with_the_measurement_and_are_the_nearest(number):
    size = (6, 8)
    operator = Cartesian(torch.rand(2, 1, 8) < 0.5, coils(number, size) if number else None)
    truth, guess = complex_normal(2, 1, *size), complex_normal(2, 1, *size)
    kspace = operator.apply(truth)
    found = operator.consistent(guess, kspace, iterations=300)
    torch.testing.assert_close(operator.apply(found), kspace, atol=1e-7, rtol=0)
    torch.testing.assert_close(operator.consistent(found, kspace, iterations=300), found, atol=1e-6, rtol=0)
    # The nearest: its change is orthogonal to all that is not measured.
    unmeasured = (
        (truth - found) if number == 0 else truth - operator.consistent(torch.zeros_like(truth), kspace, iterations=300)
    )
    assert inner(found - guess, unmeasured).abs() < 1e-5


@pytest.mark.parametrize("number", [0, 3])
def test_a_weight_gives_the_minimum_of_both_distances(number):
    """Against a dense solution of (1 + weight A^H A) z = x + weight A^H y."""
    size, weight = (3, 4), 2.5
    operator = Cartesian(torch.rand(1, 1, 4) < 0.6, coils(number, size, 1) if number else None)
    guess, kspace = complex_normal(1, 1, *size), complex_normal(1, 1, max(number, 1), *size)
    basis = torch.eye(12, dtype=torch.complex128).reshape(12, 1, 1, *size)
    normal = torch.stack([operator.adjoint(operator.apply(one)).flatten() for one in basis], dim=1)
    right = (guess + weight * operator.adjoint(kspace)).flatten()
    expected = torch.linalg.solve(torch.eye(12) + weight * normal, right).reshape(guess.shape)
    torch.testing.assert_close(operator.consistent(guess, kspace, weight, iterations=60), expected)


def test_eight_coils_solve_half_of_the_lines():
    """SENSE: with more coils than the acceleration the measurement determines the image."""
    size = (8, 8)
    mask = torch.zeros(8, dtype=torch.bool)
    mask[::2] = True
    operator, truth = Cartesian(mask.expand(size), coils(8, size, 1)), complex_normal(1, 1, *size)
    found = operator.consistent(torch.zeros_like(truth), operator.apply(truth), iterations=300)
    torch.testing.assert_close(found, truth, atol=1e-6, rtol=0)
