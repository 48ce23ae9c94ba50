"""Synthetic shapes for studies of the receptive field, and scenes of many bands.

The two sets of shapes follow the description in Loos et al. 2024 (J. Med. Imaging 11(5) 054004): large shapes that are
filled, which a network of any receptive field segments, and large shapes of which only the contour is visible, where
the receptive field has to reach the contour from everywhere inside.
"""

import numpy as np
import torch

from ..pansharpening import wald_pair
from .random_fields import disk_distance, smooth_noise, to_uint8, voronoi, warped_grid

BACKGROUND, INK, NOISE = 0.4, 0.25, 0.05
"""Gray level around shapes, the contrast of what is drawn, and the standard deviation of the noise."""


def shapes(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return filled shapes, uint8 (1, H, W), and 0 outside, 1 inside, uint8 (H, W)."""
    depth = _signed_depth(rng, size)
    return _drawn(rng, np.clip(depth + 0.5, 0, 1)), (depth > 0).astype(np.uint8)


def contours(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the contours of shapes, 3 pixels wide, uint8 (1, H, W), and 0 outside, 1 inside, uint8 (H, W).

    Apart from its contour a shape looks like the background.
    """
    depth = _signed_depth(rng, size)
    return _drawn(rng, np.clip(2 - np.abs(depth - 1.5), 0, 1)), (depth > 0).astype(np.uint8)


def _drawn(rng: np.random.Generator, ink: np.ndarray) -> np.ndarray:
    """Return an 8-bit image (1, H, W) of ink in [0, 1] under noise that is the same everywhere."""
    return to_uint8(BACKGROUND + INK * ink + NOISE * rng.standard_normal(ink.shape, np.float32))[None]


def _signed_depth(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Return the distance of each pixel to the outside of one or two separate shapes, negative outside, (H, W).

    Longer sides are 35 to 60 % of the image's shorter side. Shapes are wholly inside of the image.
    """
    from scipy.ndimage import distance_transform_edt

    side, inside = min(size), np.zeros(size, bool)
    for number in range(int(rng.integers(1, 3))):
        for _ in range(20 if number else 1):
            length = rng.uniform(0.35, 0.6) * side
            room = length / 2 + 3
            center = rng.uniform(room, size[0] - room), rng.uniform(room, size[1] - room)
            drawn = _ellipse(rng, center, length, size) if rng.random() < 0.4 else _polygon(rng, center, length, size)
            if number == 0 or distance_transform_edt(~inside)[drawn].min() > 8:
                inside |= drawn
                break
    return (distance_transform_edt(inside) - distance_transform_edt(~inside)).astype(np.float32)


def _ellipse(rng: np.random.Generator, center: tuple[float, float], length: float, size: tuple[int, int]) -> np.ndarray:
    """Return an ellipse whose larger extent in y and x is `length`, bool (H, W)."""
    angle, aspect = rng.uniform(0, np.pi), rng.uniform(0.5, 1)
    extents = [np.hypot(np.cos(angle), aspect * np.sin(angle)), np.hypot(np.sin(angle), aspect * np.cos(angle))]
    radius = length / 2 / max(extents)
    y, x = np.ogrid[: size[0], : size[1]]
    y, x = y - center[0], x - center[1]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return np.hypot(along, across / aspect) < radius


def _polygon(rng: np.random.Generator, center: tuple[float, float], length: float, size: tuple[int, int]) -> np.ndarray:
    """Return a polygon of 3 to 8 corners whose larger extent in y and x is `length`, bool (H, W)."""
    corners = int(rng.integers(3, 9))
    angles = 2 * np.pi * (np.arange(corners) + rng.uniform(-0.3, 0.3, corners)) / corners + rng.uniform(0, 2 * np.pi)
    points = rng.uniform(0.55, 1, corners)[:, None] * np.stack([np.sin(angles), np.cos(angles)], axis=1)
    low, high = points.min(axis=0), points.max(axis=0)
    points = (points - (low + high) / 2) * length / (high - low).max() + center
    y, x = np.ogrid[: size[0], : size[1]]
    inside = np.zeros(size, bool)
    for (y0, x0), (y1, x1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if y0 != y1:  # even-odd rule
            inside ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return inside


BANDS = ("blue", "green", "red", "near infrared")
SPECTRA = np.array(
    [
        [0.03, 0.07, 0.04, 0.45],  # crops
        [0.02, 0.04, 0.03, 0.28],  # trees
        [0.09, 0.13, 0.18, 0.26],  # soil
        [0.06, 0.05, 0.03, 0.01],  # water
        [0.12, 0.16, 0.28, 0.33],  # tiles
        [0.11, 0.12, 0.13, 0.15],  # asphalt
        [0.34, 0.37, 0.40, 0.43],  # concrete
    ],
    np.float32,
)
"""Typical reflectance of materials in the four bands."""
WATER, ASPHALT = 3, 5
ROOFS = (4, 5, 6)
"""Rows of `SPECTRA`."""
RATIO = 4
"""Side of a coarse pixel of `bands`."""


def bands(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return a scene of fields, roads and buildings for pansharpening, by Wald's protocol.

    The image is a panchromatic one and four coarse bands in 10,000ths of reflectance, uint16 (5, H, W), the target the
    sharp bands in reflectance, float32 (4, H, W).

    Each region has the spectrum of a material, brightened or darkened as a whole and mixed a little with another one.
    """
    from scipy.ndimage import gaussian_filter

    cropped, size = size, (-(-size[0] // RATIO) * RATIO, -(-size[1] // RATIO) * RATIO)
    fields = voronoi(rng, warped_grid(rng, size, 2, 40), 44, elongation=0.05)
    materials = rng.choice(4, fields.max() + 1, p=[0.4, 0.25, 0.25, 0.1])
    spectra = _mixed(rng, materials)
    scene = spectra[fields]
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    plowed = rng.uniform([[0.5], [-1], [0]], [[1.5], [1], [0.2]], (3, len(spectra))).astype(np.float32)
    plowed[2, materials == WATER] = 0
    frequency, slope, depth = plowed[:, fields]
    scene = scene * (1 + depth * np.sin(frequency * (y + slope * x)))[..., None]
    for _ in range(int(rng.integers(1, 4))):
        angle, bend = rng.uniform(0, np.pi), 6 * smooth_noise(rng, size, 80)
        across = (y - rng.uniform(0, size[0])) * np.cos(angle) + (x - rng.uniform(0, size[1])) * np.sin(angle)
        scene[np.abs(across + bend) < rng.uniform(1.5, 4)] = _mixed(rng, np.array([ASPHALT]))[0]
    built = smooth_noise(rng, size, 60)
    for _ in range(round(size[0] * size[1] / 500)):
        cy, cx, angle = rng.uniform(0, size[0]), rng.uniform(0, size[1]), rng.normal(0.4, 0.1)
        half = rng.uniform(2, 7, 2)
        roof = _mixed(rng, rng.choice(ROOFS, 1))[0]
        if built[int(cy), int(cx)] < 0.4:
            continue
        window, _ = disk_distance((cy, cx), 14, size)
        v, u = y[window] - cy, x[window] - cx
        along, across = u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle)
        scene[window][(np.abs(along + 2) < half[0]) & (np.abs(across + 2) < half[1])] *= 0.4  # its shadow
        scene[window][(np.abs(along) < half[0]) & (np.abs(across) < half[1])] = roof
    texture = 1 + 0.06 * smooth_noise(rng, size, 2) + 0.06 * smooth_noise(rng, size, 12)
    scene = gaussian_filter(scene * texture[..., None], (0.5, 0.5, 0)).transpose(2, 0, 1)
    sharp = np.rint(np.clip(scene, 0.001, 1) * 10000).astype(np.float32)
    image, _ = wald_pair(torch.from_numpy(sharp), ratio=RATIO)
    view = (..., slice(cropped[0]), slice(cropped[1]))
    return image.clamp(0, 65535).round().numpy().astype(np.uint16)[view], sharp[view] / 10000


def _mixed(rng: np.random.Generator, materials: np.ndarray) -> np.ndarray:
    """Return a spectrum for each material, with up to 15 % of another one and a brightness of its own, (N, 4)."""
    share = rng.uniform(0, 0.15, (len(materials), 1))
    other = SPECTRA[rng.integers(0, len(SPECTRA), len(materials))]
    bright = np.exp(0.15 * rng.standard_normal((len(materials), 1)))
    return (bright * ((1 - share) * SPECTRA[materials] + share * other)).astype(np.float32)
