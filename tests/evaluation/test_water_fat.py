"""The reference method: exact on noiseless echoes, efficient on noisy ones; scores against loops."""

import itertools
import math

import numpy as np
import pytest
import torch

from diffunet.core.errors import UserError
from diffunet.core.water_fat import fat_fraction, signal_of_maps
from diffunet.data.phantoms.water_fat import water_fat
from diffunet.evaluation.water_fat import (
    _smooth_choice,
    fat_fraction_error,
    separate,
    signal_residual,
    swapped_share,
)

SIX = tuple(1.2e-3 + 1e-3 * number for number in range(6))


def fraction(maps: np.ndarray) -> np.ndarray:
    return fat_fraction(torch.as_tensor(maps)[None])[0].numpy()


def a_body(seed: int, times=SIX, snr=None, size=(64, 64)) -> tuple[np.ndarray, np.ndarray]:
    """Return echoes (E, *S) and maps (6, *S)."""
    image, maps = water_fat(np.random.default_rng(seed), size, times, 3.0, snr)
    return image[0::2] + 1j * image[1::2], maps.astype(np.float64)


@pytest.mark.parametrize("seed", range(3))
def test_noiseless_maps_are_recovered(seed):
    echoes, truth = a_body(seed)
    found, known = separate(echoes, SIX, 3.0), ~np.isnan(truth[0])
    assert np.abs(fraction(found) - fraction(truth))[known].max() < 1e-3
    for real, imag in ((0, 1), (2, 3)):
        sizes = [np.hypot(maps[real], maps[imag])[known] for maps in (found, truth)]
        assert np.abs(sizes[0] - sizes[1]).max() < 1e-3
    apart = (found[4] - truth[4] + 500) % 1000 - 500
    assert np.abs(apart[known]).max() < 0.05
    assert np.abs(found[5] - truth[5])[known].max() < 0.1
    assert signal_residual(found, echoes, SIX, 3.0, known) < 1e-9


def test_uneven_echoes_and_fields_beyond_one_turn():
    """Echoes that do not repeat fix the field itself."""
    times = (1.2e-3, 2.1e-3, 3.4e-3, 4.5e-3, 5.3e-3)
    y, x = np.mgrid[:20, :24] / 20
    maps = np.stack([0.2 + x, y, 1 - 0.5 * x, 0.3 * y, -700 + 900 * x, 40 + 50 * y])
    echoes = signal_of_maps(torch.from_numpy(maps)[None], times, 3.0)[0].numpy()
    found = separate(echoes, times, 3.0, field_range=900.0)
    assert np.abs(found - maps).max() < 1e-3


def test_volumes_and_lines():
    z, y, x = np.mgrid[:3, :8, :9] / 8
    maps = np.stack([0.5 + x, y, 1 - x, z, 150 * x - 80 * z, 40 + 50 * y])
    echoes = signal_of_maps(torch.from_numpy(maps)[None], SIX, 3.0)[0].numpy()
    assert np.abs(separate(echoes, SIX, 3.0) - maps).max() < 1e-3
    assert np.abs(separate(echoes[:, 0, 0], SIX, 3.0) - maps[:, 0, 0]).max() < 1e-3


def test_noise_of_the_fraction_is_that_of_cramer_and_rao():
    """The standard deviation over 3,000 draws of one voxel is the bound's, from the Jacobian by finite differences."""
    truth = np.array([0.6, 0.3, 0.4, 0.5, 37.0, 60.0])
    sigma, draws = 0.01, 3000
    rng = np.random.default_rng(0)

    def channels(maps: np.ndarray) -> np.ndarray:
        echoes = signal_of_maps(torch.from_numpy(maps)[None, :, None], SIX, 3.0)[0, :, 0].numpy()
        return np.concatenate([np.real(echoes), np.imag(echoes)])

    steps = np.array([1e-5, 1e-5, 1e-5, 1e-5, 1e-3, 1e-3])
    jacobian = np.stack([(channels(truth + h) - channels(truth - h)) / (2 * h.sum()) for h in np.diag(steps)], axis=1)
    covariance = sigma**2 * np.linalg.inv(jacobian.T @ jacobian)
    gradient = [
        float(fraction((truth + h)[:, None])[0] - fraction((truth - h)[:, None])[0]) / (2 * h.sum())
        for h in np.diag(steps)
    ]
    bound = math.sqrt(np.array(gradient) @ covariance @ gradient)
    clean = channels(truth)[:6] + 1j * channels(truth)[6:]
    noise = sigma * (rng.standard_normal((6, draws)) + 1j * rng.standard_normal((6, draws)))
    found = separate(clean[:, None] + noise, SIX, 3.0)
    assert fraction(found).std() == pytest.approx(bound, rel=0.06)
    assert fraction(found).mean() == pytest.approx(float(fraction(truth[:, None])[0]), abs=5 * bound / draws**0.5)
    assert found[4].std() == pytest.approx(covariance[4, 4] ** 0.5, rel=0.06)
    assert found[5].std() == pytest.approx(covariance[5, 5] ** 0.5, rel=0.06)


def test_noisy_bodies_have_no_swaps_and_smoothness_is_what_prevents_them():
    swaps = []
    for seed in range(3):
        echoes, truth = a_body(seed, SIX[:4], 20.0, (80, 80))
        expected = np.where(np.isnan(truth[0]), np.nan, fraction(truth))
        smooth, alone = (fraction(separate(echoes, SIX[:4], 3.0, smoothness=s)) for s in (0.1, 0.0))
        assert swapped_share(smooth, expected) < 2e-3
        assert fat_fraction_error(smooth, expected) < 0.03
        swaps.append(swapped_share(alone, expected))
    assert np.mean(swaps) > 0.01


def test_the_choice_of_a_line_and_of_a_small_grid_is_the_best_of_all():
    """Exact on a line, whatever the costs; on a grid with smooth fields the same as trying all."""
    rng = np.random.default_rng(0)
    for size in ((7,), (2, 3)):
        for _ in range(10):
            cost, radians = rng.random((*size, 3)), rng.uniform(-3, 3, (*size, 3))
            strength = rng.random(size)

            def energy(labels, cost=cost, radians=radians, strength=strength, size=size):
                labels = np.reshape(labels, size)[..., None]
                chosen = np.take_along_axis(radians, labels, -1)[..., 0]
                total = np.take_along_axis(cost, labels, -1).sum()
                for axis in range(len(size)):
                    d, low = np.diff(chosen, axis=axis), size[axis] - 1
                    d = d - 4 * np.round(d / 4)
                    w = np.minimum(strength.take(range(low), axis), strength.take(range(1, low + 1), axis))
                    total += 0.3 * (w * d**2).sum()
                return total

            best = min(energy(labels) for labels in itertools.product(range(3), repeat=math.prod(size)))
            found = energy(_smooth_choice(cost, radians, strength, 0.3, 4.0, 20))
            assert found == pytest.approx(best, rel=1e-5 if len(size) == 1 else 0.03)


def test_voxels_without_signal_are_zero():
    echoes, _ = a_body(0)
    echoes[:, :5] = 0
    found = separate(echoes, SIX, 3.0)
    assert np.isfinite(found).all()
    assert (found[:4, :5] == 0).all()
    assert (separate(np.zeros((4, 5, 5), np.complex64), SIX[:4], 3.0)[:4] == 0).all()


def test_few_echoes_are_refused():
    with pytest.raises(UserError, match="three echoes or more"):
        separate(np.ones((2, 4, 4), complex), (1e-3, 2e-3), 3.0)
    with pytest.raises(UserError, match="got 4 echoes and 6 times"):
        separate(np.ones((4, 4, 4), complex), SIX, 3.0)


def test_scores_equal_their_definitions():
    truth = np.array([0.0, 0.1, 0.4, 0.9, math.nan, 0.95])
    found = np.array([0.9, 0.1, 0.6, 0.6, 0.0, 0.2])
    assert fat_fraction_error(found, truth) == pytest.approx((0.9 + 0 + 0.2 + 0.3 + 0.75) / 5)
    assert swapped_share(found, truth) == pytest.approx(2 / 5)  # 0.4 and 0.6 are no swap
    known = np.array([False, True, True, True, True, True])
    assert swapped_share(found, truth, known) == pytest.approx(1 / 4)
    assert math.isnan(fat_fraction_error(found, np.full(6, math.nan)))
    assert math.isnan(swapped_share(found, truth, np.zeros(6, bool)))


def test_the_residual_is_a_share_of_the_power():
    echoes, truth = a_body(0)
    known = ~np.isnan(truth[0])
    assert signal_residual(truth, echoes, SIX, 3.0) < 1e-9
    assert signal_residual(truth * np.array([0, 0, 0, 0, 1, 1])[:, None, None], echoes, SIX, 3.0) == pytest.approx(1)
    assert signal_residual(
        truth * np.array([0.5] * 4 + [1, 1])[:, None, None], echoes, SIX, 3.0, known
    ) == pytest.approx(0.25, rel=1e-5)
