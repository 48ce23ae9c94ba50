"""The monitor on models with known losses and samples with known statistics."""

from dataclasses import dataclass

import pytest
import torch
from helpers import MEAN, SPREAD
from helpers import gaussian_flow as exact

from diffunet.core.rng import BatchRNG
from diffunet.data.columns import Column
from diffunet.data.config import DataConfig
from diffunet.data.dataset import ImageDataset
from diffunet.evaluation.monitor import Monitor
from diffunet.objectives.flow import Flow, FlowConfig

CPU = torch.device("cpu")


def gaussian_images(count: int = 600, channels: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    image = MEAN + SPREAD * torch.randn(count, channels, 8, 8, generator=generator)
    return ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


@dataclass(frozen=True)
class NoisyCopy(Column):
    """A source made of the image itself, with random noise."""

    def prepare(self, value: torch.Tensor, image: torch.Tensor, rng: BatchRNG) -> torch.Tensor:
        return image + rng.normal_like(image)


def monitor_of(images: torch.Tensor, held_out: float = 0.4) -> Monitor:
    config = DataConfig(resolution=8, channels=images.shape[1], bit_depth=8, held_out=held_out)
    return Monitor(Flow(FlowConfig()), *ImageDataset(config, images).split_held_out())


def test_the_exact_model_has_equal_losses_and_those_of_the_closed_form():
    """By noise it is the variance of noise - x_0 given x_t."""
    found = monitor_of(gaussian_images()).losses(exact, CPU)
    assert abs(found["val_loss"] - found["train_eval_loss"]) < 3 * found["val_loss_error"]
    for band in range(4):
        s = (band + (torch.arange(1000).double() + 0.5) / 1000) / 4
        expected = (SPREAD**2 / ((1 - s) ** 2 * SPREAD**2 + s**2)).mean().item()
        assert found[f"val_loss_noise{25 * band}-{25 * band + 25}"] == pytest.approx(expected, rel=0.05)


def test_a_memorizing_model_has_a_higher_validation_loss():
    """The exact model of the training set alone: the mean of its images, weighted by likelihood."""
    monitor = monitor_of(gaussian_images(60))
    images = monitor.trained["image"].float() / 127.5 - 1

    def memorizing(x_t, t):
        s = (t / 1000)[:, None]
        away = (x_t.flatten(1)[:, None] - (1 - s[..., None]) * images.flatten(1)).square().sum(-1)
        weights = (-away / (2 * s**2)).softmax(1)
        x_0 = (weights @ images.flatten(1)).reshape(x_t.shape)
        return (x_t - x_0) / (t / 1000 + 0.1)[:, None, None, None]  # finite where there is no noise

    found = monitor.losses(memorizing, CPU)
    assert found["val_loss"] - found["train_eval_loss"] > 5 * found["val_loss_error"]


def test_color_shifts_and_low_contrast():
    images = gaussian_images(channels=3)
    monitor = monitor_of(images)
    same = monitor.colors(images[:300])
    assert [same[f"mean_shift/{channel}"] for channel in range(3)] == pytest.approx([0, 0, 0], abs=0.01)
    assert [same[f"std_ratio/{channel}"] for channel in range(3)] == pytest.approx([1, 1, 1], abs=0.02)
    tinted = images[:300].float()
    tinted[:, 0] += 51
    tinted[:, 2] = 128 + 0.5 * (tinted[:, 2] - 128)
    found = monitor.colors(tinted.clamp(0, 255).to(torch.uint8))
    assert found["mean_shift/0"] == pytest.approx(0.2, abs=0.02)
    assert found["mean_shift/1"] == pytest.approx(0, abs=0.01)
    assert found["std_ratio/2"] == pytest.approx(0.5, abs=0.02)


def test_kernel_distance_is_zero_within_its_error_and_grows():
    monitor = monitor_of(gaussian_images())
    near, far = (monitor.distance(images) for images in (gaussian_images(64, seed=1), 255 - gaussian_images(64)))
    assert abs(near["kernel_distance"]) < 4 * near["kernel_distance_error"]
    assert far["kernel_distance"] > 10 * abs(near["kernel_distance"])
    assert near["sampled_images"] == 64


def test_the_model_receives_conditions_as_the_data_prepare_them():
    """Those made of the image are neither flipped nor distorted, and have the same noise every time."""
    images, received = gaussian_images(40), []
    columns = {"source": NoisyCopy(torch.zeros(40)), "label": Column(torch.arange(40))}
    config = DataConfig(resolution=8, channels=1, bit_depth=8, held_out=0.4, random_flip=True, augmentation=0.5)
    dataset = ImageDataset(config, images, columns)
    monitor = Monitor(Flow(FlowConfig()), *dataset.split_held_out())

    def model(x_t, t, **conditions):
        received.append(conditions)
        return exact(x_t, t)

    found = monitor.losses(model, CPU)
    assert all(turn.keys() == {"source", "label"} for turn in received)
    assert all(torch.equal(turn["source"], received[0]["source"]) for turn in received[:4])  # held out, by noise level
    noise = received[0]["source"] - (images[received[0]["label"]] / 127.5 - 1)
    assert abs(noise.mean()) < 0.15
    assert abs(noise.std() - 1) < 0.1
    assert monitor.losses(model, CPU) == found


def test_conditions_leave_the_noise_of_the_losses_as_it_is():
    images = gaussian_images(40)
    config = DataConfig(resolution=8, channels=1, bit_depth=8, held_out=0.4)
    plain, noisy = (ImageDataset(config, images, columns) for columns in ({}, {"source": NoisyCopy(torch.zeros(40))}))
    found, expected = (
        Monitor(Flow(FlowConfig()), *dataset.split_held_out()).losses(lambda x_t, t, **_: exact(x_t, t), CPU)
        for dataset in (noisy, plain)
    )
    assert found == expected


def test_no_losses_without_held_out_images():
    monitor = monitor_of(gaussian_images(30), held_out=0.0)
    assert monitor.losses(exact, CPU) == {}
    assert "mean_shift/0" in monitor(exact, gaussian_images(8), CPU)
