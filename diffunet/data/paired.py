"""Load pairs of images or volumes and targets: from a folder, or a built-in set."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.progress import no_progress
from ..core.rng import seed_for
from .annotation import keep_slices
from .borders import WeightConfig, place_weights, separate_touching
from .case_cache import Stored, folder_of
from .cases import Cached, Case, Cases
from .complex_pairs import ComplexFolder, has_molecules
from .intensity import clipped, foreground_window, standardized
from .labels import UNKNOWN, Labels, count_codes, survey, value_of
from .linear import LinearMap, fit_linear
from .pair_files import BuiltIn, ImageFolder, ImagesAlone, Kind, PairFiles
from .pairs import PairConfig, find_images, find_pairs, split_fold
from .phantoms.registry import PHANTOMS
from .quiet import quiet
from .volume_pairs import VolumeFolder, find_volume_pairs

SLICES = 5
"""Stream of random numbers: of the slices with labels."""
SURVEYED = 100
"""Training cases, at most, from which statistics are taken, evenly spaced."""


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of each channel, (C,) fp32."""

    mean: Tensor
    std: Tensor

    @property
    def rms(self) -> Tensor:
        """Root mean square of each channel, (C,) fp32."""
        return torch.hypot(self.mean, self.std)


@dataclass(frozen=True)
class PairedData:
    """Cases, and what was found in them."""

    config: PairConfig
    """Resolved: channels, values and class names, spacing and window."""
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

    @property
    def dims(self) -> int:
        """Axes of the images."""
        return len(self.cases[0].size)

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
    dims: int = 2,
) -> PairedData:
    """Return the pairs of a config with targets of this kind, and log what was found.

    dims: 2 for images, 3 for volumes. Raise UserError for a folder without pairs, for files that cannot be read, and
    for labels in doubt.
    """
    files = _files_of(config, kind, dims, log)
    number = len(files.names)
    trained, _ = split_fold(files.names, config)
    labels, counted = None, []
    if kind == "segmentation":
        labels = survey(_counted(files, counted, progress), files.config)
    counts = labels.total(counted) if labels else {}
    of_training = labels.total(counted[index] for index in trained) if labels else {}
    if config.slices is not None and (dims == 2 or not labels):
        raise UserError("data.slices: keeps labels of volumes; leave it out")
    decode = _Decoder(files, labels, weights, of_training, frozenset(trained if config.slices is not None else ()))
    surveyed = np.unique(np.linspace(0, len(trained) - 1, min(SURVEYED, len(trained))).astype(int)).tolist()
    sample = [decode(trained[place]) for place in surveyed]
    gibibytes = sum(map(_bytes, sample)) / len(sample) * number / 2**30
    in_memory = gibibytes <= config.memory_budget
    fingerprint = hashlib.sha256(f"{kind} {labels}".encode() + files.digest()).hexdigest()
    cases: Cases = Cached(decode, number, in_memory)
    if dims == 3 and not in_memory:  # decompressing and resampling a volume for a patch takes seconds
        balance = of_training if weights.classes == "balanced" else None
        kept = files.config.spacing, files.config.intensity, files.config.channels
        sparse = (config.slices, sorted(decode.sparse)) if decode.sparse else None
        folder = folder_of(fingerprint, files.changed, *kept, weights, balance, sparse)
        cases = Stored(decode, number, folder)
        log(f"{gibibytes:.1f} GiB decoded, over data.memory_budget: kept in {folder}, which may be deleted")
    for index in progress(range(number)) if in_memory else ():  # a mistake is found before the training, not amid it
        _check_alike(cases[index], sample[0])
    target = _statistics([case.target for case in sample]) if kind == "regression" else None
    if target and target.mean.isnan().any():
        raise UserError("data.path: a channel of the targets is unknown (NaN) everywhere; leave it out")
    log(_summary(files, sample, labels, counts))
    if dims == 2 and not in_memory:
        log(f"{gibibytes:.1f} GiB decoded, over data.memory_budget: decoded as needed")
    resolved = _resolved(files.config, sample, labels)
    return PairedData(
        config=resolved,
        names=files.names,
        cases=cases,
        labels=labels,
        image=_statistics([clipped(case.image, resolved.window) for case in sample]),
        target=target,
        linear=fit_linear(sample) if target else None,
        fingerprint=fingerprint,
        in_memory=in_memory,
    )


def _files_of(config: PairConfig, kind: Kind, dims: int, log: Callable[[str], None]) -> PairFiles:
    if config.path in PHANTOMS:
        return BuiltIn(config, kind, dims)
    if dims == 3 and has_molecules(Path(config.path).expanduser()):
        return ComplexFolder(config)
    if dims == 3:
        return VolumeFolder(config, find_volume_pairs(config, log))
    if kind == "images" and (found := find_images(config)):
        return ImagesAlone(config, *found)
    return ImageFolder(config, find_pairs(config, log))


@dataclass(frozen=True)
class _Decoder:
    """Makes a case of its files."""

    files: PairFiles
    labels: Labels | None
    weights: WeightConfig
    counts: Mapping[int, int]
    sparse: frozenset[int] = frozenset()
    """Cases of which only some slices have labels."""

    def __call__(self, index: int) -> Case:
        files, labels = self.files, self.labels
        name, image, weight = files.names[index], files.image(index), files.weight(index)
        spacing = files.spacing(index)
        if files.config.intensity == "case":
            image = standardized(image)
        if weight is None and files.weighted:
            weight = torch.ones(image.shape[1:])
        if labels is None:
            return Case(name, image, files.values(index), weight, spacing=spacing)
        codes = labels.alike(files.codes(index))
        instances = np.where(codes == labels.ignore, 0, codes) if labels.instances else None
        if instances is not None:
            codes = np.where(codes == labels.ignore, codes, separate_touching(instances))
        target = labels.classes_of(codes, files.place(index))
        if index in self.sparse:
            target = keep_slices(target, np.random.default_rng(seed_for(index, SLICES)), files.config.slices)
        places = place_weights(target, instances, _class_counts(labels, self.counts), self.weights)
        if places is not None:
            weight = torch.from_numpy(places) * (1 if weight is None else weight)
        kept = None if instances is None else torch.from_numpy(instances.astype(np.int32))
        return Case(name, image, torch.from_numpy(target), weight, kept, spacing)


def _counted(files: PairFiles, counted: list[Mapping[int, int]], progress: Callable) -> Iterator[Mapping[int, int]]:
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
    if case.target.is_floating_point() and len(case.target) != len(first.target):
        raise UserError(
            f"data.path: the target of {case.name} has {len(case.target)} channels, that of {first.name} "
            f"{len(first.target)}; save all in one way"
        )


def _resolved(config: PairConfig, sample: list[Case], labels: Labels | None) -> PairConfig:
    found: dict = {"channels": len(sample[0].image)}
    if config.intensity == "foreground":
        found["intensity"] = foreground_window(sample)
    if labels:
        found["class_names"] = labels.names
        if not labels.instances:
            found["values"] = tuple(map(value_of, labels.codes))
    return config.model_copy(update=found)


def _bytes(case: Case) -> int:
    parts = (case.image, case.target, case.weight, case.instances)
    return sum(part.nbytes for part in parts if part is not None)


def _statistics(images: list[Tensor]) -> Statistics:
    """Return the statistics of (C, *S) each, over places that are known; a constant channel has the deviation 1."""
    values = [image.double().flatten(1) for image in images]
    mean = torch.stack([part.nanmean(1) for part in values]).nanmean(0)
    square = torch.stack([(part - mean[:, None]).square().nanmean(1) for part in values]).nanmean(0)
    std = square.sqrt()
    return Statistics(mean.float(), torch.where(std > 0, std, 1.0).float())


def _summary(files: PairFiles, sample: list[Case], labels: Labels | None, counts: Mapping[int, int]) -> str:
    sizes = sorted({case.size for case in sample})
    size = "×".join(map(str, sizes[0])) + (f" to {'×'.join(map(str, sizes[-1]))}" if len(sizes) > 1 else "")
    channels = len(sample[0].image)
    unit = "pixels" if len(sizes[0]) == 2 else "voxels"
    what = "images" if isinstance(files, ImagesAlone) else "pairs"
    start = f"{len(files.names):,} {what} of {size} {unit}, {channels} channel{'s' * (channels > 1)}"
    if files.config.spacing not in (None, "files"):
        start += f", spaced {'×'.join(f'{side:.3g}' for side in files.config.spacing)} {files.unit}"
    if isinstance(files, ImagesAlone):
        return start
    if labels is None:
        return f"{start} -> {len(sample[0].target)} number{'s' * (len(sample[0].target) > 1)} for each place"
    total = sum(counts.values())
    shares = [number / total for number in _class_counts(labels, counts)]
    classes = ", ".join(f"{name} {share:.1%}" for name, share in zip(labels.names, shares, strict=True))
    unknown = counts.get(labels.ignore, 0) / total if labels.ignore is not None else 0
    objects = f", {len(counts) - 1:,} objects or fewer an image" if labels.instances else ""
    if files.config.slices is not None:
        known = sum(int((case.target != UNKNOWN).sum()) for case in sample) / sum(
            case.target.numel() for case in sample
        )
        objects += f"; {known:.1%} of the training's voxels keep their label"
    return f"{start} -> {classes}" + (f", {unknown:.1%} without a label" if unknown else "") + objects


def _class_counts(labels: Labels, counts: Mapping[int, int]) -> list[int]:
    """Return the number of places of each class."""
    if not labels.instances:
        return [counts.get(code, 0) for code in labels.codes]
    return [counts.get(0, 0), sum(number for code, number in counts.items() if code not in (0, labels.ignore))]
