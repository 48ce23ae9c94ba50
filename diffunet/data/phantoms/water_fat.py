"""Synthetic bodies of water and fat in magnetic resonance: gradient echoes, and images from undersampled k-space."""

from collections.abc import Sequence

import numpy as np
import torch

from ...core.complex_channels import to_channels
from ...core.fourier import sampled_lines, zero_filled
from ...core.water_fat import GAMMA, fat_fraction, signal_of_maps
from .random_fields import disk_distance, smooth_noise

ECHO_TIMES, FIELD_STRENGTH, SNR = (1.2e-3, 2.2e-3, 3.2e-3, 4.2e-3, 5.2e-3), 3.0, 30.0
"""Of the built-in sets: times in seconds, tesla, and the SNR of `water_fat`."""
R2STAR = (20.0, 300.0)
"""Range of R2* in 1/s."""
ACCELERATION = (3.0, 6.0)
"""Range of the acceleration of undersampled cases."""


def water_fat(
    rng: np.random.Generator,
    size: tuple[int, int],
    echo_times: Sequence[float] = ECHO_TIMES,
    field_strength: float = FIELD_STRENGTH,
    snr: float | None = SNR,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the echoes of a section of a body, float32 (2E, H, W), and its maps, float32 (6, H, W).

    The echoes are real_1, imag_1, real_2, ... of the signal equation of `core.water_fat` with six peaks of fat. The
    maps are `core.water_fat.MAPS`: W and F, complex, of a magnitude of about 1 together, the field in Hz, which reaches
    several hundred in places near the surface, and R2* in 1/s; NaN outside of the body and in gas.

    echo_times: seconds. field_strength: tesla. snr: mean magnitude of the body at the first echo over the standard
    deviation of the noise in the real and in the imaginary part; None: no noise.
    """
    from scipy.ndimage import distance_transform_edt, gaussian_filter

    apart = _body(rng, size)
    depth = np.asarray(distance_transform_edt(apart < 1), np.float32)
    fraction, iron = _tissue(rng, depth, size)
    gas = _blobs(rng, size, depth, number=int(rng.integers(0, 3)), radius=(0.03, 0.09))
    inside = (depth > 0) & (gas < 0.5)
    if not inside.any():
        inside = depth > 0
    density = inside * (0.9 + 0.12 * smooth_noise(rng, size, 6)) * np.exp(0.25 * smooth_noise(rng, size, min(size) / 2))
    # The point spread of the scanner mixes neighbors: partial volume of fat, water and air.
    fat, water = (
        gaussian_filter(np.clip(density, 0.1 * inside, None) * part, 0.7) for part in (fraction, 1 - fraction)
    )
    phase = np.exp(1j * (rng.uniform(-np.pi, np.pi) + 0.6 * smooth_noise(rng, size, min(size) / 2)))
    r2star = np.clip((20 + 15 * np.clip(smooth_noise(rng, size, 12) + 1, 0, None)) * np.exp(1.6 * iron), *R2STAR)
    field = _field(rng, size, depth, gas, field_strength)

    parts = [part(species * phase) for species in (water, fat) for part in (np.real, np.imag)]
    maps = np.stack([*parts, field, r2star]).astype(np.float32)
    echoes = signal_of_maps(torch.from_numpy(maps[None]).double(), echo_times, field_strength)
    image = to_channels(echoes)[0].numpy()
    if snr is not None:
        scale = np.hypot(image[0], image[1])[inside].mean() / snr
        image = image + scale * rng.standard_normal(image.shape)
    maps[:, ~inside] = np.nan
    return image.astype(np.float32), maps


def fat_fraction_of(number: int):
    """Return a function that makes the first echoes of a body, float32 (2 number, H, W), and the fat fraction.

    The fraction is that of `core.water_fat.fat_fraction`, float32 (1, H, W), NaN outside of the body.
    """

    def draw(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        image, maps = water_fat(rng, size, ECHO_TIMES[:number])
        fraction = fat_fraction(torch.from_numpy(maps[None]))[0].numpy()
        return image, np.where(np.isnan(maps[:1]), np.float32(np.nan), fraction)

    return draw


def undersampled(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return a complex image of a body with lines of k-space missing, and the whole image, float32 (2, H, W).

    The input, float32 (3, H, W), has the real and the imaginary part of the zero-filled reconstruction, and the mask of
    k-space, 1 where it was measured, as `models.data_consistency.DataConsistency` takes it. Lines run along the first
    axis, those missing are at random, and the measurement has no noise of its own: the image has.
    """
    image, _ = water_fat(rng, size, ECHO_TIMES[:1])
    lines = sampled_lines(size[1], rng.uniform(*ACCELERATION), seed=int(rng.integers(2**31)))
    return zero_filled(torch.from_numpy(image)[None], lines.expand(1, *size))[0].numpy(), image


# ── anatomy ───────────────────────────────────────────────────────────────────────────────────────


def _body(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Return the distance to the center of a roundish body in its radii, less than 1 inside, (H, W)."""
    height, width = size
    y, x = np.ogrid[:height, :width]
    center = (height * rng.uniform(0.46, 0.54), width * rng.uniform(0.46, 0.54))
    radii = height * rng.uniform(0.32, 0.44), width * rng.uniform(0.34, 0.45)
    return np.hypot((y - center[0]) / radii[0], (x - center[1]) / radii[1]) + 0.05 * smooth_noise(
        rng, size, min(size) / 4
    )


def _tissue(rng: np.random.Generator, depth: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the fat fraction in [0, 1] and the iron in [0, 1], (H, W), by depth below the surface in pixels."""
    side = min(size)
    skin = side * rng.uniform(0.03, 0.1) * np.exp(0.4 * smooth_noise(rng, size, side / 4))
    fraction = np.clip(0.03 + 0.03 * smooth_noise(rng, size, 8), 0, 1)
    visceral = smooth_noise(rng, size, side / 9) > rng.uniform(0.4, 1.2)
    fraction[visceral] = 0.88
    liver = _blobs(rng, size, depth, number=int(rng.integers(1, 3)), radius=(0.14, 0.26)) > 0.5
    fraction[liver] = np.clip(rng.uniform(0, 0.6) + 0.03 * smooth_noise(rng, size, 5), 0, 1)[liver]
    iron = np.where(liver, rng.uniform(0, 1), 0.0)
    subcutaneous = depth < skin
    fraction[subcutaneous] = np.clip(0.93 + 0.04 * smooth_noise(rng, size, 5), 0, 1)[subcutaneous]
    return fraction, np.where(subcutaneous, 0, iron)


def _blobs(
    rng: np.random.Generator, size: tuple[int, int], depth: np.ndarray, number: int, radius: tuple[float, float]
) -> np.ndarray:
    """Return 1 in some roundish blobs that are deep enough, 0 elsewhere, (H, W); radius: share of the shorter side."""
    drawn = np.zeros(size, np.float32)
    wobble = 0.15 * smooth_noise(rng, size, min(size) / 8)
    places = np.argwhere(depth > 0.1 * min(size))
    for _ in range(number if len(places) else 0):
        center, own = places[rng.integers(len(places))], min(size) * rng.uniform(*radius)
        window, distance = disk_distance(tuple(center), 1.5 * own, size)
        drawn[window] = np.maximum(drawn[window], 1.5 * distance + wobble[window] < 1)
    return drawn


def _field(
    rng: np.random.Generator, size: tuple[int, int], depth: np.ndarray, gas: np.ndarray, field_strength: float
) -> np.ndarray:
    """Return the field in Hz, (H, W): smooth after shimming, steep below parts of the surface and around gas."""
    from scipy.ndimage import gaussian_filter

    side, larmor = min(size), GAMMA * field_strength  # Hz per ppm
    shim = 0.4 * smooth_noise(rng, size, side / 2) + 0.15 * smooth_noise(rng, size, side / 4)
    near = np.exp(-depth / (0.08 * side)) * np.clip(smooth_noise(rng, size, side / 3) + 0.5, -2, 2)
    around = gaussian_filter(gas, 0.05 * side)
    ppm = shim + rng.choice([-1, 1]) * rng.uniform(1, 2.2) * near + rng.uniform(-2, 2) * around
    return larmor * gaussian_filter(ppm, 1)
