"""Volumes as files, written by nibabel."""

from pathlib import Path

import nibabel
import numpy as np

from diffunet.data.volumes.files import read_volume

SHAPE = (6, 7, 5)
"""Along x, y and z."""


def rotation(rng: np.random.Generator, largest: float = np.pi) -> np.ndarray:
    """Return a rotation about a random axis by a random angle (Rodrigues' formula)."""
    x, y, z = axis = rng.standard_normal(3)
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = rng.uniform(-largest, largest)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def oblique(rng: np.random.Generator, largest: float = np.pi) -> np.ndarray:
    """Return an affine with axes in any order and direction, turned, of unequal spacing."""
    affine = np.eye(4)
    axes = np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3)
    affine[:3, :3] = rotation(rng, largest) @ axes * rng.uniform(0.5, 3, 3)
    affine[:3, 3] = rng.uniform(-100, 100, 3)
    return affine


def save_nifti(path: Path, values: np.ndarray, affine: np.ndarray | None = None, **codes: int) -> Path:
    """Write (x, y, z, ...) with nibabel."""
    image = nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine)
    image.header.set_xyzt_units("mm")
    if "sform" in codes:
        image.set_sform(affine, codes["sform"])
    if "qform" in codes:
        image.set_qform(affine, codes["qform"])
    nibabel.save(image, path)
    return path


def values_of(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return rng.integers(0, 200, shape).astype(dtype)


def content(path: Path) -> np.ndarray:
    return read_volume(path).values.numpy()
