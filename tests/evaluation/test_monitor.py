"""Signs of health of models whose health is known."""

import pytest
import torch
from helpers import MEAN, SPREAD
from helpers import gaussian_flow as exact

from diffunet.data.dataset import DataConfig, ImageDataset
from diffunet.objectives.flow import Flow, FlowConfig
from diffunet.evaluation.monitor import Monitor

CPU = torch.device("cpu")


def gaussian_pictures(count: int = 600, channels: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    image = MEAN + SPREAD * torch.randn(count, channels, 8, 8, generator=generator)
    return ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def health_of(images: torch.Tensor, held_out: float = 0.4) -> Monitor:
    config = DataConfig(resolution=8, channels=images.shape[1], bit_depth=8, held_out=held_out)
    return Monitor(Flow(FlowConfig()), *ImageDataset(config, images, None).split_held_out())


def test_a_right_model_does_as_well_on_what_it_never_saw():
    """And by noise as the closed form says: the variance of noise - x_0 given x_t."""
    found = health_of(gaussian_pictures()).losses(exact, CPU)
    assert abs(found["val_loss"] - found["train_eval_loss"]) < 3 * found["val_loss_error"]
    for band in range(4):
        s = (band + (torch.arange(1000).double() + 0.5) / 1000) / 4
        expected = (SPREAD**2 / ((1 - s) ** 2 * SPREAD**2 + s**2)).mean().item()
        assert found[f"val_loss_noise{25 * band}-{25 * band + 25}"] == pytest.approx(expected, rel=0.05)


def test_a_memoriser_does_better_on_what_it_saw():
    """The exact network for data that are just the training pictures: their mean, weighted by likelihood."""
    health = health_of(gaussian_pictures(60))
    images = health.looked_at["train_eval_loss"]["image"].float() / 127.5 - 1

    def memoriser(x_t, t):
        s = (t / 1000)[:, None]
        away = (x_t.flatten(1)[:, None] - (1 - s[..., None]) * images.flatten(1)).square().sum(-1)
        weights = (-away / (2 * s**2)).softmax(1)
        x_0 = (weights @ images.flatten(1)).reshape(x_t.shape)
        return (x_t - x_0) / (t / 1000 + 0.1)[:, None, None, None]              # finite where there is no noise

    found = health.losses(memoriser, CPU)
    assert found["val_loss"] - found["train_eval_loss"] > 5 * found["val_loss_error"]


def test_a_tint_and_a_loss_of_contrast_are_seen():
    images = gaussian_pictures(channels=3)
    health = health_of(images)
    same = health.colours(images[:300])
    assert [same[f"tint_{channel}"] for channel in range(3)] == pytest.approx([0, 0, 0], abs=0.01)
    assert [same[f"contrast_{channel}"] for channel in range(3)] == pytest.approx([1, 1, 1], abs=0.02)
    tinted = images[:300].float()
    tinted[:, 0] += 51
    tinted[:, 2] = 128 + 0.5 * (tinted[:, 2] - 128)
    found = health.colours(tinted.clamp(0, 255).to(torch.uint8))
    assert found["tint_0"] == pytest.approx(0.2, abs=0.02)
    assert found["tint_1"] == pytest.approx(0, abs=0.01)
    assert found["contrast_2"] == pytest.approx(0.5, abs=0.02)


def test_the_distance_is_within_its_error_of_nothing_and_grows():
    health = health_of(gaussian_pictures())
    near, far = (health.distance(pictures) for pictures in (gaussian_pictures(64, seed=1), 255 - gaussian_pictures(64)))
    assert abs(near["kernel_distance"]) < 4 * near["kernel_distance_error"]
    assert far["kernel_distance"] > 10 * abs(near["kernel_distance"])
    assert near["drawn_images"] == 64


def test_without_pictures_held_out_there_is_no_loss_on_them():
    health = health_of(gaussian_pictures(30), held_out=0.0)
    assert health.losses(exact, CPU) == {}
    assert "tint_0" in health(exact, gaussian_pictures(8), CPU)
