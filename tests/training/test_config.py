"""Optimizers and schedules of `train`."""

import pytest
import torch

from diffunet.training.config import TrainConfig


def trained(config: TrainConfig, gradients: list[float]) -> list[float]:
    """Return a weight, 1 at first, after each step with these gradients."""
    weight = torch.nn.Parameter(torch.ones(()))
    optimizer, found = config.build_optimizer(torch.nn.ParameterList([weight])), []
    for gradient in gradients:
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        found.append(weight.item())
    return found


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_has_nesterov_momentum_and_an_l2_penalty(momentum):
    """v <- m v + g, w <- w - lr (g + m v), where g has the gradient of the penalty."""
    config = TrainConfig(optimizer="sgd", learning_rate=0.1, momentum=momentum, weight_decay=0.5)
    weight, velocity, expected = 1.0, 0.0, []
    for gradient in (1.0, -2.0, 0.5):
        slope = gradient + 0.5 * weight
        velocity = momentum * velocity + slope
        weight -= 0.1 * (slope + momentum * velocity)
        expected.append(weight)
    assert trained(config, [1.0, -2.0, 0.5]) == pytest.approx(expected)


def test_adamw_is_the_default_and_can_skip_steps():
    plain = torch.nn.Parameter(torch.ones(()))
    expected = torch.optim.AdamW([plain], lr=2e-4, betas=(0.9, 0.999), weight_decay=0.0)
    plain.grad = torch.tensor(3.0)
    expected.step()
    assert trained(TrainConfig(), [3.0]) == pytest.approx([plain.item()])
    for name in ("adamw", "sgd"):
        optimizer = TrainConfig(optimizer=name).build_optimizer(torch.nn.ParameterList([plain]))
        assert optimizer.defaults["fused"]


def test_poly_is_the_power_of_the_steps_that_are_left():
    config = TrainConfig(steps=100, warmup_steps=10, learning_rate=2.0, lr_schedule="poly")
    found = [config.learning_rate_at(step) for step in (4, 50, 99, 100, 120)]
    assert found == pytest.approx([2 * 0.5 * 0.96**0.9, 2 * 0.5**0.9, 2 * 0.01**0.9, 0, 0])


def test_a_trapezoid_is_constant_but_for_its_last_fifth():
    config = TrainConfig(steps=100, warmup_steps=10, learning_rate=2.0, lr_schedule="trapezoid")
    found = [config.learning_rate_at(step) for step in (4, 50, 80, 90, 99)]
    assert found == pytest.approx([1.0, 2.0, 2.0, 1.0, 0.1])
