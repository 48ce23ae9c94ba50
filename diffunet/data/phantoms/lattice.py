"""Synthetic images of a crystal lattice with vacancies, as in electron microscopy of atomic columns."""

import numpy as np

from .random_fields import disk_distance, smooth_noise, to_uint8


def defects(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return a lattice of atoms, uint8 (1, H, W), and 0 background, 1 vacancy, uint8 (H, W).

    A vacancy is a disk at the site of a missing atom with a third of the spacing as its radius. About 1 % of the sites
    are vacant. Some atoms are lighter elements, half as bright, and stains of contamination lie above the lattice.
    """
    sites, spacing, vacant = draw_lattice(rng, size)
    image, target = np.zeros(size, np.float32), np.zeros(size, np.uint8)
    bright = np.clip(0.5 + 0.04 * rng.standard_normal(len(sites)), 0, None)
    bright[rng.random(len(sites)) < 0.03] *= 0.5
    for site, level, missing in zip(sites, bright, vacant, strict=True):
        if missing:
            window, apart = disk_distance(site, spacing / 3, size)
            target[window] |= apart <= 1
        else:
            window, apart = disk_distance(site, spacing, size)
            image[window] += level * np.exp(-((apart / 0.36) ** 2))
    image *= 1 + 0.12 * smooth_noise(rng, size, 60)
    image += 0.2 + 0.06 * smooth_noise(rng, size, 40) + 0.03 * smooth_noise(rng, size, 10)
    image += 0.09 * rng.standard_normal(size, np.float32)
    return to_uint8(image)[None], target


def draw_lattice(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, float, np.ndarray]:
    """Return the sites of a strained hexagonal lattice, their spacing, and which of them are vacant.

    Returns: y and x (N, 2) with those up to one spacing outside; spacing in pixels; (N,) bool. There is at least one
    vacancy, the disk of every vacancy is inside of the image, and no two are neighbors.
    """
    spacing, angle = rng.uniform(9, 12), rng.uniform(0, np.pi / 3)
    reach = int(np.ceil(np.hypot(*size) / spacing)) + 2
    a, b = (axis.ravel() for axis in np.mgrid[-reach : reach + 1, -reach : reach + 1])
    v, u = spacing * np.sqrt(0.75) * b, spacing * (a + b / 2)
    center = [size[0] / 2, size[1] / 2] + rng.uniform(-0.5, 0.5, 2) * spacing
    sites = center + np.stack([v * np.cos(angle) + u * np.sin(angle), u * np.cos(angle) - v * np.sin(angle)], axis=1)
    sites = sites[((sites > -spacing) & (sites < np.array(size) + spacing)).all(axis=1)]
    strain = 0.15 * spacing * np.stack([smooth_noise(rng, size, 50) for _ in range(2)], axis=-1)
    nearest = np.clip(np.rint(sites).astype(int), 0, np.array(size) - 1)
    sites = sites + strain[nearest[:, 0], nearest[:, 1]] + 0.03 * spacing * rng.standard_normal(sites.shape)
    interior = np.flatnonzero(((sites > spacing) & (sites < np.array(size) - 1 - spacing)).all(axis=1))
    vacant = np.zeros(len(sites), bool)
    for site in rng.permutation(interior)[: max(1, rng.poisson(0.012 * len(interior)))]:
        vacant[site] = not (np.hypot(*(sites[vacant] - sites[site]).T) < 1.6 * spacing).any()
    return sites, spacing, vacant
