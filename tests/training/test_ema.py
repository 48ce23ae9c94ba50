"""Averages of weights against sums over the whole past."""

import numpy as np
import pytest
import torch

from diffunet.training.ema import (
    LENGTHS,
    EMA,
    posthoc_ema,
    std_to_gamma,
    list_snapshots,
    posthoc_coefficients,
    power_ema_rate,
    save_snapshot,
    snapshot_near,
)
from diffunet.core.errors import UserError

STEPS = 400


def profile(length: float, steps: int = STEPS) -> np.ndarray:
    """How much each step's weights count in a power-function average, by its recursion."""
    counts = np.zeros(steps)
    share_at = power_ema_rate(length)
    for step in range(steps):
        counts *= 1 - share_at(step)
        counts[step] += share_at(step)
    return counts


@pytest.fixture
def run(tmp_path):
    """The weights of a training that wanders, (STEPS, 3), and the folder with 16 snapshots of its averages."""
    generator = torch.Generator().manual_seed(0)
    path = 1 + 0.02 * torch.randn(STEPS, 3, generator=generator).cumsum(0)
    model = torch.nn.Linear(3, 1, bias=False)
    averages = {length: EMA(model, power_ema_rate(length)) for length in LENGTHS}
    for step, weights in enumerate(path):
        model.weight.data = weights[None].clone()
        for average in averages.values():
            average.update(model, step)
        if (step + 1) % (STEPS // 16) == 0:
            save_snapshot(tmp_path, step + 1, averages)
    return tmp_path, path.double(), averages


@pytest.mark.parametrize("length", [0.02, 0.05, 0.1, 0.2, 0.25])
def test_the_length_is_the_spread_of_the_profile(length):
    """Measured from the recursion; the weights count towards the end as a power of the time."""
    counts, times = profile(length, 20_000), (np.arange(20_000) + 0.5) / 20_000
    mean = (counts * times).sum()
    assert counts.sum() == pytest.approx(1)
    assert ((counts * (times - mean) ** 2).sum()) ** 0.5 == pytest.approx(length, rel=0.01)
    gamma = std_to_gamma(length)
    assert counts[10_000] / counts[-1] == pytest.approx(0.5**gamma, rel=0.02)


def test_the_kept_averages_are_the_sums(run):
    _, path, averages = run
    for length, average in averages.items():
        expected = torch.from_numpy(profile(length)) @ path
        torch.testing.assert_close(average.model.weight[0].double(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("length", [0.03, 0.05, 0.07, 0.1, 0.15, 0.2])
def test_any_length_follows_from_the_snapshots(run, length):
    """Beside the average that was never kept, to a small part of what the lengths differ by."""
    folder, path, _ = run
    found = posthoc_ema(folder, length)["weight"][0].double()
    expected = torch.from_numpy(profile(length)) @ path
    differ = (torch.from_numpy(profile(0.03)) @ path - torch.from_numpy(profile(0.2)) @ path).norm()
    assert (found - expected).norm() < 0.02 * differ


def test_an_average_as_of_an_earlier_time(run):
    folder, path, _ = run
    expected = torch.from_numpy(profile(0.15, 200)) @ path[:200]
    found = posthoc_ema(folder, 0.15, until=0.5)["weight"][0].double()
    torch.testing.assert_close(found, expected, atol=4e-3, rtol=0)
    assert not torch.allclose(found, posthoc_ema(folder, 0.15)["weight"][0].double(), atol=4e-3)


def test_weights_that_stand_still_stay():
    shares = posthoc_coefficients([25 * n for n in range(1, 17)], 400, 0.02)
    assert sum(shares.values()) == pytest.approx(1)
    kept = {(100, 0.05): 0, (100, 0.1): 0, (200, 0.05): 1, (200, 0.1): 0}
    assert posthoc_coefficients([100, 200], 200, 0.05) == pytest.approx(kept)


def test_the_snapshot_nearest_to_a_share_of_the_training(run):
    folder, path, _ = run
    assert list(list_snapshots(folder))[:2] == [25, 50]
    expected = torch.from_numpy(profile(0.05, 100)) @ path[:100]
    torch.testing.assert_close(snapshot_near(folder, 0.26)["weight"][0].double(), expected, atol=2e-3, rtol=0)
    assert snapshot_near(folder / "elsewhere", 0.26) is None


def test_mistakes_are_named(run, tmp_path):
    folder, *_ = run
    with pytest.raises(UserError, match="from 0.02 to 0.25 of the training, not 0.5"):
        posthoc_ema(folder, 0.5)
    with pytest.raises(UserError, match="no snapshots; train with --train.snapshots 16"):
        posthoc_ema(tmp_path / "elsewhere", 0.1)


def test_buffers_are_the_models(tmp_path):
    model = torch.nn.BatchNorm1d(2)
    averages = {length: EMA(model, lambda step: 0.5) for length in LENGTHS}
    model(torch.randn(8, 2) + 3)
    for average in averages.values():
        average.update(model, 0)
        assert torch.equal(average.model.running_mean, model.running_mean)
    save_snapshot(tmp_path, 1, averages)
    torch.testing.assert_close(posthoc_ema(tmp_path, 0.1)["running_mean"], model.running_mean, atol=2e-3, rtol=0)
    assert posthoc_ema(tmp_path, 0.1)["num_batches_tracked"] == 1
