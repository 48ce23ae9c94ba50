"""Samples of targets: their distribution in closed form, and their independence of seeds and batches of others."""

import pytest
import torch
from helpers import GaussianPairs, randomized, small_unet
from torch import nn

from diffunet.core.errors import UserError
from diffunet.models.averaging import Ensemble, mean_and_std
from diffunet.models.posterior import TargetDenoiser
from diffunet.models.unet import UNet
from diffunet.objectives.posterior import SPREAD, PosteriorConfig
from diffunet.sampling.posterior import TargetSamples

PROCESSES = {
    "flow": {"type": "flow"},
    "v": {"type": "ddpm", "prediction_type": "v_prediction", "beta_schedule": "cosine"},
    "epsilon": {"type": "ddpm"},
    "edm": {"type": "edm"},
}


def process_of(name: str):
    return PosteriorConfig.model_validate({"noise": PROCESSES[name]}).build_process()


class Exact(nn.Module):
    """A function in the place of a network, for targets of these statistics."""

    def __init__(self, function, mean: list[float], std: list[float]):
        super().__init__()
        self.function = function
        self.target_mean, self.target_scale = torch.tensor(mean), torch.tensor(std) / SPREAD

    def forward(self, x_t, t, image):
        return self.function(x_t, t, image=image)

    target_of = TargetDenoiser.target_of


@pytest.mark.parametrize("spread", [0.3, 0.8])
@pytest.mark.parametrize("name", PROCESSES)
def test_samples_of_gaussian_pairs_have_their_mean_and_spread(name, spread):
    process, pairs = process_of(name), GaussianPairs(slope=0.6, spread=spread)
    samples = TargetSamples(Exact(pairs.denoiser(process), [0.0], [1.0]), process, (64, 64), False, 100, 10)
    image = torch.randn(1, 1, 32, 32)
    mean, std = mean_and_std(samples.members(image))
    error = spread / 100**0.5  # of the mean over members, in each pixel
    assert ((mean - 0.6 * image).square().mean().sqrt() / error).item() == pytest.approx(1, abs=0.1)
    assert ((mean - 0.6 * image).mean().abs() < 4 * error / 32).item()
    assert std.square().mean().sqrt().item() == pytest.approx(spread, rel=0.05)
    assert torch.equal(samples(image), mean)


@pytest.mark.parametrize("name", ["flow", "v", "edm"])
def test_the_mean_of_samples_of_classes_is_their_probability(name):
    """Places whose class is drawn with the probability that the image shows, each alone: an exact network is known."""
    process = process_of(name)

    def exact(x_t, t, image):
        alpha, sigma = (level.double() for level in process.levels(t))
        apart = 2 * SPREAD * (x_t[:, 1:] - x_t[:, :1]).double()  # of the two targets, along x_t
        second = torch.sigmoid(torch.logit(image.double()) + alpha / sigma**2 * apart)
        return process.prediction(SPREAD * torch.cat([1 - 2 * second, 2 * second - 1], 1), x_t.double(), t).float()

    image = torch.tensor([0.02, 0.3, 0.5, 0.9]).repeat_interleave(256).reshape(1, 1, 32, 32)
    samples = TargetSamples(Exact(exact, [0.5, 0.5], [0.5, 0.5]), process, (32, 32), True, 40, 30)
    members = list(samples.members(image))
    assert all(torch.allclose(member.sum(1), torch.ones(1, 32, 32)) for member in members)
    certain = torch.stack([member.amax(1) > 0.95 for member in members]).float().mean()
    assert certain > 0.9
    mean = mean_and_std(members)[0][0, 1].reshape(4, -1).mean(1)
    expected = torch.tensor([0.02, 0.3, 0.5, 0.9])
    error = (expected * (1 - expected) / (40 * 256)).sqrt()
    assert ((mean - expected).abs() < 4 * error + 0.03 * (expected * (1 - expected)) ** 0.5).all(), mean


@pytest.fixture
def denoiser() -> TargetDenoiser:
    return randomized(TargetDenoiser(UNet(small_unet(in_channels=2, out_channels=2, plane_channels=3))))


def samples_of(denoiser, samples: int = 3, seed: int = 0, classes: bool = False) -> TargetSamples:
    return TargetSamples(denoiser, process_of("flow"), (16, 16), classes, samples, 3, seed)


def test_a_sample_depends_on_its_number_and_the_seed_alone(denoiser):
    image = torch.rand(1, 3, 16, 12)
    three, five = (list(samples_of(denoiser, number).members(image)) for number in (3, 5))
    assert all(torch.equal(a, b) for a, b in zip(three, five, strict=False))
    assert not torch.equal(three[0], three[1])
    other = next(samples_of(denoiser, seed=1).members(image))
    assert not torch.equal(other, three[0])
    assert torch.equal(next(samples_of(denoiser).members(image)), three[0])


def test_a_sample_does_not_depend_on_its_batch(denoiser):
    images = torch.rand(3, 3, 16, 16)
    whole = samples_of(denoiser, 1)(images)
    for image, sample in zip(images, whole, strict=True):
        torch.testing.assert_close(samples_of(denoiser, 1)(image[None])[0], sample, rtol=1e-4, atol=1e-4)


def test_members_of_several_runs_are_all_samples(denoiser):
    image = torch.rand(1, 3, 16, 16)
    several = Ensemble([samples_of(denoiser, 2), samples_of(denoiser, 3, seed=1)])
    assert len(list(several.members(image))) == 5


def test_classes_are_probabilities(denoiser):
    found = samples_of(denoiser, 2, classes=True)(torch.rand(1, 3, 16, 16))
    torch.testing.assert_close(found.sum(1), torch.ones(1, 16, 16))
    assert found.min() >= 0


def test_a_number_of_calls_that_the_process_does_not_have(denoiser):
    process = PosteriorConfig.model_validate({"noise": {"type": "ddpm", "num_train_timesteps": 5}}).build_process()
    with pytest.raises(UserError, match="steps: 9 is not between 1 and the 5 noise levels"):
        TargetSamples(denoiser, process, (16, 16), False, 1, 9)
