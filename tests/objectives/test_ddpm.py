"""DDPM against closed forms for Gaussian data."""

import itertools

import pytest
import torch
from diffusers.training_utils import compute_snr
from helpers import MEAN, SOLVER_ERRORS, SPREAD, STDS, gaussian_noise, gaussian_posterior, sampled_spread

from diffunet.core.errors import UserError
from diffunet.core.rng import BatchRNG
from diffunet.objectives.ddpm import DDPM, DDPMConfig
from diffunet.sampling.loop import sample

PREDICTIONS = ("epsilon", "sample", "v_prediction")


def schedules():
    """Yield every prediction type with every noise schedule that it allows."""
    for prediction, betas, zero_snr in itertools.product(PREDICTIONS, ("linear", "cosine"), (False, True)):
        if not (zero_snr and prediction == "epsilon"):
            yield DDPMConfig(prediction_type=prediction, beta_schedule=betas, rescale_betas_zero_snr=zero_snr)


def name(config: DDPMConfig) -> str:
    return f"{config.prediction_type}-{config.beta_schedule}{'-zero-snr' * config.rescale_betas_zero_snr}"


class GaussianDenoiser:
    """The exact network for data of independent pixels N(MEAN, std²): the conditional means given x_t."""

    def __init__(self, config: DDPMConfig):
        self.config = config
        self.alpha_bar = config.scheduler().alphas_cumprod.double()

    def __call__(self, x_t, t, std=SPREAD):
        assert torch.equal(t, t.round()), "networks are trained on whole timesteps only"
        a = self.alpha_bar[t.long()].reshape(-1, 1, 1, 1)
        x_0, noise = gaussian_posterior(x_t, a.sqrt(), (1 - a).sqrt(), std)
        v = a.sqrt() * noise - (1 - a).sqrt() * x_0
        return {"epsilon": noise, "sample": x_0, "v_prediction": v}[self.config.prediction_type].float()


def first_order_spread(config: DDPMConfig, sampler: str, steps: int, std: float) -> float:
    """Return the spread that a first-order sampler makes of the Gaussian, relative to std, in closed form.

    Its steps are affine in x_t: DDIM (Song et al. 2021, equation 12) and DDPM's ancestral step (Ho et al. 2020,
    equation 7), which euler-a is as well.
    """
    alpha_bar = GaussianDenoiser(config).alpha_bar
    levels = [*alpha_bar[torch.arange(1000, 0, -1000 // steps) - 1].tolist(), 1.0]
    variance = 1.0
    for a, before in itertools.pairwise(levels):
        per_x = std**2 * a**0.5 / (a * std**2 + 1 - a)  # d x_0 / d x_t
        if sampler == "ddim":
            slope, added = before**0.5 * per_x + (1 - before) ** 0.5 * (1 - a**0.5 * per_x) / (1 - a) ** 0.5, 0.0
        else:
            beta = 1 - a / before
            slope = (before**0.5 * beta * per_x + (a / before) ** 0.5 * (1 - before)) / (1 - a)
            added = beta * (1 - before) / (1 - a)
        variance = slope**2 * variance + added
    return variance**0.5 / std


ERRORS = {
    **SOLVER_ERRORS,
    "unipc": {10: 0.055, 20: 0.012, 25: 0.008, 50: 0.005},
    "ddim": {10: 0.003, 20: 0.003, 25: 0.003, 50: 0.003},
    "ddpm": {20: 0.02, 50: 0.02},
    "euler-a": {20: 0.02, 50: 0.02},
}
"""Largest relative error of the spread by number of network calls; of the last three, from their own closed form."""


@pytest.mark.parametrize("config", list(schedules()), ids=name)
@pytest.mark.parametrize("sampler", ERRORS)
def test_samplers_recover_the_mean_and_spread_of_gaussians(config, sampler):
    for steps, largest in ERRORS[sampler].items():
        try:
            found = sampled_spread(GaussianDenoiser(config), DDPM(config).sampler(sampler, steps, (8, 8)))
        except UserError as unsupported:
            assert sampler == "euler-a"
            assert config.prediction_type in str(unsupported)
            return
        expected = [1.0] * len(STDS)
        if sampler in ("ddim", "ddpm", "euler-a"):
            expected = [first_order_spread(config, sampler, steps, std) for std in STDS]
        assert found == pytest.approx(expected, abs=largest), steps


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_first_order_samplers_converge(sampler):
    for std in STDS[1:]:
        assert first_order_spread(DDPMConfig(), sampler, 1000, std) == pytest.approx(1, abs=0.02)
    found = sampled_spread(GaussianDenoiser(DDPMConfig()), DDPM(DDPMConfig()).sampler(sampler, 1000), size=64)
    assert found[1:] == pytest.approx([1, 1], abs=0.03)


@pytest.mark.parametrize("sampler", DDPM.samplers())
@pytest.mark.parametrize("steps", [1, 2, 5, 50, 100])
def test_samplers_work_with_one_step_and_with_all_noise_levels(sampler, steps):
    config = DDPMConfig(prediction_type="v_prediction", num_train_timesteps=100)
    found = DDPM(config).sampler(sampler, steps)
    assert len(found.timesteps) == steps
    assert sampler != "unipc" or found.timesteps.diff().lt(0).all()
    assert sample(GaussianDenoiser(config), found, gaussian_noise(2, 4)).isfinite().all()


@pytest.mark.parametrize("sampler", ["dpm++", "sde-dpm++", "unipc", "ddim", "ddpm"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_estimates_of_the_clean_image_are_clipped(sampler, prediction):
    """A network that is off by a factor would otherwise leave the data range."""
    config = DDPMConfig(prediction_type=prediction, beta_schedule="cosine")
    exact = GaussianDenoiser(config)
    x = sample(lambda x_t, t: 3 * exact(x_t, t), DDPM(config).sampler(sampler, 20), gaussian_noise(4))
    assert x.abs().max() < 1.01


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_derives_the_noise_from_the_clipped_image(prediction):
    """An own Euler step: x_0 clipped, and the noise that takes it to x_t (equation 4 solved for the noise)."""
    config = DDPMConfig(prediction_type=prediction)
    alpha_bar = config.scheduler().alphas_cumprod

    def network(x_t, t):
        return 0.7 * x_t

    x = noise = gaussian_noise(4)
    levels = [*alpha_bar[torch.arange(1000, 0, -100) - 1], torch.tensor(1.0)]
    for a, before in itertools.pairwise(levels):
        output = network(x, a)
        x_0 = {
            "epsilon": (x - (1 - a).sqrt() * output) / a.sqrt(),
            "sample": output,
            "v_prediction": a.sqrt() * x - (1 - a).sqrt() * output,
        }[prediction].clamp(-1, 1)
        x = before.sqrt() * x_0 + (1 - before).sqrt() * (x - a.sqrt() * x_0) / (1 - a).sqrt()
    found = sample(network, DDPM(config).sampler("ddim", 10), noise)
    torch.testing.assert_close(found, x, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("config", list(schedules()), ids=name)
@pytest.mark.parametrize("total", [2, 37, 1000, 4000])
def test_noise_levels_are_those_of_diffusers_to_the_bit(config, total):
    config = config.model_copy(update={"num_train_timesteps": total})
    assert torch.equal(config.alpha_bar(), config.scheduler().alphas_cumprod)


def test_options_that_diffusers_does_not_have_are_errors():
    with pytest.raises(TypeError, match="use_lu_lambda"):
        DDPMConfig().scheduler("DPMSolverMultistepScheduler", use_lu_lambda=True)


@pytest.mark.parametrize("config", list(schedules()), ids=name)
def test_levels_between_whole_timesteps_join_those(config):
    objective = DDPM(config)
    whole = torch.arange(999)  # the last level of zero SNR has no logarithm
    torch.testing.assert_close(objective.levels(whole.double()), objective.levels(whole), check_dtype=False)
    levels = [torch.stack(objective.levels(whole[:-1].double() + share)) for share in (0.0, 0.5, 1.0)]
    assert ((levels[0] - levels[1]) * (levels[1] - levels[2]) > 0).all()


REFUSED = {
    "unknown": ("dpm+", 20, {}, "dpm\\+ is not one of .* did you mean dpm\\+\\+"),
    "too many steps": ("dpm++", 1001, {}, "1001 is not between 1 and the 1000"),
    "no step": ("dpm++", 0, {}, "0 is not between"),
    "ddim that misses the end": ("ddim", 300, {}, r"ddim needs a divisor of 1000 \(got 300\); try 250"),
    "euler-a without x_0 clip": ("euler-a", 20, {"beta_schedule": "cosine"}, "euler-a does not support epsilon"),
    "euler-a of images": ("euler-a", 20, {"prediction_type": "sample"}, "euler-a does not support .* sample; use"),
}


@pytest.mark.parametrize(("sampler", "steps", "changes", "message"), REFUSED.values(), ids=REFUSED)
def test_wrong_combinations_are_refused_by_name(sampler, steps, changes, message):
    with pytest.raises(UserError, match=message):
        DDPM(DDPMConfig(**changes)).sampler(sampler, steps)


def test_zero_snr_with_epsilon_is_refused_by_name():
    with pytest.raises(ValueError, match="rescale_betas_zero_snr .* epsilon"):
        DDPMConfig(rescale_betas_zero_snr=True, prediction_type="epsilon")


@pytest.mark.parametrize("config", list(schedules()), ids=name)
def test_the_exact_network_has_the_least_loss(config):
    """Its loss in closed form: the variance of the target given x_t, averaged over t."""
    objective = DDPM(config)
    generator = torch.Generator().manual_seed(0)
    image = MEAN + SPREAD * torch.randn(4000, 1, 4, 4, generator=generator)
    exact = GaussianDenoiser(config)
    a = exact.alpha_bar
    remaining = SPREAD**2 * (1 - a) / (a * SPREAD**2 + 1 - a)  # variance of x_0 given x_t
    factor = {"epsilon": a / (1 - a), "sample": torch.ones_like(a), "v_prediction": 1 / (1 - a)}
    expected = (remaining * factor[config.prediction_type]).mean().item()
    found = objective.loss(exact, image, BatchRNG(generator))["loss"].mean().item()
    assert found == pytest.approx(expected, rel=0.03)
    wrong = objective.loss(lambda x_t, t: exact(x_t, t) + 0.1, image, BatchRNG(generator))["loss"].mean().item()
    assert wrong == pytest.approx(expected + 0.01, rel=0.03)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_weights(prediction):
    """min(SNR, gamma) / SNR on the error of the noise, with diffusers' SNR, in terms of each target."""
    config = DDPMConfig(prediction_type=prediction, min_snr_gamma=5.0)
    objective = DDPM(config)
    t = torch.arange(0, 1000, 37)
    snr = compute_snr(config.scheduler(), t)
    per_error = {"epsilon": snr, "sample": 1, "v_prediction": snr + 1}[prediction]
    torch.testing.assert_close(objective.weight(t), snr.clamp(max=5) / per_error, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_min_snr_is_finite_without_signal(prediction):
    config = DDPMConfig(prediction_type=prediction, min_snr_gamma=5.0, rescale_betas_zero_snr=True)
    assert DDPM(config).weight(torch.tensor([999])).isfinite().all()


def test_only_the_total_loss_is_weighted():
    weighted = DDPM(DDPMConfig(prediction_type="v_prediction", min_snr_gamma=5.0))
    plain = DDPM(DDPMConfig(prediction_type="v_prediction"))
    image = torch.randn(64, 1, 4, 4)

    def losses(objective):
        return objective.loss(lambda x_t, t: x_t, image, BatchRNG(torch.Generator().manual_seed(0)))

    t = (torch.rand(64, generator=torch.Generator().manual_seed(0)) * 1000).long()
    found, unweighted = losses(weighted), losses(plain)
    torch.testing.assert_close(found.pop("loss"), unweighted.pop("loss") * weighted.weight(t))
    torch.testing.assert_close(found, unweighted, equal_nan=True)
