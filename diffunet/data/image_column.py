"""Images as values of a condition: a second image beside each, or one made from the image itself."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from ..core.rng import BatchRNG
from .columns import Column
from .decoding import UNREADABLE, decode, describe_unreadable, resize
from .degradation import Degradation
from .pixels import denormalize, normalize, white
from .sources import length_and_head

if TYPE_CHECKING:
    from datasets import Dataset

MISSING = -1
"""The pixels of a missing image."""
HASHED = 1000
"""Maximum number of images that are hashed for the fingerprint."""


@dataclass(frozen=True)
class SourceImages:
    """Images in their files, {bytes, path}, decoded when they are indexed."""

    rows: "Dataset | Sequence[dict | None]"
    channels: int
    bit_depth: int
    value_range: tuple[float, float] | None
    size: tuple[int, int]
    indices: np.ndarray
    """The rows in use."""

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def nbytes(self) -> int:
        """Memory of all images, decoded."""
        return len(self) * self.channels * self.size[0] * self.size[1] * self.dtype.itemsize

    @property
    def dtype(self) -> torch.dtype:
        """The type of pixels that also holds MISSING."""
        return {8: torch.int16, 16: torch.int32, 32: torch.float32}[self.bit_depth]

    def row(self, index: int) -> dict | None:
        """Return {bytes, path} of an image."""
        row = self.rows[int(self.indices[index])]
        return row["image"] if row and "image" in row else row

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Return (B, C, H, W), MISSING for a missing image and, after a message, for an unreadable one."""
        return torch.stack([self._decode(index) for index in indices.tolist()])

    def decoded(self) -> Tensor:
        """Return all images, (N, C, H, W)."""
        pixels = torch.empty(len(self), self.channels, *self.size, dtype=self.dtype)
        with ThreadPoolExecutor() as pool:
            for index, image in enumerate(pool.map(self._decode, range(len(self)))):
                pixels[index] = image
        return pixels

    def _decode(self, index: int) -> Tensor:
        row = self.row(index)
        if row:
            try:
                pixels = decode(row, self.channels, self.bit_depth, self.value_range)
                return resize(pixels, self.size).to(self.dtype)
            except UNREADABLE as error:
                print(f"without its source: {describe_unreadable(row, index, error)}")
        return torch.full((self.channels, *self.size), MISSING, dtype=self.dtype)


@dataclass(frozen=True)
class ImageColumn(Column):
    """Images as a condition, degraded after augmentation.

    The condition is made from the image itself if `values` are empty, (N, 0).
    """

    values: "Tensor | SourceImages"  # pyright: ignore
    bit_depth: int
    degradation: Degradation
    noise: tuple[float, float] | None = None
    """Range of the standard deviation of noise on the planes, which is one more plane."""
    hashed: bytes = b""
    """Hash of the files of pairs."""

    def aligned(self, value: Tensor) -> Tensor | None:
        """Return the images of pairs, (B, C, H, W) in [-1, 1], NaN where missing."""
        if value.ndim == 2:
            return None
        return normalize(value, self.bit_depth).masked_fill(value < 0, torch.nan)

    def prepare(self, value: Tensor, image: Tensor, rng: BatchRNG) -> Tensor:
        """Return planes (B, P, H, W), NaN for an example without a source."""
        measurement, absent = self._measure(image if value.ndim == 2 else value, rng)
        planes = self.degradation.planes(measurement)
        if self.noise is not None:
            low, high = self.noise
            std = low + (high - low) * rng.uniform_like(planes)
            planes = with_noise(planes, self.degradation, std, rng.normal_like(planes))
        return planes.masked_fill(absent, torch.nan)

    def _measure(self, source: Tensor, rng: BatchRNG) -> tuple[Tensor, Tensor]:
        """Return measurements (B, C', H', W'), and which images are missing, (B, 1, 1, 1) bool."""
        absent = source.isnan().flatten(1).any(1)[:, None, None, None]
        return self.degradation.degrade(source.masked_fill(absent, 0.0), rng), absent

    def words(self, value: Tensor, image: Tensor, rng: BatchRNG) -> list[Tensor | None]:
        """Return the pixels of measurements, (C', H', W'); the last channel of masked ones is 0 where hidden."""
        aligned = self.aligned(value)
        measurement, absent = self._measure(image if aligned is None else aligned, rng)
        values, mask = self.degradation.split(measurement)
        pixels = denormalize(values, self.bit_depth)
        if mask is not None:
            alpha = ((1 - mask) * white(self.bit_depth)).to(pixels.dtype)
            pixels = torch.cat([pixels, alpha], dim=1)
        return [None if missing else image for image, missing in zip(pixels, absent.flatten().tolist(), strict=True)]

    def select(self, kept: Tensor) -> Self:
        if isinstance(self.values, Tensor):
            return super().select(kept)
        return replace(self, values=replace(self.values, indices=self.values.indices[kept.numpy()]))

    def to(self, device: torch.device) -> Self:
        return super().to(device) if isinstance(self.values, Tensor) else self

    def digest(self) -> bytes:
        return self.hashed


def digest_files(images: SourceImages) -> bytes:
    """Return the SHA-256 of the number of images and of length and head of some files."""
    digest = hashlib.sha256(str(len(images)).encode())
    for index in np.unique(np.linspace(0, len(images) - 1, min(HASHED, len(images))).astype(int)):
        try:
            length, head = length_and_head(images.row(index))
        except (OSError, ValueError):
            length, head = -1, b""
        digest.update(b"%d:" % length + head)
    return digest.digest()


def with_noise(planes: Tensor, degradation: Degradation, std: Tensor, noise: Tensor) -> Tensor:
    """Return planes with noise on their values, sqrt(1 - s^2) planes + s noise, and one more plane s.

    std: (B,), the s of each example. Conditioning augmentation (Ho et al. 2021, section 4.2).
    """
    s = std[:, None, None, None]
    values, hidden = planes.split([degradation.values_shape[0], planes.shape[1] - degradation.values_shape[0]], dim=1)
    noisy = (1 - s**2).sqrt() * values + s * noise[:, : values.shape[1]]
    return torch.cat([noisy, hidden, s.expand_as(planes[:, :1])], dim=1)
