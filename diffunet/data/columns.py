"""Columns of a dataset: the values of one condition for all images."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from ..core.rng import BatchRNG


@dataclass(frozen=True)
class Column:
    """The values of a condition: -1 or NaN where an image has none."""

    values: Tensor
    """(N, ...), on the device of the images."""

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Return the values of some images, (B, ...), as a loader transfers them."""
        return self.values[indices]

    def aligned(self, value: Tensor) -> Tensor | None:
        """Return values that are images as (B, C, H, W) in [-1, 1], to be augmented with the image; None for others."""
        return None

    def prepare(self, value: Tensor, image: Tensor, rng: BatchRNG) -> Tensor:
        """Return `self[indices]` as the embedding takes it, or the augmented `aligned` of it.

        image: (B, C, H, W) in [-1, 1], augmented.
        """
        return value

    def words(self, value: Tensor, image: Tensor, rng: BatchRNG) -> list[Any]:
        """Return `self[indices]` as a user would give it: class indices, captions, numbers, pixels (C, h, w).

        None stands for an absent value. image: (B, C, H, W) in [-1, 1].
        """
        return [None if index < 0 else index for index in value.tolist()]

    def plain(self) -> Self:
        """Return the column without regularization, for validation."""
        return self

    def select(self, kept: Tensor) -> Self:
        """Return the column of some of the images, indices (n,)."""
        return replace(self, values=self.values[kept])

    def to(self, device: torch.device) -> Self:
        """Return the column on a device."""
        return replace(self, values=self.values.to(device))

    def digest(self) -> bytes:
        """Return bytes that identify the values."""
        kind = "<f8" if self.values.is_floating_point() else "<i8"
        return self.values.cpu().numpy().astype(kind).tobytes()

    @property
    def files(self) -> Mapping[str, str]:
        """Text files, by name, without which the values of a user cannot be parsed; a run keeps them in model/."""
        return {}


@dataclass(frozen=True)
class VectorColumn(Column):
    """Numbers of all images, (N, width) fp32, standardized by `mean` and `std`; NaN where one is missing."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def words(self, value: Tensor, image: Tensor, rng: BatchRNG) -> list[list[float] | None]:
        """Return the numbers before they were standardized, to seven digits."""
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (self.mean, self.std))
        numbers = (value.double() * std + mean).tolist()
        return [None if any(map(math.isnan, row)) else [float(f"{n:.7g}") for n in row] for row in numbers]
