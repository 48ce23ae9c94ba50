"""Random fields and partitions of the plane, of which synthetic images are made."""

import numpy as np

TILE = 64
"""Side in pixels of the squares in which the nearest site is looked up."""


def smooth_noise(rng: np.random.Generator, size: tuple[int, int], scale: float) -> np.ndarray:
    """Return a Gaussian field that is standard normal at each pixel and varies over `scale` pixels, float32 (H, W).

    Cubic B-splines on a grid of normal numbers; the weights of a pixel have a square sum of one.
    """
    rows, columns = (_spline_weights(length, scale) for length in size)
    return rows @ rng.standard_normal((rows.shape[1], columns.shape[1]), dtype=np.float32) @ columns.T


def _spline_weights(length: int, scale: float) -> np.ndarray:
    """Return the cubic B-splines with knots every `scale` pixels at each pixel, normalized, float32 (length, knots)."""
    position = np.arange(length, dtype=np.float32)[:, None] / scale
    distance = np.abs(position + 1.5 - np.arange(np.ceil(length / scale) + 3, dtype=np.float32))
    weights = np.clip(2 - distance, 0, None) ** 3 - 4 * np.clip(1 - distance, 0, None) ** 3
    return weights / np.linalg.norm(weights, axis=1, keepdims=True)


def warped_grid(
    rng: np.random.Generator, size: tuple[int, int], amplitude: float, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the coordinates y and x of all pixels, displaced smoothly by about `amplitude` pixels, float32 (H, W)."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    return y + amplitude * smooth_noise(rng, size, scale), x + amplitude * smooth_noise(rng, size, scale)


def voronoi(
    rng: np.random.Generator,
    grid: tuple[np.ndarray, np.ndarray],
    spacing: float,
    size_spread: float = 0,
    elongation: float = 0,
) -> np.ndarray:
    """Return the index of the nearest of random sites for each pixel, int32 (H, W).

    grid: y and x of all pixels; a warped grid gives curved borders. One site for each square of `spacing` pixels on
    average. Each site measures the distance in an ellipse of its own: `size_spread` and `elongation` are the standard
    deviations of the logarithms of its size and of the root of its aspect ratio.
    """
    (top, bottom), (left, right) = ((axis.min() - spacing, axis.max() + spacing) for axis in grid)
    number = max(2, round((bottom - top) * (right - left) / spacing**2))
    y, x = rng.uniform(top, bottom, number), rng.uniform(left, right, number)
    angle, stretch = rng.uniform(0, np.pi, number), np.exp(elongation * np.abs(rng.standard_normal(number)))
    scale = np.exp(size_spread * rng.standard_normal(number))
    long, short = 1 / (scale * stretch) ** 2, (stretch / scale) ** 2
    yy = long * np.sin(angle) ** 2 + short * np.cos(angle) ** 2
    xx = long * np.cos(angle) ** 2 + short * np.sin(angle) ** 2
    yx = (long - short) * np.sin(2 * angle)
    # The squared distances to all sites are one matrix product.
    constant = yy * y**2 + yx * y * x + xx * x**2
    forms = np.stack([yy, yx, xx, -2 * yy * y - yx * x, -2 * xx * x - yx * y, constant], axis=1).astype(np.float32)
    nearest = np.empty(grid[0].shape, np.int32)
    for row, column in np.ndindex(*(-(-length // TILE) for length in nearest.shape)):
        tile = slice(row * TILE, (row + 1) * TILE), slice(column * TILE, (column + 1) * TILE)
        v, u = grid[0][tile], grid[1][tile]
        # Only sites whose least distance to the tile is below the largest distance of some site can be nearest.
        half = np.hypot(np.ptp(v), np.ptp(u)) / 2
        center = np.hypot(y - (v.min() + v.max()) / 2, x - (u.min() + u.max()) / 2)
        least, largest = np.clip(center - half, 0, None) * np.sqrt(long), (center + half) * np.sqrt(short)
        near = np.flatnonzero(least <= largest.min())
        terms = np.stack([v * v, v * u, u * u, v, u, np.ones_like(v)]).reshape(6, -1)
        nearest[tile] = near[(forms[near] @ terms).argmin(axis=0)].reshape(v.shape)
    return nearest


def distance_to_border(regions: np.ndarray) -> np.ndarray:
    """Return the distance of each pixel to the nearest border between two regions, float32 (H, W).

    It is 0 at a pixel whose right or lower neighbor is of another region. Without borders it is the image's diagonal.
    """
    from scipy.ndimage import distance_transform_edt

    border = np.zeros(regions.shape, bool)
    border[:-1] |= regions[:-1] != regions[1:]
    border[:, :-1] |= regions[:, :-1] != regions[:, 1:]
    if not border.any():
        return np.full(regions.shape, np.hypot(*regions.shape), np.float32)
    return distance_transform_edt(~border).astype(np.float32)


def disk_distance(
    center: tuple[float, float], radius: float, size: tuple[int, int]
) -> tuple[tuple[slice, slice], np.ndarray]:
    """Return the slices of a window around a disk, and the distance of its pixels to the center in radii.

    The window is cut to the image, and empty for a disk that is outside of it.
    """
    bounds = [np.ceil(np.subtract(center, radius)), np.floor(np.add(center, radius)) + 1]
    low, high = np.clip(bounds, 0, size).astype(int)
    window = slice(low[0], high[0]), slice(low[1], high[1])
    y, x = np.ogrid[window]
    return window, np.hypot(y - center[0], x - center[1]).astype(np.float32) / radius


def to_uint8(intensity: np.ndarray) -> np.ndarray:
    """Return intensities in [0, 1] as 8 bits, clipped."""
    return np.rint(np.clip(intensity, 0, 1) * 255).astype(np.uint8)
