"""EDM against the equations of its paper and against the closed form for Gaussian data."""

import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler
from helpers import MEAN, SOLVER_ERRORS, SPREAD, STDS, gaussian_posterior, sampled_spread

from diffunet.core.rng import BatchRNG
from diffunet.objectives.edm import EDM, EDMConfig

CONFIGS = [EDMConfig(), EDMConfig(sigma_data=0.3), EDMConfig(sigma_data=1.0, sigma_max=40.0)]


def exact(config: EDMConfig):
    """Return F for the exact D: equation 7 solved for F, with c_noise = ln(sigma) / 4."""
    data = config.sigma_data

    def network(x_in, t, std=SPREAD):
        sigma = (4 * t.double()).exp().reshape(-1, 1, 1, 1)
        x = x_in.double() * (sigma**2 + data**2) ** 0.5
        denoised, _ = gaussian_posterior(x, torch.ones_like(sigma), sigma, std)
        c_skip = data**2 / (sigma**2 + data**2)
        c_out = sigma * data / (sigma**2 + data**2) ** 0.5
        return ((denoised - c_skip * x) / c_out).float()

    return network


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("sampler", SOLVER_ERRORS)
def test_samplers_recover_the_mean_and_spread_of_gaussians(config, sampler):
    for steps, largest in SOLVER_ERRORS[sampler].items():
        found = sampled_spread(exact(config), EDM(config).sampler(sampler, steps), size=192)
        assert found == pytest.approx([1] * len(STDS), abs=largest), steps


@pytest.mark.parametrize("config", CONFIGS)
def test_the_exact_network_has_the_least_loss(config):
    """Its loss in closed form: the variance of x_0 given x, over c_out², averaged over the log-normal sigma."""
    generator = torch.Generator().manual_seed(0)
    image = MEAN + SPREAD * torch.randn(8000, 1, 4, 4, generator=generator)
    sigma = torch.exp(-1.2 + 1.2 * torch.randn(1_000_000, generator=generator).double())
    remaining = SPREAD**2 * sigma**2 / (SPREAD**2 + sigma**2)
    c_out = sigma * config.sigma_data / (sigma**2 + config.sigma_data**2) ** 0.5
    expected = (remaining / c_out**2).mean().item()
    objective, network = EDM(config), exact(config)
    found = objective.loss(network, image, BatchRNG(generator))["loss"].mean().item()
    assert found == pytest.approx(expected, rel=0.03)
    wrong = objective.loss(lambda x, t: network(x, t) + 0.3, image, BatchRNG(generator))["loss"].mean().item()
    assert wrong == pytest.approx(expected + 0.09, rel=0.03)


def test_input_and_target_have_unit_variance():
    """The purpose of the preconditioning (appendix B.6), for data whose standard deviation is sigma_data."""
    objective = EDM(EDMConfig(sigma_data=SPREAD))
    image, noise = SPREAD * torch.randn(20, 1, 64, 64), torch.randn(20, 1, 64, 64)
    noisy = objective.add_noise(image, noise, torch.linspace(0.01, 0.99, 20))
    torch.testing.assert_close(noisy.x_t.flatten(1).std(1), torch.ones(20), atol=0.05, rtol=0)
    torch.testing.assert_close(noisy.target.flatten(1).std(1), torch.ones(20), atol=0.05, rtol=0)


def test_the_noise_is_log_normal():
    config = EDMConfig(P_mean=-0.5, P_std=0.7)
    u = torch.rand(100_000)
    t = EDM(config).add_noise(torch.zeros(100_000, 1, 1, 1), torch.zeros(100_000, 1, 1, 1), u).t
    assert (4 * t).mean().item() == pytest.approx(-0.5, abs=0.01)
    assert (4 * t).std().item() == pytest.approx(0.7, abs=0.01)
    ends = EDM(config).add_noise(torch.zeros(2, 1, 1, 1), torch.ones(2, 1, 1, 1), torch.tensor([0.0, 1.0]))
    assert ends.t.isfinite().all()


def test_the_preconditioning_equals_that_of_diffusers():
    objective = EDM(EDMConfig())
    scheduler = EDMDPMSolverMultistepScheduler(sigma_data=0.5)
    image, noise = torch.randn(2, 1, 1, 4, 4)
    noisy = objective.add_noise(image, noise, torch.tensor([0.7]))
    sigma = (4 * noisy.t).exp()
    torch.testing.assert_close(noisy.x_t, scheduler.precondition_inputs(image + sigma * noise, sigma))
    torch.testing.assert_close(noisy.t, scheduler.precondition_noise(sigma))
    denoised = scheduler.precondition_outputs(image + sigma * noise, noisy.target, sigma)
    torch.testing.assert_close(denoised, image)
