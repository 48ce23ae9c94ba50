"""Conditions against data whose exact conditional network has a closed form.

Images are D pixels in a row, (B, 1, 1, D), Gaussian given the conditions; everything is in fp64.
"""

import math

import pytest
import torch
from helpers import randomized, small_unet
from scipy.integrate import quad
from torch import Tensor

from diffunet.core.rng import BatchRNG
from diffunet.models.conditioning import LabelEmbedding, TextEmbedding, TimeEmbedding
from diffunet.models.denoiser import Denoiser
from diffunet.models.text_encoder import TextTransformer
from diffunet.models.unet import UNet
from diffunet.objectives.ddpm import DDPM, DDPMConfig
from diffunet.objectives.edm import EDM, EDMConfig
from diffunet.objectives.flow import Flow, FlowConfig
from diffunet.sampling.guidance import Guided
from diffunet.sampling.loop import sample

COSINE = DDPMConfig(prediction_type="v_prediction", beta_schedule="cosine")
OBJECTIVES = [DDPM(DDPMConfig()), DDPM(COSINE), EDM(EDMConfig()), Flow(FlowConfig())]


@pytest.fixture(params=OBJECTIVES, ids=["epsilon", "v", "edm", "flow"])
def objective(request):
    return request.param


@pytest.fixture(autouse=True)
def fp64():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def coefficients(objective, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (alpha, sigma, a, b), each (B, 1): x_t = alpha x_0 + sigma noise, and the target is a x_0 + b noise."""
    t = t.double().reshape(-1, 1)
    zero, one = torch.zeros_like(t), torch.ones_like(t)
    if isinstance(objective, Flow):
        return 1 - t / 1000, t / 1000, -one, one
    if isinstance(objective, EDM):
        sigma, data = (4 * t).exp(), objective.config.sigma_data
        total = (sigma**2 + data**2).sqrt()
        return 1 / total, sigma / total, sigma / (data * total), -data / total
    alpha_bar = objective.config.scheduler().alphas_cumprod.double()[t.long()]
    alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    return (
        (alpha, sigma, -sigma, alpha)
        if objective.config.prediction_type == "v_prediction"
        else (alpha, sigma, zero, one)
    )


def exact(objective, x_t: Tensor, t: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """Return the conditional mean of the target given x_t, for x_0 ~ N(mean, covariance), mean (B, D)."""
    alpha, sigma, a, b = coefficients(objective, t)
    variances, axes = torch.linalg.eigh(covariance)
    residual = (x_t.double().flatten(1) - alpha * mean) @ axes / (alpha**2 * variances + sigma**2)
    x_0, noise = mean + alpha * (variances * residual) @ axes.T, sigma * residual @ axes.T
    return (a * x_0 + b * noise).reshape(x_t.shape)


def least_error(objective, t: Tensor, covariance: Tensor) -> Tensor:
    """Return the variance of the target given x_t, (B,), its mean over the pixels."""
    alpha, sigma, a, b = coefficients(objective, t)
    variances = torch.linalg.eigvalsh(covariance)
    return ((a * sigma - b * alpha) ** 2 * variances / (alpha**2 * variances + sigma**2)).mean(1)


def all_times(objective, count: int = 4000) -> Tensor:
    u = (torch.arange(count) + 0.5) / count
    return objective.add_noise(torch.zeros(count, 1), torch.zeros(count, 1), u).t


def affine_map(objective, model, pixels: int, steps: int = 200, **conditions: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (D,) and covariance (D, D) of samples, a sampler being an affine map of the noise."""
    sampler = objective.sampler("dpm++", steps)
    sampler.limit = None
    noise = torch.cat([torch.zeros(1, pixels), torch.eye(pixels)]).reshape(-1, 1, 1, pixels)
    conditions = {name: value.expand(pixels + 1, *value.shape[1:]) for name, value in conditions.items()}
    mean, *columns = sample(model, sampler, noise, **conditions).double().reshape(-1, pixels)
    columns = torch.stack(columns) - mean
    return mean, columns.T @ columns


# ── captions: a planted attribute for each word ───────────────────────────────────────────────────

WORDS = torch.tensor([[0.5, -0.2], [-0.3, 0.4], [0.2, 0.3]])
"""What each of three words adds to the mean of two pixels; a caption is a subset of the words, all equally likely."""
CAPTIONS = torch.cartesian_prod(*3 * [torch.tensor([0.0, 1.0])])
STD = 0.1


class PlantedWords:
    """The exact network; without a caption, the mean over those of p(caption | x_t)."""

    def __init__(self, objective, withheld=None):
        self.objective, self.withheld = objective, withheld or self.mixture

    def of(self, x_t, t, caption):
        return exact(self.objective, x_t, t, caption @ WORDS, STD**2 * torch.eye(2))

    def mixture(self, x_t, t):
        alpha, sigma, *_ = coefficients(self.objective, t)
        residual = x_t.double().flatten(1)[:, None] - alpha[:, None] * (CAPTIONS @ WORDS)  # (B, 8, D)
        log_density = -residual.square().sum(2) / (2 * (alpha**2 * STD**2 + sigma**2))
        answers = torch.stack([self.of(x_t, t, caption) for caption in CAPTIONS], dim=1)
        return (log_density.softmax(1)[:, :, None, None, None] * answers).sum(1)

    def __call__(self, x_t, t, caption=None, keep_masks=None):
        if caption is None:
            return self.withheld(x_t, t)
        keep = keep_masks["caption"] if keep_masks else torch.ones(len(x_t), dtype=torch.bool)
        return torch.where(keep[:, None, None, None], self.of(x_t, t, caption), self.withheld(x_t, t))


def captioned(count: int) -> tuple[Tensor, Tensor]:
    caption = CAPTIONS[torch.arange(count) % len(CAPTIONS)]
    return (caption @ WORDS + STD * torch.randn(count, 2)).reshape(-1, 1, 1, 2), caption


def loss(objective, model, image, **conditions) -> Tensor:
    return objective.loss(model, image, BatchRNG(torch.Generator().manual_seed(1)), **conditions)["loss"]


def test_the_exact_network_of_each_caption_has_the_least_loss(objective):
    objective = type(objective)(objective.config.model_copy(update={"condition_dropout": 0.0}))
    image, caption = captioned(40_000)
    floor = least_error(objective, all_times(objective), STD**2 * torch.eye(2)).mean()
    found = loss(objective, PlantedWords(objective), image, caption=caption)
    assert abs(found.mean() - floor) < 4 * found.std() / len(found) ** 0.5
    assert found.std() / len(found) ** 0.5 < 0.03 * floor
    permuted = caption.roll(1, dims=0)
    assert loss(objective, PlantedWords(objective), image, caption=permuted).mean() > 1.1 * floor


def test_the_answer_to_a_withheld_caption_is_the_posterior_mean_of_the_mixture(objective):
    """Other answers where the caption is dropped have a larger loss."""
    dropped = type(objective)(objective.config.model_copy(update={"condition_dropout": 0.5}))
    image, caption = captioned(20_000)
    network = PlantedWords(dropped)
    least = loss(dropped, network, image, caption=caption)
    others = {
        "uniform mean of the captions": lambda x_t, t: (
            sum(network.of(x_t, t, each) for each in CAPTIONS) / len(CAPTIONS)
        ),
        "Gaussian of the same moments": lambda x_t, t: exact(
            dropped, x_t, t, CAPTIONS.mean(0) @ WORDS, STD**2 * torch.eye(2) + WORDS.T @ WORDS / 4
        ),
        "scaled": lambda x_t, t: 1.05 * network.mixture(x_t, t),
    }
    for name, answer in others.items():
        excess = loss(dropped, PlantedWords(dropped, answer), image, caption=caption) - least  # the same noise
        assert excess.mean() > 3 * excess.std() / len(excess) ** 0.5, name


# ── images and numbers: a joint Gaussian ──────────────────────────────────────────────────────────


class JointGaussian:
    """The exact network for (x, c_1, c_2, ...) ~ N(0, covariance), of any subset of the conditions."""

    def __init__(self, objective, covariance: Tensor, **parts: slice):
        self.objective, self.covariance, self.parts = objective, covariance, parts
        self.pixels = slice(0, min(part.start for part in parts.values()))

    def given(self, **conditions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean (B, D) and covariance (D, D) of x given some conditions (B, K)."""
        index = torch.cat([torch.arange(len(self.covariance))[self.parts[name]] for name in conditions])
        x, c = self.covariance[self.pixels, self.pixels], self.covariance[self.pixels][:, index]
        gain = torch.linalg.solve(self.covariance[index][:, index], c.T)  # (K, D)
        return torch.cat([*conditions.values()], dim=1) @ gain, x - c @ gain

    def __call__(self, x_t, t, keep_masks=None, **conditions):
        if not conditions:
            return exact(self.objective, x_t, t, torch.zeros(1), self.covariance[self.pixels, self.pixels])
        return exact(self.objective, x_t, t, *self.given(**conditions))


def smooth(pixels: int) -> Tensor:
    position = torch.arange(pixels)
    return 0.16 * 0.7 ** (position[:, None] - position).abs()


def observed(covariance: Tensor, *operators: Tensor, std: float = 0.1) -> Tensor:
    """Return the covariance of (x, A_1 x + noise, A_2 x + noise, ...)."""
    operator = torch.cat([torch.eye(len(covariance)), *operators])
    noise = torch.full((len(operator),), std**2)
    noise[: len(covariance)] = 0
    return operator @ covariance @ operator.T + torch.diag(noise)


PAIRS = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
"""Four pixels downscaled to two."""


def test_the_exact_network_of_a_source_has_the_least_loss(objective):
    objective = type(objective)(objective.config.model_copy(update={"condition_dropout": 0.0}))
    network = JointGaussian(objective, observed(smooth(4), PAIRS), source=slice(4, 6))
    joint = torch.randn(20_000, 6) @ torch.linalg.cholesky(network.covariance).T
    image, source = joint[:, :4].reshape(-1, 1, 1, 4), joint[:, 4:]
    _, covariance = network.given(source=source)
    floor = least_error(objective, all_times(objective), covariance).mean()
    found = loss(objective, network, image, source=source)
    assert abs(found.mean() - floor) < 4 * found.std() / len(found) ** 0.5
    assert loss(objective, lambda x_t, t, source: network(x_t, t), image, source=source).mean() > 1.1 * floor


def test_samples_with_a_source_have_the_conditional_mean_and_covariance(objective):
    network = JointGaussian(objective, observed(smooth(4), PAIRS), source=slice(4, 6))
    source = torch.tensor([[0.4, -0.2]])
    expected_mean, expected = network.given(source=source)
    mean, covariance = affine_map(objective, Guided(network, 1.0), 4, source=source)
    torch.testing.assert_close(mean, expected_mean[0], atol=0.005, rtol=0)
    torch.testing.assert_close(covariance, expected, atol=0.0015, rtol=0.02)


def test_a_fitted_linear_denoiser_reaches_the_least_loss_with_and_without_the_source(objective):
    network = JointGaussian(objective, observed(smooth(4), PAIRS), source=slice(4, 6))
    joint = torch.randn(40_000, 6) @ torch.linalg.cholesky(network.covariance).T
    image, source = joint[:, :4].reshape(-1, 1, 1, 4), joint[:, 4:]
    floors = {True: network.given(source=source)[1], False: smooth(4)}
    for u in (0.3, 0.6):
        noisy = objective.add_noise(image, torch.randn_like(image), torch.full((len(image),), u))
        for with_source, covariance in floors.items():
            inputs = torch.cat([noisy.x_t.flatten(1), source] if with_source else [noisy.x_t.flatten(1)], dim=1)
            weight = torch.linalg.lstsq(inputs, noisy.target.flatten(1).double()).solution
            error = objective.error(lambda x_t, t, h=inputs, w=weight: (h @ w).reshape(x_t.shape), noisy)
            floor = least_error(objective, noisy.t[:1], covariance).item()
            assert error.mean().item() == pytest.approx(floor, rel=0.03)


# ── guidance ──────────────────────────────────────────────────────────────────────────────────────


def guided_gaussian(objective, scale: float, mean: float, variance: float, marginal: float) -> tuple[float, float]:
    """Return the mean and standard deviation of guided samples: N(mean, variance) against N(0, marginal).

    With y = x_t / alpha and rho = sigma / alpha, the probability flow is dy/drho = eps (Song et al. 2021, DDIM,
    equation 14). It is linear, eps = rho (y - mean) / (variance + rho²), with the homogeneous solution h.
    """

    def h(rho):
        return (marginal + rho**2) ** ((1 - scale) / 2) * (variance + rho**2) ** (scale / 2)

    def source(log_rho):
        rho = math.exp(log_rho)
        return rho * scale * mean * rho / (variance + rho**2) / h(rho)

    sampler = objective.sampler("dpm++", 200)
    alpha, sigma, *_ = (float(value) for value in coefficients(objective, sampler.timesteps[:1]))
    start = sigma / alpha
    spread = sampler.init_noise_sigma / alpha
    integral = quad(source, math.log(1e-6), math.log(start), limit=200)[0]
    return h(0) * integral, h(0) * spread / h(start)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("objective", [DDPM(COSINE), EDM(EDMConfig())], ids=["v", "edm"])
def test_guided_samples_have_the_mean_and_spread_of_the_linear_flow(objective, scale):
    network = JointGaussian(objective, observed(torch.tensor([[0.16]]), torch.ones(1, 1), std=0.2), source=slice(1, 2))
    source = torch.tensor([[0.3]])
    mean, variance = network.given(source=source)
    expected = guided_gaussian(objective, scale, mean.item(), variance.item(), 0.16)
    found, covariance = affine_map(objective, Guided(network, scale), 1, source=source)
    assert found.item() == pytest.approx(expected[0], abs=0.005)
    assert covariance.item() ** 0.5 == pytest.approx(expected[1], rel=0.02)


SCALES = {"first": 3.0, "second": 1.5}


def two_conditions(objective, *operators):
    network = JointGaussian(objective, observed(smooth(4), *operators), first=slice(4, 5), second=slice(5, 6))
    x_t, t = torch.randn(5, 1, 1, 4), all_times(objective, 10)[6]
    return network, x_t, t, {"first": torch.randn(5, 1), "second": torch.randn(5, 1)}


def test_guidance_by_condition_is_the_sum_over_exact_subsets(objective):
    network, x_t, t, both = two_conditions(objective, *PAIRS[:, None])
    nothing, first = network(x_t, t), network(x_t, t, first=both["first"])
    expected = nothing + 3.0 * (first - nothing) + 1.5 * (network(x_t, t, **both) - first)
    torch.testing.assert_close(Guided(network, SCALES)(x_t, t, **both), expected, atol=1e-12, rtol=1e-12)
    ones = Guided(network, dict.fromkeys(both, 1.0))
    assert torch.equal(ones(x_t, t, **both), network(x_t, t, **both))
    only_second = Guided(network, SCALES)(x_t, t, second=both["second"])
    assert torch.equal(only_second, Guided(network, 1.5)(x_t, t, second=both["second"]))


def test_the_order_of_conditions_matters_unless_they_are_independent_given_the_noisy_image(objective):
    """Independence given x_0 is not enough: two noisy observations of one pixel are correlated given x_t."""

    def both_orders(covariance, *operators):
        network, x_t, t, both = two_conditions(objective, *operators)
        network.covariance = observed(covariance, *operators)
        swapped = dict(reversed(SCALES.items()))
        return Guided(network, SCALES)(x_t, t, **both), Guided(network, swapped)(x_t, t, **both)

    apart = torch.block_diag(smooth(2), smooth(2))
    torch.testing.assert_close(*both_orders(apart, *PAIRS[:, None]), atol=1e-12, rtol=1e-12)
    one, other = both_orders(apart, PAIRS[:1], PAIRS[:1])
    assert (one - other).abs().max() > 0.01


# ── the network itself ────────────────────────────────────────────────────────────────────────────

IDS = torch.tensor([[5, 3, 0, 0, 0, 0], [7, 0, 0, 0, 0, 0], [2, 9, 4, 6, 0, 0], [0, 0, 0, 0, 0, 0]])
"""Four captions of 2, 1, 4 and no tokens; 0 is padding."""
LABELS = torch.tensor([0, 2, 1, -1])


@pytest.fixture
def denoiser():
    encoder = TextTransformer(vocab_size=11, max_length=10, width=8, layers=2, heads=2)
    embeddings = {"caption": TextEmbedding(encoder, 8, token_dim=6, vector_dim=32), "label": LabelEmbedding(32, 3)}
    return randomized(Denoiser(UNet(small_unet(token_dim=6)), TimeEmbedding(32, 8), **embeddings)).double()


@torch.no_grad()
def test_permuting_captions_permutes_the_outputs(denoiser):
    x_t, t, order = torch.randn(1, 3, 8, 8).expand(4, -1, -1, -1), torch.tensor(500), torch.tensor([2, 0, 3, 1])
    found = denoiser(x_t, t, caption=IDS, label=LABELS)
    permuted = denoiser(x_t, t, caption=IDS[order], label=LABELS[order])
    torch.testing.assert_close(permuted, found[order], atol=1e-10, rtol=0)
    assert all((found[i] - found[j]).abs().max() > 1e-3 for i in range(4) for j in range(i))
    alone = torch.cat([denoiser(x_t[:1], t, caption=IDS[i : i + 1], label=LABELS[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(alone, found, atol=1e-10, rtol=0)


@torch.no_grad()
def test_a_condition_that_is_left_out_is_a_dropped_and_a_missing_one(denoiser):
    x_t, t, dropped = torch.randn(4, 3, 8, 8), torch.tensor(500), torch.zeros(4, dtype=torch.bool)
    both, missing = {"caption": IDS, "label": LABELS}, {"caption": 0 * IDS, "label": 0 * LABELS - 1}
    for name in both:
        left_out = denoiser(x_t, t, **{other: value for other, value in both.items() if other != name})
        for found in (
            denoiser(x_t, t, keep_masks={name: dropped}, **both),
            denoiser(x_t, t, **both | {name: missing[name]}),
        ):
            torch.testing.assert_close(found, left_out, atol=1e-10, rtol=0)
    keep = torch.tensor([True, False, True, False])
    found = denoiser(x_t, t, keep_masks={"caption": keep}, **both)
    expected = torch.where(keep[:, None, None, None], denoiser(x_t, t, **both), denoiser(x_t, t, label=LABELS))
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


@torch.no_grad()
def test_padding_changes_nothing(denoiser):
    x_t, t = torch.randn(4, 3, 8, 8), torch.tensor(500)
    found = [denoiser(x_t, t, caption=torch.nn.functional.pad(IDS, (0, end)), label=LABELS) for end in (-2, 0, 4)]
    torch.testing.assert_close(found[0], found[1], atol=1e-10, rtol=0)
    torch.testing.assert_close(found[2], found[1], atol=1e-10, rtol=0)
