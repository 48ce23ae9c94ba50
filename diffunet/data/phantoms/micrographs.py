"""Synthetic micrographs: membranes, cells, a stain and grains.

Each function takes a generator and a size and returns an image and its target. The constants in it set how hard it is.
"""

import numpy as np

from .random_fields import disk_distance, distance_to_border, smooth_noise, to_uint8, voronoi, warped_grid


def membranes(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return a section of tissue as in electron microscopy, uint8 (1, H, W), and 0 membrane, 1 cell, uint8 (H, W).

    Share, width and gray levels are about those of ISBI 2012 (Arganda-Carreras et al. 2015): membranes are 20 to 23 %
    of the pixels. Organelles, vesicles and dense cytoplasm are as dark as membranes, which fade in places, so that no
    threshold separates the classes.
    """
    from scipy.ndimage import gaussian_filter, label

    y, x = warped_grid(rng, size, 5, 28)
    grid = y + 1.2 * smooth_noise(rng, size, 9), x + 1.2 * smooth_noise(rng, size, 9)
    depth = distance_to_border(voronoi(rng, grid, 44, size_spread=0.4, elongation=0.35))
    width = np.exp(0.16 * smooth_noise(rng, size, 20) + 0.45 * np.clip(smooth_noise(rng, size, 26) - 1, 0, None))
    relative = depth / width
    cell = relative > np.quantile(relative, rng.uniform(0.2, 0.23))
    cells, number = label(cell)
    area = np.bincount(cells.ravel(), minlength=number + 1)
    cells[(area < 24)[cells]] = 0

    tone = (0.66 + 0.055 * rng.standard_normal(number + 1)).astype(np.float32)
    coarse = (0.06 * np.exp(0.35 * rng.standard_normal(number + 1))).astype(np.float32)
    image = tone[cells] + 0.03 * smooth_noise(rng, size, 50)
    image += coarse[cells] * (smooth_noise(rng, size, 2.5) + smooth_noise(rng, size, 6))
    inside = np.where(cells > 0, depth - 3 * width, 0)
    for _ in range(round(size[0] * size[1] / 2000)):
        _organelle(rng, image, inside)
    for _ in range(round(size[0] * size[1] / 600)):
        _vesicle(rng, image, inside)
    _dense_spots(rng, image, depth)

    fade = np.clip(0.95 + 0.32 * smooth_noise(rng, size, 14), 0.2, 1.2) / np.maximum(width, 1) ** 0.5
    line = np.exp(-((depth / (2.1 * width)) ** 2)) * fade
    image += (0.17 - image) * np.clip(line, 0, 1)
    image = gaussian_filter(image, 0.8) + 0.12 * gaussian_filter(rng.standard_normal(size, np.float32), 0.55)
    return to_uint8(image)[None], (cells > 0).astype(np.uint8)


def _organelle(rng: np.random.Generator, image: np.ndarray, inside: np.ndarray) -> None:
    """Draw a mitochondrion at a random place where there is room: a dark body with a membrane and cristae."""
    center = tuple(rng.integers(0, length) for length in image.shape)
    radius = rng.uniform(7, 15)
    angle, aspect = rng.uniform(0, np.pi), rng.uniform(1, 1.8)
    phase, shade, rim = rng.uniform(0, 6), rng.uniform(0.32, 0.48), rng.uniform(0.12, 0.28)
    if inside[center] < 0.55 * radius:
        return
    window, _ = disk_distance(center, radius * aspect, image.shape)
    y, x = np.ogrid[window]
    dy, dx = y - center[0], x - center[1]
    along, across = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    distance = np.hypot(along / aspect, across) / radius
    body = (distance < 1) & (inside[window] > 0)
    cristae = 0.07 * np.sin(along / 1.6 + phase + 0.15 * across)
    rimmed = np.exp(-(((distance - 0.92) * radius / 1.6) ** 2))
    drawn = shade + cristae + (rim - shade) * rimmed
    image[window] = np.where(body, drawn, image[window])


def _vesicle(rng: np.random.Generator, image: np.ndarray, inside: np.ndarray) -> None:
    """Draw a vesicle, a small ring."""
    center = tuple(rng.integers(0, length) for length in image.shape)
    radius, rim, core = rng.uniform(2.2, 5.5), rng.uniform(0.2, 0.45), rng.uniform(0.5, 0.75)
    if inside[center] < 0.5 * radius:
        return
    window, distance = disk_distance(center, radius + 2, image.shape)
    distance = distance * (radius + 2) - radius
    ring = np.exp(-((distance / 1.2) ** 2))
    image[window] = np.where(distance < 0, core, image[window])
    image[window] += (rim - image[window]) * ring * (inside[window] > -1)


def _dense_spots(rng: np.random.Generator, image: np.ndarray, depth: np.ndarray) -> None:
    """Darken the cytoplasm along some membranes, as at synapses."""
    dense = np.clip(smooth_noise(rng, image.shape, 16) - 1.3, 0, None) * np.exp(-((depth / 9) ** 2))
    image += (0.15 - image) * np.clip(1.3 * dense, 0, 0.85)


def cells(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return fluorescent nuclei, uint8 (1, H, W), and the number of each pixel's nucleus, 0 outside, uint16 (H, W).

    Most nuclei touch others. Their brightness varies by a factor of four; blurred nuclei of other planes, specks and a
    gradient lie in the background.
    """
    from scipy.ndimage import gaussian_filter

    labels, distance = _nuclei(rng, size, spacing=24, radius=(8, 14))
    number = int(labels.max())
    bright = np.exp(rng.uniform(np.log(0.2), np.log(0.8), number + 1)).astype(np.float32)
    bright[0] = 0
    texture = 1 + 0.18 * smooth_noise(rng, size, 4) + 0.1 * smooth_noise(rng, size, 2)
    image = bright[labels] * texture * np.sqrt(np.clip(1.25 - np.minimum(distance, 1) ** 2, 0, None))
    haze = np.zeros(size, np.float32)
    for _ in range(round(size[0] * size[1] / 5000)):
        window, apart = disk_distance(tuple(rng.uniform(0, side) for side in size), rng.uniform(10, 30), size)
        haze[window] += rng.uniform(0.05, 0.2) * np.clip(1 - apart**2, 0, None)
    for _ in range(round(size[0] * size[1] / 4000)):
        window, apart = disk_distance(tuple(rng.uniform(0, side) for side in size), rng.uniform(1.5, 3.5), size)
        image[window] += rng.uniform(0.1, 0.5) * np.clip(1 - apart**2, 0, None)
    image = gaussian_filter(image, 1.2) + gaussian_filter(haze, 3) + 0.06 + 0.03 * smooth_noise(rng, size, 60)
    photons = 120
    return to_uint8(rng.poisson(photons * np.clip(image, 0, None)) / photons)[None], labels


def _nuclei(
    rng: np.random.Generator, size: tuple[int, int], spacing: float, radius: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return numbered roundish disks, with their centers in the image, that press against each other.

    Returns: their numbers, uint16; and the distance to the nearest center in radii, less than 1 inside, infinite far
    away, float32; both (H, W).
    """
    distance = np.full(size, np.inf, np.float32)
    nearest = np.zeros(size, np.uint16)
    placed = np.empty((0, 3))
    for _ in range(round(3 * size[0] * size[1] / spacing**2)):
        y, x, own = rng.uniform(0, size[0]), rng.uniform(0, size[1]), rng.uniform(*radius)
        harmonics = rng.standard_normal((2, 3)) * [0.07, 0.04, 0.03]
        gap = np.hypot(placed[:, 0] - y, placed[:, 1] - x) / (placed[:, 2] + own)
        # New disks settle beside others rather than alone, as cells that divide do.
        if len(placed) and (gap.min() < 0.82 or (gap.min() > 1.05 and rng.random() < 0.8)):
            continue
        placed = np.vstack([placed, [y, x, own]])
        window, apart = disk_distance((y, x), 2 * own, size)
        v, u = np.ogrid[window]
        angle = np.arctan2(v - y, u - x)
        outline = 1 + sum(
            a * np.cos(k * angle) + b * np.sin(k * angle) for k, (a, b) in enumerate(harmonics.T, start=2)
        )
        apart = (2 * apart / outline).astype(np.float32)
        closer = apart < distance[window]
        distance[window] = np.where(closer, apart, distance[window])
        nearest[window] = np.where(closer, len(placed), nearest[window])
    return np.where(distance < 1, nearest, 0).astype(np.uint16), distance


def stain(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return cells in phase contrast, uint8 (1, H, W), and the intensity of a nuclear stain, float32 (1, H, W).

    The stain follows the density of chromatin, which delays light as well: the image is the phase less its
    surroundings, as the ring of a phase-contrast microscope makes it, with halos. Granules delay light without stain.
    """
    from scipy.ndimage import gaussian_filter

    labels, distance = _nuclei(rng, size, spacing=40, radius=(10, 15))
    content = rng.uniform(0.3, 1, labels.max() + 1).astype(np.float32)
    chromatin = content[labels] * (labels > 0) * (1 + 0.3 * smooth_noise(rng, size, 3))
    target = gaussian_filter(np.clip(chromatin, 0, None), 1)
    body = np.sqrt(np.clip(1 - (distance / (1.7 + 0.2 * smooth_noise(rng, size, 14))) ** 2, 0, None))
    granules = np.clip(smooth_noise(rng, size, 2.5) - 1.4, 0, None) * (body > 0) * (labels == 0)
    edge = np.exp(-(((distance - 1) / 0.12) ** 2))
    phase = gaussian_filter(0.45 * body + 0.3 * granules + 0.12 * edge + 0.3 * target, 0.8)
    image = 0.5 - 0.75 * (phase - gaussian_filter(phase, 9)) + 0.03 * smooth_noise(rng, size, 60)
    image += 0.025 * rng.standard_normal(size, np.float32)
    return to_uint8(image)[None], target[None].astype(np.float32)


def grains(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return a polished and etched polycrystal, uint8 (1, H, W), and 0 boundary, 1 grain, uint8 (H, W).

    The gray level of a grain follows its orientation, so neighbors may be equal; boundaries are 3 pixels wide and
    etched unevenly, some not at all. Scratches and pits are as dark.
    """
    from scipy.ndimage import gaussian_filter

    grid = warped_grid(rng, size, 1.5, 20)
    regions = voronoi(rng, grid, 34)
    depth = distance_to_border(regions)
    level = (0.6 + 0.09 * rng.standard_normal(regions.max() + 1)).astype(np.float32)
    image = level[regions] + 0.03 * smooth_noise(rng, size, 60) + 0.015 * smooth_noise(rng, size, 3)
    etched = np.clip(0.65 + 0.4 * smooth_noise(rng, size, 24), 0, 1)
    image -= 0.3 * etched * np.exp(-((depth / 1.1) ** 2))
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    for _ in range(int(rng.integers(1, 4))):
        angle = rng.uniform(0, np.pi)
        across = (y - rng.uniform(0, size[0])) * np.cos(angle) + (x - rng.uniform(0, size[1])) * np.sin(angle)
        image -= rng.uniform(0.1, 0.25) * np.exp(-((across / 0.9) ** 2)) * (smooth_noise(rng, size, 30) > -0.3)
    for _ in range(round(size[0] * size[1] / 3000)):
        window, apart = disk_distance(tuple(rng.uniform(0, side) for side in size), rng.uniform(1, 3), size)
        image[window] -= rng.uniform(0.15, 0.4) * np.clip(1 - apart**2, 0, None)
    image = gaussian_filter(image, 0.7) + 0.04 * rng.standard_normal(size, np.float32)
    return to_uint8(image)[None], (depth > 1).astype(np.uint8)
