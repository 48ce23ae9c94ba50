"""Flow matching against the closed form for Gaussian data."""

import pytest
import torch
from helpers import MEAN, SOLVER_ERRORS, SPREAD, STDS, sampled_spread
from helpers import gaussian_flow as exact

from diffunet.core.rng import BatchRNG
from diffunet.objectives.flow import Flow, FlowConfig

FLOW = Flow(FlowConfig())


ERRORS = {
    **SOLVER_ERRORS,
    "unipc": {8: 0.08, 10: 0.055, 15: 0.025, 25: 0.012, 50: 0.006},
}
"""Largest relative error of the spread by number of network calls."""


@pytest.mark.parametrize("sampler", ERRORS)
def test_samplers_recover_the_mean_and_spread_of_gaussians(sampler):
    for steps, largest in ERRORS[sampler].items():
        found = sampled_spread(exact, FLOW.sampler(sampler, steps, (8, 8)))
        assert found == pytest.approx([1] * len(STDS), abs=largest), steps


def test_the_exact_network_has_the_least_loss():
    """Its loss in closed form: the variance of noise - x_0 given x_t, averaged over s."""
    generator = torch.Generator().manual_seed(0)
    image = MEAN + SPREAD * torch.randn(8000, 1, 4, 4, generator=generator)
    s = (torch.arange(100_000).double() + 0.5) / 100_000
    expected = (SPREAD**2 / ((1 - s) ** 2 * SPREAD**2 + s**2)).mean().item()
    found = FLOW.loss(exact, image, BatchRNG(generator))["loss"].mean().item()
    assert found == pytest.approx(expected, rel=0.03)
    wrong = FLOW.loss(lambda x, t: exact(x, t) + 0.3, image, BatchRNG(generator))["loss"].mean().item()
    assert wrong == pytest.approx(expected + 0.09, rel=0.03)


def test_the_path_is_straight():
    image, noise = torch.randn(2, 3, 1, 4, 4)
    noisy = [FLOW.add_noise(image, noise, torch.full((3,), s)) for s in (0.0, 0.5, 0.75)]
    torch.testing.assert_close(noisy[0].x_t, image)
    torch.testing.assert_close(noisy[2].x_t - noisy[1].x_t, 0.25 * noisy[1].target)
