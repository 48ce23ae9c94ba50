"""Cases, an image or volume and its target each, and the patches of them that a training sees.

An example is a patch and its index says which: index i is a patch of case i % cases, at a place drawn for i. So the
order, the loader and resuming are those of any data set, and each case is seen equally often.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.reflect import reflect_index
from ..core.rng import BatchRNG, seed_for

PATCHES = 1000
"""Patches of each case in an epoch."""
KEPT_PLACES = 10_000
"""Places of each class of a case, at most, that are kept as centers of patches."""
PLACE, KEPT = 3, 4
"""Streams of random numbers: of a patch's place, and of the places that are kept."""
FEW = 8
"""Cases that are kept decoded if not all are."""


@dataclass(frozen=True)
class Case:
    """An image with its target."""

    name: str
    image: Tensor
    """(C, *S) in the units and the type of its file; S is (height, width), of a volume (depth, height, width)."""
    target: Tensor
    """(*S) int16, classes, UNKNOWN without a label; or (C', *S) fp32, NaN where unknown."""
    weight: Tensor | None = None
    """(*S) fp32, of each place in the loss."""
    instances: Tensor | None = None
    """(*S) int32, the object of each place; 0: background."""
    spacing: tuple[float, ...] | None = None
    """Distance of neighboring places along each axis of S in millimeters; None: unknown."""

    def __post_init__(self):
        for kind, values in (("target", self.target), ("weight", self.weight)):
            if values is not None and values.shape[-len(self.size) :] != self.image.shape[1:]:
                sizes = ["×".join(map(str, part.shape[-len(self.size) :])) for part in (self.image, values)]
                unit = "pixels" if len(self.size) == 2 else "voxels"
                raise UserError(
                    f"{self.name}: the image has {sizes[0]} {unit}, its {kind} {sizes[1]}; crop or scale one"
                )

    @property
    def size(self) -> tuple[int, ...]:
        """The sides S."""
        return tuple(self.image.shape[1:])

    @cached_property
    def places(self) -> list[np.ndarray]:
        """Some places of each class that the case has, (n, axes) each; none if the target has no classes."""
        if self.target.is_floating_point():
            return []
        classes, kept = self.target.numpy(), []
        for label in np.unique(classes[classes >= 0]).tolist():
            flat = np.flatnonzero(classes == label)
            if len(flat) > KEPT_PLACES:
                flat = np.random.Generator(np.random.Philox(seed_for(label, KEPT))).permutation(flat)[:KEPT_PLACES]
            kept.append(np.stack(np.unravel_index(flat, classes.shape), axis=1).astype(np.int32))
        return kept


class Cases(Protocol):
    """Cases by index, decoded or not."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Case: ...


class Cached:
    """Cases that are kept once they are decoded: all, or a few."""

    def __init__(self, decode: Callable[[int], Case], number: int, keep_all: bool):
        self.number = number
        self.get = lru_cache(maxsize=None if keep_all else FEW)(decode)

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> Case:
        return self.get(index)


class Warp(Protocol):
    """Augmentation of whole batches, such as `warping.Warping`."""

    @property
    def margin(self) -> tuple[int, ...]:
        """Pixels that it can reach beyond the patch, on each side of each axis."""
        ...

    def __call__(
        self, image: Tensor, target: Tensor, weight: Tensor | None, rng: BatchRNG
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return patches from crops that are larger by the margin on each side."""
        ...


@dataclass(frozen=True)
class Patches:
    """The patches of cases: a `TrainingData` whose batches have image, target and, if cases have one, weight."""

    cases: Cases
    indices: Sequence[int]
    """The cases in use."""
    size: tuple[int, ...]
    """Sides of the network's input."""
    border: tuple[int, ...]
    """By how much the output is smaller along each axis, with valid borders."""
    balanced: float
    """Share of the patches whose center has a class drawn first."""
    warp: Warp
    fingerprint: str
    workers: int = 0

    @property
    def device(self) -> torch.device:
        """The device of the crops."""
        return torch.device("cpu")

    def __len__(self) -> int:
        return len(self.indices) * PATCHES

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """Return crops, as large as a patch with the margin of the warp, in the types of the cases."""
        crops = [self._crop(index) for index in indices]
        return {name: torch.stack([crop[name] for crop in crops]) for name in crops[0]}

    def prepare(self, batch: dict[str, Tensor], rng: BatchRNG) -> dict[str, Tensor]:
        """Return the batch as the network takes it: images in fp32, all warped together."""
        image, target, weight = self.warp(batch["image"].float(), batch["target"], batch.get("weight"), rng)
        return {"image": image, "target": target, **({} if weight is None else {"weight": weight})}

    def _crop(self, index: int) -> dict[str, Tensor]:
        """Return the crop of a patch; beyond the image's edges it is mirrored."""
        case = self.cases[self.indices[index % len(self.indices)]]
        corner = self._corner(case, index)
        places = [
            reflect_index(torch.arange(side + 2 * margin) + start - margin, whole)
            for side, margin, start, whole in zip(self.size, self.warp.margin, corner, case.size, strict=True)
        ]
        parts = {"image": case.image, "target": case.target, "weight": case.weight}
        return {name: _gathered(part, places) for name, part in parts.items() if part is not None}

    def _corner(self, case: Case, index: int) -> list[int]:
        """Return the corner of a patch. Its output lies inside the image, if it is not larger than that."""
        random = np.random.Generator(np.random.Philox(seed_for(index, PLACE)))
        share, *fractions = random.random(1 + len(self.size))
        spare = [whole - (side - edge) for whole, side, edge in zip(case.size, self.size, self.border, strict=True)]
        starts = [math.floor(fraction * (max(n, 0) + 1)) for fraction, n in zip(fractions, spare, strict=True)]
        if share < self.balanced and (places := case.places):
            center = _drawn(places, random)
            outputs = [side - edge for side, edge in zip(self.size, self.border, strict=True)]
            starts = [min(max(c - o // 2, 0), max(n, 0)) for c, o, n in zip(center, outputs, spare, strict=True)]
        return [start - edge // 2 for start, edge in zip(starts, self.border, strict=True)]


def _gathered(values: Tensor, places: list[Tensor]) -> Tensor:
    """Return (..., *S') of (..., *S) at places along each of the last axes; of a file, only these parts are read."""
    first = values.ndim - len(places)
    for axis, along in enumerate(places, start=first):
        values = values.narrow(axis, low := int(along.min()), int(along.max()) + 1 - low)
        values = values.index_select(axis, along - low)
    return values


def _drawn(places: list[np.ndarray], random: np.random.Generator) -> list[int]:
    of_class = places[random.integers(len(places))]
    return of_class[random.integers(len(of_class))].tolist()


# ── stacks ────────────────────────────────────────────────────────────────────────────────────────


def resemblance(cases: Cases, pairs: int) -> tuple[float, float]:
    """Return the mean correlation of the gray values of consecutive cases, and of those half of the set apart.

    It is that of some evenly spaced pairs. Slices of one stack correlate more with their neighbors.
    """
    number = len(cases)
    starts = np.unique(np.linspace(0, number - 1, min(pairs, number)).astype(int)).tolist()
    near, far = (
        float(np.mean([_correlation(cases[start], cases[(start + step) % number]) for start in starts]))
        for step in (1, number // 2)
    )
    return near, far


def _correlation(first: Case, second: Case) -> float:
    """Return the correlation of two images where both have pixels; 0 if one is constant."""
    shared = tuple(slice(min(sides)) for sides in zip(first.size, second.size, strict=True))
    grays = [case.image[(slice(None), *shared)].double().mean(0).numpy().ravel() for case in (first, second)]
    return float(np.corrcoef(grays)[0, 1]) if all(gray.std() > 0 for gray in grays) else 0.0
