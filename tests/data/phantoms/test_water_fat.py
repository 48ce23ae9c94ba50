"""Synthetic bodies: the signal equation, noise, ranges of the maps, and undersampled images."""

import cmath
import math

import numpy as np
import pytest
import torch

from diffunet.core.fourier import to_kspace
from diffunet.core.water_fat import fat_fraction
from diffunet.data.phantoms.registry import PHANTOMS
from diffunet.data.phantoms.water_fat import ECHO_TIMES, FIELD_STRENGTH, SNR, water_fat

PPM, AMPLITUDES = (-3.80, -3.40, -2.60, -1.94, -0.39, 0.60), (0.087, 0.693, 0.128, 0.004, 0.039, 0.048)
"""Hamilton et al. 2011, table; the amplitudes have the sum 0.999."""


def draw(seed: int, size: tuple[int, int] = (64, 80), **values) -> tuple[np.ndarray, np.ndarray]:
    return water_fat(np.random.default_rng(seed), size, **values)


def test_echoes_follow_the_signal_equation():
    """By a loop over voxels with cmath."""
    times, strength = (1.5e-3, 2.7e-3), 1.5
    image, maps = draw(0, echo_times=times, field_strength=strength, snr=None)
    assert image.shape == (4, 64, 80)
    places = np.argwhere(~np.isnan(maps[0]))
    for y, x in places[:: len(places) // 50]:
        wr, wi, fr, fi, field, r2star = map(float, maps[:, y, x])
        for number, t in enumerate(times):
            fat = sum(
                a / 0.999 * cmath.exp(2j * math.pi * 42.577478518 * strength * p * t)
                for p, a in zip(PPM, AMPLITUDES, strict=True)
            )
            expected = (complex(wr, wi) + complex(fr, fi) * fat) * cmath.exp((2j * math.pi * field - r2star) * t)
            assert abs(complex(*image[2 * number : 2 * number + 2, y, x]) - expected) < 1e-5


def test_noise_has_the_snr():
    """The same generator makes the same body, so the difference is the noise: white, equal in all channels."""
    clean, maps = draw(1, (128, 128), snr=None)
    noisy, _ = draw(1, (128, 128), snr=20.0)
    known = ~np.isnan(maps[0])
    expected = np.hypot(clean[0], clean[1])[known].mean() / 20
    noise = (noisy - clean).reshape(10, -1)
    assert np.allclose(noise.std(1), expected, rtol=0.03)
    assert np.abs(np.corrcoef(noise) - np.eye(10)).max() < 5 / 128
    assert np.abs(noise.mean(1)).max() < 5 * expected / 128


def test_maps_have_the_ranges_of_tissue():
    fields, fractions, decays = [], [], []
    for seed in range(12):
        _, maps = draw(seed, (128, 128))
        known = ~np.isnan(maps).any(0)
        assert np.array_equal(np.isnan(maps[0]), ~known)
        assert 0.2 < known.mean() < 0.7
        fields.append(maps[4, known])
        decays.append(maps[5, known])
        fractions.append(fat_fraction(torch.from_numpy(maps[None]))[0].numpy()[known])
    fields, fractions, decays = map(np.concatenate, (fields, fractions, decays))
    assert 20 <= decays.min() < 25
    assert 200 < decays.max() <= 300
    assert 300 < np.abs(fields).max() < 1200
    assert np.abs(fields).mean() < 150
    shares = np.histogram(fractions, [0, 0.1, 0.3, 0.7, 0.9, 1])[0] / fractions.size
    assert shares.min() > 0.02  # water, fat, mixtures in organs and at borders
    assert shares[0] > 0.2


def test_the_field_is_smooth_within_the_body():
    for seed in range(4):
        _, maps = draw(seed, (256, 256))
        steps = np.abs(np.diff(maps[4], axis=1))
        assert np.nanquantile(steps, 0.99) < 40
        assert np.nanmedian(steps) < 10


@pytest.mark.parametrize("number", [1, 3])
def test_sets_of_few_echoes_have_the_first_ones(number):
    image, target, names = PHANTOMS[f"water-fat-{number}"].generate(0, (64, 64))
    assert image.shape == (2 * number, 64, 64)
    assert names == ("fat_fraction",)
    known = ~np.isnan(target)
    assert 0 <= target[known].min() < 0.2
    assert 0.8 < target[known].max() <= 1
    assert (ECHO_TIMES[0], FIELD_STRENGTH, SNR) == (1.2e-3, 3.0, 30.0)


def test_undersampled_images_are_the_measured_lines_of_the_whole():
    for index in range(3):
        image, target, _ = PHANTOMS["undersampled"].generate(index, (64, 96))
        mask = image[2]
        assert set(np.unique(mask)) == {0, 1}
        assert (mask == mask[:1]).all()
        assert 1 / 6.2 < mask.mean() < 1 / 2.9
        kspace = to_kspace(torch.from_numpy(image[0] + 1j * image[1]))
        whole = to_kspace(torch.from_numpy(target[0] + 1j * target[1]))
        torch.testing.assert_close(kspace, whole * torch.from_numpy(mask), atol=1e-5, rtol=0)
        assert whole.abs()[mask == 0].max() > 0.5
