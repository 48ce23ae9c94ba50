"""Synthetic volumes with exact targets: tubules of a kidney, tumors of a brain, and a liver in tomography.

Each function takes a generator and a size (D, H, W) of at least 16 voxels a side, along z, y and x, and returns an
image and its target. The constants in it set how hard it is.
"""

import numpy as np

from .random_fields import to_uint8
from .random_solids import Size, ellipsoid, places, smooth_field, tubes_depth

WALL = 1.8
"""Thickness of the wall of a tubule in voxels."""


def tubules(rng: np.random.Generator, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Return branching tubules under a microscope, uint8 (1, D, H, W), and their parts, uint8 (D, H, W).

    0 background, 1 wall, 2 inside, as the kidney of Xenopus in Çiçek et al. 2016. The inside is as gray as the
    background; walls fade in places, and solid vessels around them are as bright and as thick. Deep planes are darker,
    and blur is stronger along z.
    """
    from scipy.ndimage import gaussian_filter

    volume = float(np.prod(size))
    largest = min(size) / 4
    number = max(1, round(volume / 26**3))
    depth = tubes_depth(rng, size, number, (min(3.4, largest), min(5.6, largest)), branching=1 / 30)
    vessels = tubes_depth(rng, size, max(1, round(volume / 20**3)), (0.9, 1.6))
    target = (depth > 0).astype(np.uint8) + (depth > WALL)

    image = 0.42 + 0.04 * smooth_field(rng, size, 20) + 0.04 * smooth_field(rng, size, 3)
    image[target == 2] += 0.03 * smooth_field(rng, size, 5)[target == 2] - 0.01
    fading = np.clip(0.95 + 0.3 * smooth_field(rng, size, 8), 0.3, 1.2)
    bright = 0.28 * fading * (target == 1)
    bright += 0.28 * np.clip(1 + 0.2 * smooth_field(rng, size, 8), 0.4, 1.3) * ((vessels > 0) & (depth < -1))
    image = gaussian_filter(image + bright, (0.9, 0.6, 0.6))
    image *= np.exp(-0.3 * (places(size)[0] + 1) / 2)
    image += 0.05 * rng.standard_normal(size, np.float32)
    return to_uint8(image)[None], target


BRAIN_CHANNELS = ("t1", "t1ce", "t2", "flair")
"""The channels of a brain: weighted by T1, without and with a contrast agent, by T2, and by T2 without free water."""
BRAIN_CLASSES = ("background", "core", "edema", "enhancing")
GRAY, WHITE, FLUID, EDEMA, CORE, ENHANCING = range(6)
TISSUES = np.array(
    [
        [0.50, 0.64, 0.20, 0.46, 0.38, 0.43],
        [0.50, 0.62, 0.20, 0.47, 0.39, 0.70],
        [0.55, 0.46, 0.88, 0.70, 0.66, 0.58],
        [0.50, 0.43, 0.16, 0.66, 0.53, 0.58],
    ],
    np.float32,
)
"""Brightness of the six tissues in each channel."""


def lesions(rng: np.random.Generator, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Return a brain with tumors, uint8 (4, D, H, W), of BRAIN_CHANNELS, and its classes, uint8 (D, H, W).

    0 background, 1 core, 2 edema around it, 3 its enhancing part, so that the regions {1, 2, 3}, {1, 3} and {3} are
    nested as those of BRATS. Outside of the brain there is 0. Each channel has a gain and a bias field of its own, and
    Rician noise. Ventricles, vessels and spots of white matter are as bright as parts of tumors.
    """
    from scipy.ndimage import gaussian_filter

    z, y, x = places(size)
    shortest = min(size)
    radius = np.sqrt((z / 0.95) ** 2 + (y / 0.92) ** 2 + (x / 0.85) ** 2)
    radius = radius * np.exp(0.04 * smooth_field(rng, size, shortest / 3))
    folds = smooth_field(rng, size, max(2.5, shortest / 14))
    tissue = np.where((radius < 0.8) & (folds > radius - 1), WHITE, GRAY)
    ventricles = ((np.abs(x) - 0.17) / 0.1) ** 2 + ((y + 0.05) / 0.35) ** 2 + (z / 0.3) ** 2 + 0.2 * folds
    tissue[(radius > 0.94) | (ventricles < 1)] = FLUID
    tissue = _with_tumors(rng, tissue, radius)
    target = np.choose(tissue, [0, 0, 0, 2, 1, 3]).astype(np.uint8)
    target[radius >= 1] = 0

    image = TISSUES[:, tissue]
    healthy = tissue < EDEMA
    vessels = (tubes_depth(rng, size, max(2, round(shortest / 8)), (0.6, 1.1)) > 0) & healthy
    image[1][vessels] = 0.72
    spots = (smooth_field(rng, size, max(2.0, shortest / 20)) > 1.9) & (tissue == WHITE)
    image[2][spots], image[3][spots] = 0.66, 0.66
    for channel in image:
        smooth = gaussian_filter(channel, 0.6) + 0.025 * smooth_field(rng, size, 3)
        smooth *= rng.uniform(0.8, 1.2) * np.exp(0.1 * smooth_field(rng, size, 0.7 * max(size)))
        noise = 0.045 * rng.standard_normal((2, *size), np.float32)
        channel[:] = np.hypot(smooth + noise[0], noise[1]) * (radius < 1)
    return to_uint8(image), target


def _with_tumors(rng: np.random.Generator, tissue: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Return tissues with one or two tumors: ellipsoids of edema, core in it, and enhancing parts in that."""
    size, grown = tissue.shape, np.zeros(tissue.shape, int)
    room = np.argwhere(radius < 0.55)
    for number in range(1 + int(rng.random() < 0.3)):
        center = room[rng.integers(len(room))]
        axes = min(size) * rng.uniform(0.2, 0.3) * rng.uniform(0.8, 1.25, 3) * (0.7 if number else 1)
        distance = ellipsoid(rng, center, axes, size, roughness=0.15)
        core = rng.uniform(0.6, 0.75)
        inner = core * rng.uniform(0.55, 0.7)
        grown = np.maximum(grown, sum((distance < level).astype(int) for level in (1, core, inner)))
    return np.where(grown > 0, np.array([0, EDEMA, CORE, ENHANCING])[grown], tissue)


LEAST_UNIT, LARGEST_UNIT = -1000, 1500
"""Range of a tomography in Hounsfield units, from air to dense bone."""


def liver(rng: np.random.Generator, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Return an abdomen in tomography, int16 (1, D, H, W) in Hounsfield units, and 0 outside, 1 liver, uint8 (D, H, W).

    Units go from -1000 to 1500, of which the soft tissues fill a twentieth: a window of about -100 to 200 shows them.
    Spleen, heart, bowel and stomach are as bright as the liver, and touch it; its own vessels are brighter and its
    cysts darker. It is on the patient's right, at large x.
    """
    from scipy.ndimage import gaussian_filter

    bend = [0.06 * smooth_field(rng, size, min(size) / 2) + rng.uniform(-0.06, 0.06) for _ in range(3)]
    scale = rng.uniform(0.92, 1.08)
    z, y, x = (scale * (axis + warp) for axis, warp in zip(places(size), bend, strict=True))

    def organ(center: tuple[float, float, float], axes: tuple[float, float, float]) -> np.ndarray:
        """Return the distance from a center (z, y, x) in radii."""
        moved = rng.uniform(-0.05, 0.05, 3) + center
        grown = axes * rng.uniform(0.85, 1.15, 3)
        parts = zip((z, y, x), moved, grown, strict=True)
        return np.sqrt(sum(((axis - middle) / length) ** 2 for axis, middle, length in parts))

    body = np.sqrt((y / 0.8) ** 2 + (x / 0.95) ** 2)
    units = np.where(body < 1, -95.0, LEAST_UNIT).astype(np.float32)
    units[body < 0.88] = 52
    cavity = np.sqrt(((y - 0.07) / 0.6) ** 2 + (x / 0.76) ** 2) < 1
    units[cavity] = -60 + 70 * (smooth_field(rng, size, max(3.0, min(size) / 10))[cavity] > 0)
    ribs = (np.abs(body - 0.84) < 0.035) & (np.sin(9 * z + 4 * np.arctan2(y, x)) > 0.5)
    spine = organ((0, -0.5, 0), (9, 0.15, 0.16)) < 1
    units[ribs | spine] = 420 + 160 * np.clip(smooth_field(rng, size, 2.5)[ribs | spine], -1.5, 4)
    units[cavity & (z + 0.25 * (x**2 + y**2) > 0.66)] = -850
    tone = rng.normal(105, 8)
    alike = {
        "spleen": (organ((0.2, -0.15, -0.5), (0.36, 0.3, 0.24)), 0),
        "heart": (organ((0.8, 0.22, -0.05), (0.3, 0.3, 0.36)), 12),
        "stomach": (organ((0.12, 0.22, -0.38), (0.34, 0.26, 0.28)), -20),
        "left kidney": (organ((-0.35, -0.25, -0.42), (0.34, 0.17, 0.17)), 35),
        "right kidney": (organ((-0.45, -0.25, 0.42), (0.34, 0.17, 0.17)), 35),
        "aorta": (organ((0, -0.28, -0.08), (9, 0.09, 0.09)), 30),
    }
    bowel = (smooth_field(rng, size, max(3.0, min(size) / 8)) > 0.4) & (z < -0.25) & cavity
    units[bowel] = tone + 12 * smooth_field(rng, size, 6)[bowel]
    for distance, brighter in alike.values():
        units[(distance < 1) & (body < 0.9)] = tone + brighter + rng.normal(0, 6)

    right = organ((0.1, 0.02, 0.33), (0.6, 0.52, 0.42))
    left = organ((0.22, 0.25, 0), (0.3, 0.24, 0.42))
    shape = np.minimum(right, left) * np.exp(0.07 * smooth_field(rng, size, min(size) / 5))
    inside = (shape < 1) & cavity & ~spine
    units[inside] = tone
    vessels = (tubes_depth(rng, size, max(2, round(min(size) / 10)), (0.7, 1.6), branching=1 / 20) > 0) & inside
    units[vessels] = tone + 45
    units[(smooth_field(rng, size, max(2.5, min(size) / 12)) > 2.1) & inside] = tone - 55
    units = gaussian_filter(units, 0.6) + 8 * smooth_field(rng, size, 2.5)
    units += 20 * rng.standard_normal(size, np.float32)
    image = np.rint(np.clip(units, LEAST_UNIT, LARGEST_UNIT)).astype(np.int16)
    return image[None], inside.astype(np.uint8)
