"""Where the images and targets of cases come from: pairs of files, or a built-in set."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..core.errors import UserError
from .arrays import DEPTHS
from .decoding import UNREADABLE, finite, inspect, read_values, reason_of
from .labels import read_codes
from .pairs import Pair, PairConfig, Source
from .pansharpening import enlarged
from .phantoms.registry import PHANTOMS
from .sources import length_and_head

Kind = Literal["segmentation", "regression", "images"]
"""What the targets are: classes, numbers, or numbers that a case need not have."""


class PairFiles(ABC):
    """Images and targets by index."""

    config: PairConfig
    names: list[str]
    weighted = False
    """Whether any case has weights of its own; they are 1 in the others."""
    unit = "mm"
    """Of spacings."""
    changed: object = None
    """When the files were changed last, where that matters."""

    @abstractmethod
    def image(self, index: int) -> Tensor:
        """Return an image, (C, *S), in the units of its file."""

    @abstractmethod
    def codes(self, index: int) -> np.ndarray:
        """Return the code of the class or the instance of each place, (*S) int64."""

    @abstractmethod
    def values(self, index: int) -> Tensor:
        """Return the numbers of each place, (C', *S) fp32, NaN where unknown."""

    @abstractmethod
    def digest(self) -> bytes:
        """Return a hash of all files."""

    def weight(self, index: int) -> Tensor | None:
        """Return the weight of each place in the loss, (*S) fp32, or None."""
        return None

    def spacing(self, index: int) -> tuple[float, ...] | None:
        """Return the distance of neighboring places along each axis, or None if it is unknown."""
        return None

    def place(self, index: int) -> str:
        """Return where a target is, for messages."""
        return self.names[index]


class ImageFolder(PairFiles):
    """Pairs of files."""

    def __init__(self, config: PairConfig, pairs: list[Pair]):
        self.config, self.pairs = config, pairs
        self.names = [pair.name for pair in pairs]
        self.weighted = any(pair.weight for pair in pairs)

    def image(self, index: int) -> Tensor:
        return read_image(self.pairs[index].image, self.config.channels)

    def codes(self, index: int) -> np.ndarray:
        return read_codes(self.pairs[index].target)

    def values(self, index: int) -> Tensor:
        return read_numbers(self.pairs[index].target)

    def weight(self, index: int) -> Tensor | None:
        return _read_weight(self.pairs[index].weight)

    def place(self, index: int) -> str:
        return str(self.pairs[index].target)

    def digest(self) -> bytes:
        return digest_of(self.pairs)


def digest_of(pairs: Sequence[Pair]) -> bytes:
    """Return a hash of the files of all pairs."""
    return digest_of_sources(
        source for pair in pairs for source in (*pair.image, pair.target, *([pair.weight] if pair.weight else []))
    )


def digest_of_sources(sources: Iterable[Source]) -> bytes:
    """Return a hash of files, by their lengths and first bytes."""
    digest = hashlib.sha256()
    for source in sources:
        length, head = length_and_head({"bytes": None, "path": source.path})
        digest.update(b"%d:%d:" % (source.page, length) + head)
    return digest.digest()


class ImagesAlone(PairFiles):
    """Images without targets."""

    def __init__(
        self, config: PairConfig, images: Mapping[str, tuple[Source, ...]], weights: Mapping[str, Source] | None = None
    ):
        """weights: files of the weight of each place, by the names of some images."""
        self.config, self.names, self.images = config, list(images), list(images.values())
        self.weights = weights or {}
        self.weighted = bool(self.weights)

    def image(self, index: int) -> Tensor:
        return read_image(self.images[index], self.config.channels)

    def codes(self, index: int) -> np.ndarray:
        raise UserError(f"data.path: {self.names[index]} has no target; add one with its classes")

    def values(self, index: int) -> Tensor:
        return torch.full((1, *self.image(index).shape[1:]), torch.nan)

    def weight(self, index: int) -> Tensor | None:
        return _read_weight(self.weights.get(self.names[index]))

    def digest(self) -> bytes:
        images = (source for sources in self.images for source in sources)
        return digest_of_sources([*images, *self.weights.values()])


class BuiltIn(PairFiles):
    """A built-in set."""

    def __init__(self, config: PairConfig, kind: Kind, dims: int):
        self.set = PHANTOMS[config.path]
        if (found := len(self.set.size)) != dims:
            raise UserError(f"unet.dims: the built-in set {config.path} has {found} axes (got {dims}); use {found}")
        has_values = kind != "segmentation"
        if (self.set.kind == "values") != has_values:
            fitting = [name for name, one in PHANTOMS.items() if (one.kind == "values") == has_values]
            raise UserError(f"data.path: {config.path} is no data set for {kind}; use {', '.join(fitting)}")
        labels = {} if self.set.kind == "values" else {"labels": self.set.kind, "class_names": self.set.names}
        self.config = config.model_copy(update=labels)
        self.names = [f"{config.path}_{index:04d}" for index in range(self.set.cases)]
        self.case = lru_cache(maxsize=2)(self.set.generate)

    def image(self, index: int) -> Tensor:
        image = self.case(index).image
        return torch.from_numpy(image.astype(np.int32) if image.dtype == np.uint16 else image)

    def codes(self, index: int) -> np.ndarray:
        return self.case(index).target.astype(np.int64)

    def values(self, index: int) -> Tensor:
        return torch.from_numpy(self.case(index).target.astype(np.float32))

    def digest(self) -> bytes:
        return self.config.path.encode()


# ── reading ───────────────────────────────────────────────────────────────────────────────────────


def read_image(sources: Sequence[Source], channels: int | None) -> Tensor:
    """Return an image, (C, H, W), in the units of its files: one, or one for each channel.

    `channels` converts between gray and color; None: as in the file. Raise UserError if a file cannot be read.
    """
    parts = []
    for source in sources:
        row = {"bytes": None, "path": source.path, "page": source.page}
        try:
            found = (channels if len(sources) == 1 else None) or _channels_of(row)
            parts.append(finite(read_values(row, found)[0]))
        except UNREADABLE as error:
            raise UserError(f"{source}: {reason_of(error)}") from None
    try:
        return torch.cat([_as_large_as(parts[0], part) for part in parts])
    except ValueError as misfit:
        raise UserError(f"{sources[0]}: its channels have different sizes, {misfit}; scale them to one") from None


def _read_weight(source: Source | None) -> Tensor | None:
    return None if source is None else read_image([source], 1)[0].float()


def _as_large_as(first: Tensor, part: Tensor) -> Tensor:
    """Return a part of an image with the size of the first, a whole multiple: of bands beside a sharp image."""
    (height, width), (rows, columns) = first.shape[1:], part.shape[1:]
    if (rows, columns) == (height, width):
        return part
    if height % rows or width % columns or height // rows != width // columns:
        raise ValueError(f"{height}×{width} and {rows}×{columns}")
    return enlarged(part, height // rows)


def _channels_of(row: dict) -> int:
    """Return the channels of a file, without the transparency of a color image."""
    kind = inspect(row)
    return kind.channels if kind.name in DEPTHS else min(kind.channels, 3)


def read_numbers(source: Source) -> Tensor:
    """Return the targets of a regression, (C, H, W) fp32, NaN where unknown. Raise UserError."""
    row = {"bytes": None, "path": source.path, "page": source.page}
    try:
        values = read_values(row, _channels_of(row))[0].float()
        if values.isinf().any():
            raise ValueError("infinite values")
    except UNREADABLE as error:
        raise UserError(f"{source}: {reason_of(error)}") from None
    return values
