"""Load pairs of images and targets: from a folder, or a built-in set."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.progress import no_progress
from .arrays import DEPTHS
from .borders import WeightConfig, place_weights, separate_touching
from .cases import Cached, Case, Cases
from .decoding import UNREADABLE, finite, inspect, read_values, reason_of
from .labels import Labels, count_codes, read_codes, survey, value_of
from .linear import LinearMap, fit_linear
from .pairs import Pair, PairConfig, Source, find_pairs, split_fold
from .pansharpening import enlarged
from .phantoms import PHANTOMS
from .quiet import quiet
from .sources import length_and_head

Kind = Literal["segmentation", "regression"]
SURVEYED = 100
"""Training cases, at most, from which statistics are taken, evenly spaced."""


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of each channel, (C,) fp32."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class PairedData:
    """Cases, and what was found in them."""

    config: PairConfig
    """Resolved: channels, values and class names."""
    names: list[str]
    cases: Cases
    labels: Labels | None
    """None: the targets are numbers."""
    image: Statistics
    target: Statistics | None
    """Of targets that are numbers."""
    linear: LinearMap | None
    """The best linear prediction of such targets."""
    fingerprint: str
    in_memory: bool

    def split_fold(self) -> tuple[list[int], list[int]]:
        """Return the indices of the cases to train on, and of those held out."""
        return split_fold(self.names, self.config)


@quiet()
def load_pairs(
    config: PairConfig,
    kind: Kind,
    weights: WeightConfig = WeightConfig(),
    log: Callable[[str], None] = print,
    progress: Callable = no_progress,
) -> PairedData:
    """Return the pairs of a config with targets of this kind, and log what was found.

    Raise UserError for a folder without pairs, for files that cannot be read, and for labels in doubt.
    """
    files: _Files = _Phantoms(config, kind) if config.path in PHANTOMS else _Folder(config, find_pairs(config, log))
    number = len(files.names)
    trained, _ = split_fold(files.names, config)
    labels, counted = None, []
    if kind == "segmentation":
        labels = survey(_counted(files, counted, progress), files.config)
    counts = labels.total(counted) if labels else {}
    of_training = labels.total(counted[index] for index in trained) if labels else {}
    decode = _Decoder(files, labels, weights, of_training)
    surveyed = np.unique(np.linspace(0, len(trained) - 1, min(SURVEYED, len(trained))).astype(int)).tolist()
    sample = [decode(trained[place]) for place in surveyed]
    gibibytes = sum(map(_bytes, sample)) / len(sample) * number / 2**30
    in_memory = gibibytes <= config.memory_budget
    cases = Cached(decode, number, in_memory)
    for index in progress(range(number)) if in_memory else ():  # a mistake is found before the training, not amid it
        _check_alike(cases[index], sample[0])
    target = _statistics([case.target for case in sample]) if kind == "regression" else None
    if target and target.mean.isnan().any():
        raise UserError("data.path: a channel of the targets is unknown (NaN) everywhere; leave it out")
    log(_summary(files, sample, labels, counts))
    if not in_memory:
        log(f"{gibibytes:.1f} GiB decoded, over data.memory_budget: decoded as needed")
    return PairedData(
        config=_resolved(files.config, sample[0], labels),
        names=files.names,
        cases=cases,
        labels=labels,
        image=_statistics([case.image for case in sample]),
        target=target,
        linear=fit_linear(sample) if target else None,
        fingerprint=hashlib.sha256(f"{kind} {labels}".encode() + files.digest()).hexdigest(),
        in_memory=in_memory,
    )


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


# ── where cases come from ─────────────────────────────────────────────────────────────────────────


class _Files(Protocol):
    """Images and targets by index."""

    config: PairConfig
    names: list[str]
    weighted: bool
    """Whether any case has weights of its own; they are 1 in the others."""

    def image(self, index: int) -> Tensor: ...
    def codes(self, index: int) -> np.ndarray: ...
    def values(self, index: int) -> Tensor: ...
    def weight(self, index: int) -> Tensor | None: ...
    def place(self, index: int) -> str: ...
    def digest(self) -> bytes: ...


class _Folder:
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
        source = self.pairs[index].weight
        return None if source is None else read_image([source], 1)[0].float()

    def place(self, index: int) -> str:
        return str(self.pairs[index].target)

    def digest(self) -> bytes:
        digest = hashlib.sha256()
        for pair in self.pairs:
            for source in (*pair.image, pair.target, *([pair.weight] if pair.weight else [])):
                length, head = length_and_head({"bytes": None, "path": source.path})
                digest.update(b"%d:%d:" % (source.page, length) + head)
        return digest.digest()


class _Phantoms:
    """A built-in set."""

    weighted = False

    def __init__(self, config: PairConfig, kind: Kind):
        self.set = PHANTOMS[config.path]
        if (self.set.kind == "values") != (kind == "regression"):
            fitting = [name for name, one in PHANTOMS.items() if (one.kind == "values") == (kind == "regression")]
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

    def weight(self, index: int) -> Tensor | None:
        return None

    def place(self, index: int) -> str:
        return self.names[index]

    def digest(self) -> bytes:
        return self.config.path.encode()


@dataclass(frozen=True)
class _Decoder:
    """Makes a case of its files."""

    files: _Files
    labels: Labels | None
    weights: WeightConfig
    counts: Mapping[int, int]

    def __call__(self, index: int) -> Case:
        files, labels = self.files, self.labels
        name, image, weight = files.names[index], files.image(index), files.weight(index)
        if weight is None and files.weighted:
            weight = torch.ones(image.shape[1:])
        if labels is None:
            return Case(name, image, files.values(index), weight)
        codes = labels.alike(files.codes(index))
        instances = np.where(codes == labels.ignore, 0, codes) if labels.instances else None
        if instances is not None:
            codes = np.where(codes == labels.ignore, codes, separate_touching(instances))
        target = labels.classes_of(codes, files.place(index))
        places = place_weights(target, instances, _class_counts(labels, self.counts), self.weights)
        if places is not None:
            weight = torch.from_numpy(places) * (1 if weight is None else weight)
        kept = None if instances is None else torch.from_numpy(instances.astype(np.int32))
        return Case(name, image, torch.from_numpy(target), weight, kept)


def _counted(files: _Files, counted: list[Mapping[int, int]], progress: Callable) -> Iterator[Mapping[int, int]]:
    """Yield the number of places of each code in each target, and append it to the list."""
    for index in progress(range(len(files.names))):
        counted.append(count_codes(files.codes(index)))
        yield counted[-1]


# ── what was found ────────────────────────────────────────────────────────────────────────────────


def _check_alike(case: Case, first: Case) -> None:
    """Raise UserError if two cases have different channels."""
    found, expected = len(case.image), len(first.image)
    if found != expected:
        raise UserError(
            f"data.channels: the image of {case.name} has {found}, that of {first.name} {expected}; choose 1 or 3, or "
            "add the missing files"
        )
    if case.target.ndim == 3 and len(case.target) != len(first.target):
        raise UserError(
            f"data.path: the target of {case.name} has {len(case.target)} channels, that of {first.name} "
            f"{len(first.target)}; save all in one way"
        )


def _resolved(config: PairConfig, case: Case, labels: Labels | None) -> PairConfig:
    found: dict = {"channels": len(case.image)}
    if labels:
        found["class_names"] = labels.names
        if not labels.instances:
            found["values"] = tuple(map(value_of, labels.codes))
    return config.model_copy(update=found)


def _bytes(case: Case) -> int:
    parts = (case.image, case.target, case.weight, case.instances)
    return sum(part.nbytes for part in parts if part is not None)


def _statistics(images: list[Tensor]) -> Statistics:
    """Return the statistics of (C, H, W) each, over places that are known; a constant channel has the deviation 1."""
    values = [image.double().flatten(1) for image in images]
    mean = torch.stack([part.nanmean(1) for part in values]).nanmean(0)
    square = torch.stack([(part - mean[:, None]).square().nanmean(1) for part in values]).nanmean(0)
    std = square.sqrt()
    return Statistics(mean.float(), torch.where(std > 0, std, 1.0).float())


def _summary(files: _Files, sample: list[Case], labels: Labels | None, counts: Mapping[int, int]) -> str:
    sizes = sorted({case.size for case in sample})
    size = "×".join(map(str, sizes[0])) + (f" to {'×'.join(map(str, sizes[-1]))}" if len(sizes) > 1 else "")
    channels = len(sample[0].image)
    start = f"{len(files.names):,} pairs of {size} pixels, {channels} channel{'s' * (channels > 1)}"
    if labels is None:
        return f"{start} -> {len(sample[0].target)} number{'s' * (len(sample[0].target) > 1)} for each place"
    total = sum(counts.values())
    shares = [number / total for number in _class_counts(labels, counts)]
    classes = ", ".join(f"{name} {share:.1%}" for name, share in zip(labels.names, shares, strict=True))
    unknown = counts.get(labels.ignore, 0) / total if labels.ignore is not None else 0
    objects = f", {len(counts) - 1:,} objects or fewer an image" if labels.instances else ""
    return f"{start} -> {classes}" + (f", {unknown:.1%} without a label" if unknown else "") + objects


def _class_counts(labels: Labels, counts: Mapping[int, int]) -> list[int]:
    """Return the number of places of each class."""
    if not labels.instances:
        return [counts.get(code, 0) for code in labels.codes]
    return [counts.get(0, 0), sum(number for code, number in counts.items() if code not in (0, labels.ignore))]
