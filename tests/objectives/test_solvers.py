"""Solvers of any objective against diffusers' schedulers, their order of convergence, and Gaussian data."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EDMDPMSolverMultistepScheduler
from helpers import MEAN, STDS, gaussian_noise, gaussian_posterior, sampled_spread

from diffunet.objectives.ddpm import DDPM, DDPMConfig
from diffunet.objectives.edm import EDM, EDMConfig
from diffunet.objectives.flow import Flow, FlowConfig
from diffunet.objectives.solvers import METHODS, Method, Solver
from diffunet.sampling.loop import sample

OBJECTIVES = {
    "linear": DDPM(DDPMConfig()),
    "cosine": DDPM(DDPMConfig(prediction_type="v_prediction", beta_schedule="cosine")),
    "sample": DDPM(DDPMConfig(prediction_type="sample", beta_schedule="cosine", rescale_betas_zero_snr=True)),
    "edm": EDM(EDMConfig()),
    "flow": Flow(FlowConfig()),
}


@pytest.fixture(params=OBJECTIVES)
def objective(request):
    return OBJECTIVES[request.param]


def exact(objective, x_t, t, std=0.3):
    """Return the exact prediction for data of independent pixels N(MEAN, std²)."""
    alpha, sigma = (level.double().reshape(-1, 1, 1, 1) for level in objective.levels(t))
    x_0, noise = gaussian_posterior(x_t, alpha, sigma, std)
    a, b = (factor.double().reshape(-1, 1, 1, 1) for factor in objective.target(t))
    return a * x_0 + b * noise


def crooked(x_t, t):
    """A network that is linear in nothing."""
    return torch.sin(2 * x_t + t / 7) + 0.3 * x_t


def test_a_target_implies_its_image_and_back(objective):
    image, noise = torch.randn(2, 6, 1, 4, 4)
    noisy = objective.add_noise(image, noise, torch.tensor([0.05, 0.2, 0.4, 0.6, 0.8, 0.9]))
    clean = objective.clean(noisy.target, noisy.x_t, noisy.t)
    torch.testing.assert_close(clean, image, atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(objective.prediction(image, noisy.x_t, noisy.t), noisy.target, atol=2e-3, rtol=1e-3)


def test_solvers_call_the_network_at_falling_levels_even_in_log_snr(objective):
    for steps in (1, 2, 8, 50):
        times = objective.sampler("dpm++", steps, (8, 8)).timesteps
        assert len(times) == steps
        alpha, sigma = objective.levels(times.double() if times.is_floating_point() else times)
        found = (alpha / sigma).log().double()
        assert torch.is_floating_point(times) != isinstance(objective, DDPM)
        start = -torch.tensor(80.0).log() if isinstance(objective, EDM) else torch.tensor(-4.0)
        assert found[0].item() == pytest.approx(start.item(), abs=0.12)
        assert (found.diff() > 0).all()
        if 2 < steps < 50:  # whole timesteps are coarse at the clean end
            assert found.diff()[:-1].std() < 0.2 * found.diff().mean()


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
def test_dpm_solvers_equal_those_of_diffusers(algorithm):
    scheduler = EDMDPMSolverMultistepScheduler(
        sigma_data=0.5, sigma_schedule="exponential", final_sigmas_type="zero", algorithm_type=algorithm
    )
    scheduler.set_timesteps(12)
    solver = OBJECTIVES["edm"].sampler("dpm++" if algorithm == "dpmsolver++" else "sde-dpm++", 12)
    solver.limit = None
    torch.testing.assert_close(solver.timesteps, scheduler.timesteps)
    generators = (torch.Generator().manual_seed(3) for _ in range(2))
    found, expected = (
        sample(crooked, each, gaussian_noise(2, 8), generator)
        for each, generator in zip((solver, scheduler), generators, strict=True)
    )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["linear", "cosine", "sample"])
def test_first_order_methods_equal_ddim_and_ddpm_of_diffusers(name):
    objective = OBJECTIVES[name]
    times = torch.arange(999, 0, -40)
    for kind, eta in ((DDIMScheduler, 0.0), (DDPMScheduler, 1.0)):
        config = objective.config.scheduler().config
        scheduler = kind.from_config(config, clip_sample=False, thresholding=True, sample_max_value=1.0)
        scheduler.set_timesteps(25)
        assert scheduler.timesteps.tolist() == times.tolist()
        solver = Solver(objective, times, Method(order=1, eta=eta))
        generators = [[torch.Generator().manual_seed(seed) for seed in (3, 4)] for _ in range(2)]
        found = sample(crooked, solver, gaussian_noise(2, 8), generators[0])
        expected = sample(crooked, scheduler, gaussian_noise(2, 8), generators[1])
        torch.testing.assert_close(found, expected, atol=3e-4, rtol=1e-3)


def test_dpm_plus_plus_converges_with_the_square_of_the_step():
    """Of the Gaussian's probability flow, whose solution between two levels is known."""
    objective, std, errors = OBJECTIVES["flow"], 0.3, {}
    for order in (1, 2):
        for steps in (40, 80, 160):
            times = objective.falling_times(steps, -4.0).double()
            solver = Solver(objective, times, Method(order=order, eta=0.0), limit=None)
            x = x_t = torch.full((1, 1, 1, 1), 0.7, dtype=torch.float64)
            for t in times[:-1]:
                x = solver.step(exact(objective, x, t, std), t, x).prev_sample
            (alpha, last_alpha), (sigma, last_sigma) = (level[[0, -1]] for level in objective.levels(times))
            spreads = [(a**2 * std**2 + s**2) ** 0.5 for a, s in ((alpha, sigma), (last_alpha, last_sigma))]
            solution = last_alpha * MEAN + spreads[1] / spreads[0] * (x_t - alpha * MEAN)
            errors[order, steps] = (x - solution).abs().item()
    assert errors[1, 80] / errors[1, 160] == pytest.approx(2, rel=0.1)
    assert errors[2, 40] / errors[2, 80] == pytest.approx(4, rel=0.2)
    assert errors[2, 80] / errors[2, 160] == pytest.approx(4, rel=0.1)


def test_rounds_repeat_every_step_but_the_last_and_keep_the_distribution(objective):
    solver = Solver(objective, objective.falling_times(25, -4.0), METHODS["ancestral"], rounds=4, limit=None)
    assert len(solver.timesteps) == 24 * 4 + 1
    assert solver.timesteps.unique().numel() == 25
    images = sample(partial(exact, objective, std=0.25), solver, gaussian_noise(1, 192), torch.Generator())
    assert images.mean().item() == pytest.approx(MEAN, abs=0.01)
    # Each round repeats an ancestral step, which loses spread; without the noise added between them, 1/4 would be left.
    assert images.std().item() / 0.25 == pytest.approx(0.88, abs=0.06)


def test_estimates_are_clipped(objective):
    def exaggerated(x_t, t):
        return objective.prediction(3 * objective.clean(exact(objective, x_t, t), x_t, t), x_t, t).float()

    for name in METHODS:
        assert sample(exaggerated, objective.sampler(name, 10), gaussian_noise(4)).abs().max() == 1


@pytest.mark.parametrize("steps", [10, 50])
def test_ancestral_sampling_has_the_spread_of_its_affine_steps(objective, steps):
    """Each step draws from q(x' | x_t, x_0), whose mean and variance follow from Bayes' rule for Gaussians."""
    solver = objective.sampler("ancestral", steps)
    alpha, sigma = objective.levels(solver.timesteps)
    levels = [*zip(alpha.double().tolist(), sigma.double().tolist(), strict=True), (1.0, 0.0)]
    expected = []
    for std in STDS:
        variance = levels[0][1] ** 2
        for (a, s), (next_a, next_s) in pairwise(levels):
            per_x = a * std**2 / (a**2 * std**2 + s**2)  # d x_0 / d x_t
            ratio = a / next_a
            added = s**2 - ratio**2 * next_s**2
            slope = (ratio * next_s**2 + next_a * added * per_x) / s**2
            variance = slope**2 * variance + added * next_s**2 / s**2
        expected.append(variance**0.5 / std)
    assert sampled_spread(partial(exact, objective), solver) == pytest.approx(expected, abs=0.02)


def test_larger_images_start_at_more_noise():
    """Up to the last timestep, where there are timesteps; EDM's is a setting."""
    flow, linear, edm = OBJECTIVES["flow"], OBJECTIVES["linear"], OBJECTIVES["edm"]
    assert flow.start((8, 8)) == -4
    assert flow.start((32, 32)) == flow.start((16, 64)) == pytest.approx(-4 - math.log(4))
    assert (
        linear.start((1024, 1024)) == pytest.approx(linear.start((64, 64)), abs=1e-6) == pytest.approx(-5.06, abs=0.01)
    )
    assert linear.sampler("dpm++", 5, (1024, 1024)).timesteps[0] == 999
    assert edm.start((8, 8)) == edm.start((512, 512)) == -math.log(80)


def test_images_may_be_on_another_device_than_the_times(objective):
    """Tensors without values stand in for those of a GPU."""
    for name in METHODS:
        solver = objective.sampler(name, 4)
        x = sample(lambda x_t, t: x_t, solver, torch.zeros(2, 1, 4, 4, device="meta"), [torch.Generator()] * 2)
        assert x.device.type == "meta"
