"""Random fields, balls, tubes and ellipsoids in space, of which synthetic volumes are made."""

from collections.abc import Iterator

import numpy as np

Size = tuple[int, int, int]
"""(D, H, W), along z, y and x."""


def smooth_field(rng: np.random.Generator, size: Size, scale: float) -> np.ndarray:
    """Return a Gaussian field that is standard normal at each voxel and varies over `scale` voxels, float32 (D, H, W).

    Cubic B-splines on a grid of normal numbers, as `random_fields.smooth_noise` in the plane.
    """
    from scipy.interpolate import BSpline

    bases = []
    for length in size:
        knots = int(np.ceil(length / scale)) + 3
        basis = BSpline.design_matrix(np.arange(length) / scale + 3, np.arange(knots + 4.0), 3).toarray()
        bases.append((basis / np.linalg.norm(basis, axis=1, keepdims=True)).astype(np.float32))
    field = rng.standard_normal([basis.shape[1] for basis in bases], dtype=np.float32)
    for basis in reversed(bases):  # the last axis goes to the front, and is the last again after the others
        field = np.tensordot(basis, field, (1, 2))
    return field


def places(size: Size) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return z, y and x of the voxels, from -1 to 1 between the faces of the box, float32, to be broadcast."""
    z, y, x = ((2 * np.arange(length, dtype=np.float32) + 1) / length - 1 for length in size)
    return z[:, None, None], y[:, None], x


def ball_distance(center: np.ndarray, radius: float, size: Size) -> tuple[tuple[slice, ...], np.ndarray]:
    """Return the slices of a window around a ball, cut to the volume, and the distance of its voxels to the center."""
    low = np.clip(np.ceil(center - radius), 0, size).astype(int)
    high = np.clip(np.floor(center + radius) + 1, low, size).astype(int)
    window = tuple(slice(start, stop) for start, stop in zip(low, high, strict=True))
    z, y, x = np.ogrid[window]
    return window, np.sqrt((z - center[0]) ** 2 + (y - center[1]) ** 2 + (x - center[2]) ** 2).astype(np.float32)


def rotation(rng: np.random.Generator) -> np.ndarray:
    """Return a random orthogonal matrix, (3, 3)."""
    return np.linalg.qr(rng.standard_normal((3, 3)))[0]


def ellipsoid(
    rng: np.random.Generator, center: np.ndarray, axes: np.ndarray, size: Size, roughness: float = 0.0
) -> np.ndarray:
    """Return the distance of all voxels from the center of a turned ellipsoid, in its radii, float32 (D, H, W).

    center, axes: in voxels. The distance is multiplied by exp(roughness times a smooth field), which leaves smaller
    levels inside of larger ones.
    """
    apart = np.stack(np.broadcast_arrays(*np.ogrid[: size[0], : size[1], : size[2]]), -1) - center
    distance = np.linalg.norm(apart @ rotation(rng) / axes, axis=-1).astype(np.float32)
    if roughness:
        distance *= np.exp(roughness * smooth_field(rng, size, max(2.0, float(np.mean(axes)) / 1.5)))
    return distance


def tree(
    rng: np.random.Generator, size: Size, start: np.ndarray, radius: float, branching: float
) -> Iterator[tuple[np.ndarray, float]]:
    """Yield the centers and radii of balls along a curved tube that leaves the volume at both ends, and its branches.

    branching: probability of a branch for each voxel of length, up to the second generation.
    """
    heading = rotation(rng)[0]
    ends = [(start, heading, radius, 0), (start, -heading, radius, 0)]
    while ends:
        center, heading, radius, generation = ends.pop()
        for _ in range(2 * sum(size)):
            yield center, radius
            if (center < -radius - 1).any() or (center > np.array(size) + radius).any():
                break
            if generation < 2 and rng.random() < branching:
                aside = np.cross(heading, rotation(rng)[0])
                ends.append((center, _unit(aside + 0.5 * heading), 0.85 * radius, generation + 1))
            heading = _unit(heading + 0.12 * rng.standard_normal(3))
            center = center + heading


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def tubes_depth(
    rng: np.random.Generator, size: Size, number: int, radius: tuple[float, float], branching: float = 0.0
) -> np.ndarray:
    """Return how deep each voxel is inside of random tubes, negative outside, at least -2, float32 (D, H, W).

    number: of trees; the first crosses the middle half of the volume. radius: least and largest, in voxels.
    """
    depth = np.full(size, -2, np.float32)
    for index in range(number):
        low, high = (0.25, 0.75) if index == 0 else (0.0, 1.0)
        start = rng.uniform(low, high, 3) * size
        for center, own in tree(rng, size, start, rng.uniform(*radius), branching):
            window, apart = ball_distance(center, own + 2, size)
            depth[window] = np.maximum(depth[window], own - apart)
    return depth
