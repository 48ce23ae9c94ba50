"""EMAs compared with explicit sums over all former weights."""

import numpy as np
import pytest
import torch

from diffunet.core.errors import UserError
from diffunet.training.config import TrainConfig
from diffunet.training.ema import (
    EMA,
    STDS,
    LeastLoss,
    list_snapshots,
    posthoc_coefficients,
    posthoc_ema,
    power_ema_rate,
    save_snapshot,
    snapshot_near,
    std_to_gamma,
)

STEPS = 400


def profile(std: float, steps: int = STEPS) -> np.ndarray:
    """Return the coefficient of each step's weights in a power-function EMA, by its recursion."""
    coefficients = np.zeros(steps)
    rate_at = power_ema_rate(std)
    for step in range(steps):
        coefficients *= 1 - rate_at(step)
        coefficients[step] += rate_at(step)
    return coefficients


@pytest.fixture
def run(tmp_path):
    """Return a folder with 16 snapshots of the EMAs of a random walk, the walk (STEPS, 3), and the EMAs."""
    generator = torch.Generator().manual_seed(0)
    path = 1 + 0.02 * torch.randn(STEPS, 3, generator=generator).cumsum(0)
    model = torch.nn.Linear(3, 1, bias=False)
    averages = {std: EMA(model, power_ema_rate(std)) for std in STDS}
    for step, weights in enumerate(path):
        model.weight.data = weights[None].clone()
        for average in averages.values():
            average.update(step)
        if (step + 1) % (STEPS // 16) == 0:
            save_snapshot(tmp_path, step + 1, {std: average.model.state_dict() for std, average in averages.items()})
    return tmp_path, path.double(), averages


@pytest.mark.parametrize("std", [0.02, 0.05, 0.1, 0.2, 0.25])
def test_ema_std_is_the_standard_deviation_of_the_profile(std):
    """Measured from the recursion; the coefficients grow as a power of the time."""
    coefficients, times = profile(std, 20_000), (np.arange(20_000) + 0.5) / 20_000
    mean = (coefficients * times).sum()
    assert coefficients.sum() == pytest.approx(1)
    assert ((coefficients * (times - mean) ** 2).sum()) ** 0.5 == pytest.approx(std, rel=0.01)
    gamma = std_to_gamma(std)
    assert coefficients[10_000] / coefficients[-1] == pytest.approx(0.5**gamma, rel=0.02)


def test_emas_equal_explicit_sums(run):
    _, path, averages = run
    for std, average in averages.items():
        expected = torch.from_numpy(profile(std)) @ path
        torch.testing.assert_close(average.model.weight[0].double(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("std", [0.03, 0.05, 0.07, 0.1, 0.15, 0.2])
def test_an_ema_of_any_length_is_reconstructed_from_snapshots(run, std):
    """The error is below 2 % of the difference between a short and a long EMA."""
    folder, path, _ = run
    found = posthoc_ema(folder, std)["weight"][0].double()
    expected = torch.from_numpy(profile(std)) @ path
    scale = (torch.from_numpy(profile(0.03)) @ path - torch.from_numpy(profile(0.2)) @ path).norm()
    assert (found - expected).norm() < 0.02 * scale


def test_an_ema_of_an_earlier_time_is_reconstructed(run):
    folder, path, _ = run
    expected = torch.from_numpy(profile(0.15, 200)) @ path[:200]
    found = posthoc_ema(folder, 0.15, until=0.5)["weight"][0].double()
    torch.testing.assert_close(found, expected, atol=4e-3, rtol=0)
    assert not torch.allclose(found, posthoc_ema(folder, 0.15)["weight"][0].double(), atol=4e-3)


def test_coefficients_sum_to_one_and_pick_a_stored_ema():
    coefficients = posthoc_coefficients([25 * n for n in range(1, 17)], 400, 0.02)
    assert sum(coefficients.values()) == pytest.approx(1)
    expected = {(100, 0.05): 0, (100, 0.1): 0, (200, 0.05): 1, (200, 0.1): 0}
    assert posthoc_coefficients([100, 200], 200, 0.05) == pytest.approx(expected)


def test_snapshot_closest_to_a_share_of_the_training(run):
    folder, path, _ = run
    assert list(list_snapshots(folder))[:2] == [25, 50]
    expected = torch.from_numpy(profile(0.05, 100)) @ path[:100]
    torch.testing.assert_close(snapshot_near(folder, 0.26)["weight"][0].double(), expected, atol=2e-3, rtol=0)
    assert snapshot_near(folder / "elsewhere", 0.26) is None


def test_a_length_out_of_range_and_missing_snapshots_are_errors(run, tmp_path):
    folder, *_ = run
    with pytest.raises(UserError, match="ema length: 0.5 is not between 0.02 and 0.25 of the training"):
        posthoc_ema(folder, 0.5)
    with pytest.raises(UserError, match="no snapshots; train with --train.snapshots 16"):
        posthoc_ema(tmp_path / "elsewhere", 0.1)


def test_buffers_are_copied_from_the_model(tmp_path):
    model = torch.nn.BatchNorm1d(2)
    averages = {std: EMA(model, lambda step: 0.5) for std in STDS}
    model(torch.randn(8, 2) + 3)
    for average in averages.values():
        average.update(0)
        assert torch.equal(average.model.running_mean, model.running_mean)
    save_snapshot(tmp_path, 1, {std: average.model.state_dict() for std, average in averages.items()})
    torch.testing.assert_close(posthoc_ema(tmp_path, 0.1)["running_mean"], model.running_mean, atol=2e-3, rtol=0)
    assert posthoc_ema(tmp_path, 0.1)["num_batches_tracked"] == 1


def test_an_ema_of_a_share_of_the_training_leaves_its_first_weights_exponentially():
    """The closed form: d^k w_0 + (1 - d) sum_j d^(k - j) w_j with d = 1 - 1 / (share * steps)."""
    config = TrainConfig(steps=200, ema_share=0.1)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(201, 3, generator=generator)
    model = torch.nn.Linear(3, 1, bias=False)
    model.weight.data = weights[:1].clone()
    ema = EMA(model, lambda step: 1 - config.ema_decay_at(step))
    assert torch.equal(ema.model.weight[0], weights[0])
    for step in range(200):
        model.weight.data = weights[step + 1][None].clone()
        ema.update(step)
        if step + 1 in (1, 20, 200):
            decay = 1 - 1 / 20
            own = decay ** np.arange(step, -1, -1) * (1 - decay) @ weights[1 : step + 2].double().numpy()
            expected = decay ** (step + 1) * weights[0].double() + torch.from_numpy(own)
            torch.testing.assert_close(ema.model.weight[0].double(), expected, atol=1e-6, rtol=1e-5)
    assert decay**20 == pytest.approx(np.exp(-1), abs=0.02)
    assert TrainConfig(ema_share=0.1, steps=3).ema_decay_at(0) == 0


def test_the_least_loss_keeps_the_weights_of_its_step():
    model = torch.nn.Linear(1, 1, bias=False)
    least = LeastLoss(model)
    for step, loss in ((1, 0.5), (2, 0.3), (3, 0.4), (4, 0.3)):
        model.weight.data.fill_(step)
        least.update(model, step, loss)
    assert (int(least.step), float(least.loss), float(least.model.weight)) == (2, 0.3, 2.0)
