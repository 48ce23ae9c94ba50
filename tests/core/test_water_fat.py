"""The signal of water and fat against closed forms of single species, and its gradient."""

import cmath
import math

import numpy as np
import pytest
import torch

from diffunet.core.water_fat import (
    DECAY,
    FAT_MODELS,
    GAMMA,
    MAPS,
    FatModel,
    bounded,
    fat_fraction,
    fat_phasor,
    field_period,
    signal,
    signal_of_maps,
    species,
)

TIMES = (1.2e-3, 2.3e-3, 3.9e-3)


def some_maps(size: tuple[int, ...] = (3, 4), examples: int = 2) -> torch.Tensor:
    torch.manual_seed(0)
    maps = torch.randn(examples, len(MAPS), *size, dtype=torch.float64)
    maps[:, 4] *= 100
    maps[:, 5] = 50 + 20 * maps[:, 5].abs()
    return maps


def test_water_alone_turns_with_the_field_and_decays():
    """S(t) = W exp(2 pi i psi t - R2* t): at psi = 250 Hz and t = 1 ms a quarter of a turn."""
    water, none = torch.full((1, 2, 2), 2.0, dtype=torch.complex128), torch.zeros(1, 2, 2, dtype=torch.complex128)
    field, r2star = torch.full((1, 2, 2), 250.0).double(), torch.full((1, 2, 2), 100.0).double()
    echoes = signal(water, none, field, r2star, (1e-3, 2e-3), 3.0)
    expected = [2j * math.exp(-0.1), -2 * math.exp(-0.2)]
    torch.testing.assert_close(echoes[0, :, 0, 0], torch.tensor(expected, dtype=torch.complex128))


def test_fat_of_one_peak_is_water_at_a_lower_field():
    """At 3 T a peak at -3.4 ppm is 42.577 * 3 * 3.4 = 434.3 Hz below water."""
    shift = 42.577478518 * 3 * -3.4
    assert shift == pytest.approx(-434.29, abs=0.01)
    maps = some_maps()
    water, none = torch.complex(maps[:, 0], maps[:, 1]), torch.zeros(2, 3, 4, dtype=torch.complex128)
    field, r2star = maps[:, 4], maps[:, 5]
    as_fat = signal(none, water, field, r2star, TIMES, 3.0, FAT_MODELS["single"])
    torch.testing.assert_close(as_fat, signal(water, none, field + shift, r2star, TIMES, 3.0))


def test_peaks_add_up():
    total = sum(FAT_MODELS["hamilton2011"].amplitudes)
    for strength in (1.5, 3.0):
        expected = [
            sum(
                a / total * cmath.exp(2j * math.pi * GAMMA * strength * shift * t)
                for shift, a in zip(*FAT_MODELS["hamilton2011"], strict=True)
            )
            for t in TIMES
        ]
        torch.testing.assert_close(fat_phasor(TIMES, strength), torch.tensor(expected, dtype=torch.complex128))
    assert fat_phasor([0.0], 3.0) == 1
    doubled = FatModel(FAT_MODELS["hamilton2011"].shifts, tuple(2 * a for a in FAT_MODELS["hamilton2011"].amplitudes))
    torch.testing.assert_close(fat_phasor(TIMES, 3.0, doubled), fat_phasor(TIMES, 3.0))


@pytest.mark.parametrize("size", [(4,), (3, 4), (2, 3, 4)])
def test_each_example_has_its_own_times_and_strength(size):
    maps = some_maps(size)
    times, strengths = torch.tensor([TIMES, (2e-3, 4e-3, 6e-3)], dtype=torch.float64), torch.tensor([1.5, 3.0])
    together = signal_of_maps(maps, times, strengths)
    assert together.shape == (2, 3, *size)
    for example in range(2):
        one = slice(example, example + 1)
        alone = signal_of_maps(maps[one], times[example], float(strengths[example]))
        torch.testing.assert_close(together[one], alone)
        torch.testing.assert_close(
            signal_of_maps(maps, TIMES, strengths)[one], signal_of_maps(maps[one], TIMES, float(strengths[example]))
        )


def test_gradients_equal_finite_differences():
    maps = some_maps((2, 2), 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: torch.view_as_real(signal_of_maps(m, TIMES, 1.5)), (maps,))
    raw = torch.randn(1, 3, 2, 2, dtype=torch.float64).mul(100).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: bounded(m, 300.0), (raw,))


def test_bounds_hold_for_any_number():
    numbers = torch.tensor([-1e6, -300.0, -1.0, 0.0, 1.0, 300.0, 1e6])
    x, y = torch.meshgrid(numbers, numbers, indexing="ij")
    field, r2star = bounded(torch.stack([x, y, y])[None], 250.0)[0]
    assert field.abs().max() <= 250
    assert field[3].tolist() == pytest.approx([-125, -124.73, -62.5, 0, 62.5, 124.73, 125], abs=0.1)
    assert r2star.min() >= 0
    assert r2star[0, 5].item() == pytest.approx(300, abs=DECAY / 100 * 2)


def test_the_ends_of_a_period_have_the_same_echoes():
    """A point that passes the ends of the range moves the echoes as little as any other."""
    times = [1.2e-3, 2.2e-3, 3.2e-3]
    angle = torch.tensor([3.1415, -3.1415, 0.0], dtype=torch.float64)
    point = torch.stack([2 * angle.cos() - 1, 2 * angle.sin(), torch.zeros(3, dtype=torch.float64)])[None]
    field, r2star = bounded(point, field_period(times) / 2).unbind(1)
    assert field[0, 0] > 499 and field[0, 1] < -499
    maps = torch.cat([torch.ones(1, 4, 3, dtype=torch.float64), field[:, None], r2star[:, None]], dim=1)
    echoes = signal_of_maps(maps, times, 3.0)
    turned = echoes / echoes[:, :1]  # besides the phase that water and fat share
    assert (turned[..., 0] - turned[..., 1]).abs().max() < 0.02 < (turned[..., 0] - turned[..., 2]).abs().max()


@pytest.mark.parametrize("size", [(4,), (3, 4)])
def test_water_and_fat_are_those_of_least_squares(size):
    """By NumPy in each place, for echoes that no water and fat explain."""
    generator = torch.Generator().manual_seed(3)
    echoes = torch.randn(2, 4, *size, dtype=torch.complex128, generator=generator)
    field, r2star = (scale * torch.rand(2, *size, dtype=torch.float64, generator=generator) for scale in (200, 100))
    times = torch.tensor([1.3e-3, 2.1e-3, 3.4e-3, 4.8e-3], dtype=torch.float64)
    phasor = fat_phasor(times, 3.0)
    water, fat = species(echoes, field, r2star, times, phasor)
    for place in np.ndindex(2, *size):
        turn = np.exp((2j * np.pi * float(field[place]) - float(r2star[place])) * times.numpy())
        columns = np.stack([turn, turn * phasor.numpy()], axis=1)
        expected = np.linalg.lstsq(columns, echoes[place[0]][(slice(None), *place[1:])].numpy(), rcond=None)[0]
        np.testing.assert_allclose([water[place], fat[place]], expected, rtol=1e-8)
    parts = field.clone().requires_grad_(), r2star.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda *p: torch.view_as_real(species(echoes, *p, times, phasor)[1]), parts)


def test_fat_fraction():
    maps = torch.zeros(1, 6, 4)
    maps[0, :4, 0] = torch.tensor([3.0, 4.0, 0.0, 5.0])
    maps[0, :4, 1] = torch.tensor([0.0, -1.0, 0.0, 0.0])
    maps[0, :4, 2] = torch.tensor([0.0, 0.0, -3.0, 0.0])
    assert fat_fraction(maps).tolist() == [[0.5, 0.0, 1.0, 0.0]]


def test_fields_a_period_apart_give_the_same_echoes_but_for_one_phase():
    times = (1.2e-3, 2.2e-3, 3.2e-3)
    period = field_period(times)
    assert period == pytest.approx(1000)
    assert field_period([2e-3]) == pytest.approx(500)
    maps = some_maps()
    shifted = maps.clone()
    shifted[:, 4] += period
    echoes, others = signal_of_maps(maps, times, 3.0), signal_of_maps(shifted, times, 3.0)
    torch.testing.assert_close(others, echoes * cmath.exp(2j * math.pi * period * times[0]))
