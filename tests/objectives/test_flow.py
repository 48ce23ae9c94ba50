"""Flow matching against the closed form for Gaussian data."""

import pytest
import torch
from helpers import MEAN, SPREAD, gaussian_flow as exact, gaussian_noise

from diffunet.objectives.flow import Flow, FlowConfig
from diffunet.core.rng import BatchRNG
from diffunet.sampling.loop import sample

FLOW = Flow(FlowConfig())


@pytest.mark.parametrize("sampler", FLOW.samplers)
@pytest.mark.parametrize("steps", [25, 30, 100])
def test_samplers_recover_mean_and_spread_of_a_gaussian(sampler, steps):
    x = sample(exact, FLOW.sampler(sampler, steps), gaussian_noise())
    assert x.mean().item() == pytest.approx(MEAN, abs=0.004)
    assert x.std().item() / SPREAD == pytest.approx(1, abs=0.012)


def test_the_exact_network_has_the_least_loss():
    """In closed form: the variance of noise - x_0 given x_t, averaged over s."""
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
    asked = [FLOW.add_noise(image, noise, torch.full((3,), s)) for s in (0.0, 0.5, 0.75)]
    torch.testing.assert_close(asked[0].x_t, image)
    torch.testing.assert_close(asked[2].x_t - asked[1].x_t, 0.25 * asked[1].target)
