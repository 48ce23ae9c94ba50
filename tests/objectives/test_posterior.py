"""Diffusion of targets under their images: against Gaussian pairs, whose exact denoiser has a closed form."""

import pytest
import torch
from helpers import GaussianPairs
from pydantic import ValidationError

from diffunet.core.rng import BatchRNG
from diffunet.objectives.posterior import SPREAD, Posterior, PosteriorConfig
from diffunet.objectives.segmentation import UNKNOWN

PROCESSES = {
    "flow": {"type": "flow"},
    "v": {"type": "ddpm", "prediction_type": "v_prediction", "beta_schedule": "cosine"},
    "epsilon": {"type": "ddpm"},
    "edm": {"type": "edm"},
}


def objective(targets: str = "numbers", channels: int = 1) -> Posterior:
    """Return the objective of numbers with mean 3 and standard deviation 2, or of classes."""
    mean, std = (0.5, 0.5) if targets == "classes" else (3.0, 2.0)
    return Posterior(PosteriorConfig(targets=targets), [mean] * channels, [std] * channels)


def rng(seed: int = 0) -> BatchRNG:
    return BatchRNG(torch.Generator().manual_seed(seed))


def nothing(x_t, t, image):
    """Predict 0."""
    return torch.zeros_like(x_t)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_loss_is_least_at_the_exact_denoiser(name):
    pairs = GaussianPairs(slope=0.7, spread=0.4)
    found = Posterior(PosteriorConfig.model_validate({"targets": "numbers", "noise": PROCESSES[name]}), [0.0], [1.0])
    image = torch.randn(2000, 1, 8, 8, dtype=torch.float64).float()
    target = pairs.target(image)

    def loss(change: float, slope: float = 0.7) -> float:
        model = GaussianPairs(slope, 0.4).denoiser(found.process)
        return found.loss(lambda *x, **c: model(*x, **c) + change, image, target, rng=rng())["loss"].mean().item()

    least, shift = loss(0), 0.05
    for change in (shift, -shift):  # errors of the exact denoiser have the mean 0, so that a shift adds its square
        assert loss(change) - least == pytest.approx(shift**2, rel=0.15)
    assert loss(0, slope=0.6) > least
    assert loss(0, slope=0.8) > least


def test_x_0_of_numbers_has_the_spread_that_noise_is_made_for():
    target = 3 + 2 * torch.randn(4, 3, 50, 50)
    clean, known = objective(channels=3).clean(target)
    assert known.all()
    assert clean.std().item() == pytest.approx(SPREAD, rel=0.02)
    assert abs(clean.mean().item()) < 0.01


def test_x_0_of_classes_is_one_hot():
    target = torch.tensor([[[0, 2], [UNKNOWN, 1]]], dtype=torch.int16)
    clean, known = objective("classes", 3).clean(target)
    assert clean.tolist() == [
        [[[SPREAD, -SPREAD], [0, -SPREAD]], [[-SPREAD, -SPREAD], [0, SPREAD]], [[-SPREAD, SPREAD], [0, -SPREAD]]]
    ]
    assert known[0].tolist() == [[[True, True], [False, True]]] * 3


@pytest.mark.parametrize("targets", ["classes", "numbers"])
def test_the_loss_is_a_mean_over_known_places(targets):
    """Against a sum by hand, for a network that predicts 0, with weights."""
    channels = 3 if targets == "classes" else 1
    target = torch.randint(0, 3, (5, 6, 4)) if targets == "classes" else torch.randn(5, 1, 6, 4)
    known = torch.rand(5, 6, 4) < 0.7
    known[2] = False
    weight = torch.rand(5, 6, 4)
    if targets == "classes":
        target = torch.where(known, target, UNKNOWN)
    else:
        target = torch.where(known[:, None], target, torch.nan)
    found = objective(targets, channels)
    seen = {}

    def model(x_t, t, image):
        seen.update(x_t=x_t, t=t)
        return torch.zeros_like(x_t)

    loss = found.loss(model, torch.zeros(5, 2, 6, 4), target, weight, rng())["loss"]
    clean, _ = found.clean(target)
    s = (seen["t"] / 1000).reshape(-1, 1, 1, 1)
    velocity = (seen["x_t"] - clean) / s  # x_t = (1 - s) x_0 + s noise
    for example in range(5):
        squares = [
            (weight[example, y, x] * velocity[example, :, y, x].square().mean()).item()
            for y in range(6)
            for x in range(4)
            if known[example, y, x]
        ]
        expected = sum(squares) / len(squares) if squares else 0.0
        assert loss[example].item() == pytest.approx(expected, rel=1e-3)
    assert loss[2] == 0


def test_unknown_numbers_reach_neither_the_network_nor_the_gradient():
    target = torch.randn(2, 1, 4, 4)
    target[:, :, 1] = torch.nan
    factor = torch.ones((), requires_grad=True)
    loss = objective().loss(lambda x_t, t, image: factor * x_t, torch.zeros(2, 1, 4, 4), target, rng=rng())["loss"]
    loss.sum().backward()
    assert loss.isfinite().all()
    assert factor.grad is not None
    assert factor.grad.isfinite()


def test_losses_by_noise_are_those_of_the_examples_in_each_bin():
    target = torch.randn(40, 1, 4, 4)
    losses = objective().loss(nothing, torch.zeros(40, 1, 4, 4), target, rng=rng())
    bins = torch.stack([values for name, values in losses.items() if name != "loss"])
    assert bins.shape == (4, 40)
    assert torch.equal(bins.nansum(0), losses["loss"])


def test_a_share_of_a_batch_has_the_losses_of_the_whole():
    image, target = torch.randn(6, 1, 4, 4), torch.randn(6, 1, 4, 4)
    whole = objective().loss(nothing, image, target, rng=rng())["loss"]
    part = slice(2, 4)
    share = BatchRNG(torch.Generator().manual_seed(0), part, 6)
    assert torch.equal(objective().loss(nothing, image[part], target[part], rng=share)["loss"], whole[part])


def test_the_image_is_never_dropped():
    assert PosteriorConfig().noise.condition_dropout == 0
    config = PosteriorConfig.model_validate({"noise": {"type": "edm"}})
    assert config.noise.condition_dropout == 0
    assert PosteriorConfig.model_validate(config.model_dump()) == config
    with pytest.raises(ValidationError, match="the image is never dropped; use 0"):
        PosteriorConfig.model_validate({"noise": {"type": "flow", "condition_dropout": 0.2}})
