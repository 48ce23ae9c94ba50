import itertools

import pytest
import torch
from helpers import MEAN, SPREAD, gaussian_noise, gaussian_posterior
from diffusers.training_utils import compute_snr

from diffunet.objectives.ddpm import DDPM, DDPMConfig
from diffunet.core.rng import BatchRNG
from diffunet.sampling.loop import sample
from diffunet.core.errors import UserError

PREDICTIONS = ("epsilon", "sample", "v_prediction")


def schedules():
    """Every prediction type with every noise that it is allowed."""
    for prediction, betas, zero_snr in itertools.product(PREDICTIONS, ("linear", "cosine"), (False, True)):
        if not (zero_snr and prediction == "epsilon"):
            yield DDPMConfig(
                prediction_type=prediction, beta_schedule=betas, rescale_betas_zero_snr=zero_snr
            )


def name(config: DDPMConfig) -> str:
    return f"{config.prediction_type}-{config.beta_schedule}{'-zero-snr' * config.rescale_betas_zero_snr}"


class GaussianDenoiser:
    """The exact network for data of independent pixels N(MEAN, SPREAD^2): the conditional means given x_t."""

    def __init__(self, config: DDPMConfig):
        self.config = config
        self.alpha_bar = config.scheduler().alphas_cumprod.double()

    def __call__(self, x_t, t):
        assert torch.equal(t, t.round()), "a network is trained on whole steps only"
        a = self.alpha_bar[t.long()].reshape(-1, 1, 1, 1)
        x_0, noise = gaussian_posterior(x_t, a.sqrt(), (1 - a).sqrt())
        v = a.sqrt() * noise - (1 - a).sqrt() * x_0
        return {"epsilon": noise, "sample": x_0, "v_prediction": v}[self.config.prediction_type].float()


def draw(config: DDPMConfig, sampler: str, steps: int) -> torch.Tensor:
    sampler = DDPM(config).sampler(sampler, steps)
    return sample(GaussianDenoiser(config), sampler, gaussian_noise(), torch.Generator().manual_seed(1))


def expected_spread(config: DDPMConfig, sampler: str, steps: int) -> float:
    """What a sampler makes of the Gaussian, relative to SPREAD.

    In closed form for the first-order ones, whose steps are affine in x_t: DDIM (Song et al. 2021,
    equation 12) and DDPM's ancestral step (Ho et al. 2020, equation 7), which euler-a is as well.
    """
    if sampler not in ("ddim", "ddpm", "euler-a"):
        return 1.0
    alpha_bar = GaussianDenoiser(config).alpha_bar
    levels = [*alpha_bar[torch.arange(1000, 0, -1000 // steps) - 1].tolist(), 1.0]
    variance = 1.0
    for a, before in itertools.pairwise(levels):
        per_x = SPREAD**2 * a**0.5 / (a * SPREAD**2 + 1 - a)                   # d x_0 / d x_t
        if sampler == "ddim":
            slope, added = before**0.5 * per_x + (1 - before) ** 0.5 * (1 - a**0.5 * per_x) / (1 - a) ** 0.5, 0.0
        else:
            beta = 1 - a / before
            slope = (before**0.5 * beta * per_x + (a / before) ** 0.5 * (1 - before)) / (1 - a)
            added = beta * (1 - before) / (1 - a)
        variance = slope**2 * variance + added
    return variance**0.5 / SPREAD


@pytest.mark.parametrize("config", list(schedules()), ids=name)
@pytest.mark.parametrize("sampler", DDPM.samplers)
def test_samplers_recover_mean_and_spread_of_a_gaussian(config, sampler):
    try:
        x = draw(config, sampler, 100)
    except UserError as refused:
        assert sampler == "euler-a"
        assert config.prediction_type in str(refused)
        return
    assert x.mean().item() == pytest.approx(MEAN, abs=0.004)
    assert x.std().item() / SPREAD == pytest.approx(expected_spread(config, sampler, 100), abs=0.012)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_first_order_samplers_converge(sampler):
    assert expected_spread(DDPMConfig(), sampler, 1000) == pytest.approx(1, abs=0.015)
    found = draw(DDPMConfig(), sampler, 1000).std().item() / SPREAD
    assert found == pytest.approx(expected_spread(DDPMConfig(), sampler, 1000), abs=0.012)


@pytest.mark.parametrize("config", list(schedules()), ids=name)
def test_the_default_sampler_is_right_at_its_default_steps(config):
    x = draw(config, "dpm++", 25)
    assert x.mean().item() == pytest.approx(MEAN, abs=0.004)
    assert x.std().item() / SPREAD == pytest.approx(1, abs=0.035)


REFUSED = {
    "unknown": ("dpm+", 20, {}, "dpm\\+ is not one of .* did you mean dpm\\+\\+"),
    "too many steps": ("dpm++", 1001, {}, "1001 is not between 1 and the 1000"),
    "no step": ("dpm++", 0, {}, "0 is not between"),
    "ddim that misses the end": ("ddim", 300, {}, "divides 1000, not 300; try 250"),
    "euler-a without x_0 clip": ("euler-a", 20, {"beta_schedule": "cosine"}, "euler-a cannot undo cosine"),
    "euler-a of images": ("euler-a", 20, {"prediction_type": "sample"}, "euler-a cannot use .* sample"),
}


@pytest.mark.parametrize(("sampler", "steps", "changes", "message"), REFUSED.values(), ids=REFUSED)
def test_wrong_combinations_are_refused_by_name(sampler, steps, changes, message):
    with pytest.raises(UserError, match=message):
        DDPM(DDPMConfig(**changes)).sampler(sampler, steps)


def test_zero_snr_with_epsilon_is_refused_by_name():
    with pytest.raises(ValueError, match="rescale_betas_zero_snr .* epsilon"):
        DDPMConfig(rescale_betas_zero_snr=True, prediction_type="epsilon")


@pytest.mark.parametrize("sampler", DDPM.samplers)
def test_one_generator_for_each_image_makes_it_independent_of_the_batch(sampler):
    config = DDPMConfig()

    def images(seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = torch.stack([torch.randn(1, 8, 8, generator=generator) for generator in generators])
        return sample(GaussianDenoiser(config), DDPM(config).sampler(sampler, 10), noise, generators)

    torch.testing.assert_close(images(range(5))[3], images([3])[0])


@pytest.mark.parametrize("config", list(schedules()), ids=name)
def test_the_exact_network_has_the_least_loss(config):
    """In closed form: the variance of the target given x_t, averaged over t."""
    diffusion = DDPM(config)
    generator = torch.Generator().manual_seed(0)
    image = MEAN + SPREAD * torch.randn(4000, 1, 4, 4, generator=generator)
    exact = GaussianDenoiser(config)
    a = exact.alpha_bar
    remaining = SPREAD**2 * (1 - a) / (a * SPREAD**2 + 1 - a)                  # variance of x_0 given x_t
    factor = {"epsilon": a / (1 - a), "sample": torch.ones_like(a), "v_prediction": 1 / (1 - a)}
    expected = (remaining * factor[config.prediction_type]).mean().item()
    found = diffusion.loss(exact, image, BatchRNG(generator))["loss"].mean().item()
    assert found == pytest.approx(expected, rel=0.03)
    wrong = diffusion.loss(lambda x_t, t: exact(x_t, t) + 0.1, image, BatchRNG(generator))["loss"].mean().item()
    assert wrong == pytest.approx(expected + 0.01, rel=0.03)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_weights(prediction):
    """min(SNR, gamma) / SNR on the noise's error, by diffusers' SNR, in terms of each prediction."""
    config = DDPMConfig(prediction_type=prediction, min_snr_gamma=5.0)
    diffusion = DDPM(config)
    t = torch.arange(0, 1000, 37)
    snr = compute_snr(diffusion.scheduler, t)
    per_error = {"epsilon": snr, "sample": 1, "v_prediction": snr + 1}[prediction]
    torch.testing.assert_close(diffusion._weight(t), snr.clamp(max=5) / per_error, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_min_snr_is_finite_without_any_signal(prediction):
    config = DDPMConfig(prediction_type=prediction, min_snr_gamma=5.0, rescale_betas_zero_snr=True)
    assert DDPM(config)._weight(torch.tensor([999])).isfinite().all()


def test_the_weight_is_in_the_loss_and_not_in_its_parts():
    weighted = DDPM(DDPMConfig(prediction_type="v_prediction", min_snr_gamma=5.0))
    plain = DDPM(DDPMConfig(prediction_type="v_prediction"))
    image = torch.randn(64, 1, 4, 4)

    def losses(diffusion):
        return diffusion.loss(lambda x_t, t: x_t, image, BatchRNG(torch.Generator().manual_seed(0)))

    t = (torch.rand(64, generator=torch.Generator().manual_seed(0)) * 1000).long()
    found, unweighted = losses(weighted), losses(plain)
    torch.testing.assert_close(found.pop("loss"), unweighted.pop("loss") * weighted._weight(t))
    torch.testing.assert_close(found, unweighted, equal_nan=True)
