"""Images paired with targets: which file belongs to which, and which part of the cases is held out.

Layouts of a folder, the first that fits:

    metadata.jsonl            lines {"file_name": ..., "target": ..., "weight": ...}, paths relative to the folder
    imagesTr/  labelsTr/      nnU-Net's: NAME_0000.png, NAME_0001.png, ... are the channels of NAME.png
    images/    labels/        paired by the name without its suffix; also masks/ or targets/, and weights/
    image.tif  label.tif      two stacks, paired by page
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from PIL import Image
from pydantic import Field, Strict, field_validator

from ..core.errors import UserError, did_you_mean, printable
from ..core.settings import Settings
from .arrays import MAX_CHANNELS
from .volumes.files import stem_of

IMAGE_FOLDERS = "images", "image", "imagesTr"
TARGET_FOLDERS = "labels", "label", "masks", "mask", "targets", "target", "labelsTr"
WEIGHT_FOLDERS = "weights", "weight"
CHANNEL = re.compile(r"(.+)_(\d{4})")
"""The name of a file with one channel, in nnU-Net's layout."""
STACK = {".tif", ".tiff"}
VOLUMES = ".nii", ".nii.gz", ".mha", ".mhd", ".npz"
"""Suffixes of files that are no images."""
Patch = Annotated[int, Field(ge=1, le=65_536)]
Slices = Annotated[int, Field(ge=0, le=65_536)]
Spacing = Annotated[float, Field(gt=0, le=1e6)]


class PairConfig(Settings):
    """The images, their targets, and the part that is held out."""

    path: str = "membranes"
    """A folder of pairs, or a built-in set: membranes, cells, shapes, contours, grains, defects; for regression stain,
    bands, water-fat-1 to water-fat-5; of volumes tubules, lesions, liver, globules."""
    targets: str | None = None
    """Folder of the targets, if path has only the images; null: found in path."""
    channels: int | None = Field(None, ge=1, le=MAX_CHANNELS)
    """1 gray, 3 color, others as in the files; null: as in the files."""
    labels: Literal["classes", "instances"] = "classes"
    """What the values of a segmentation's targets are: classes, or one value for each object on a background of 0."""
    values: Annotated[tuple[int | str, ...], Strict(False)] | None = None
    """The value, or the color as "#rrggbb", of each class, in order; null: as found, in rising order."""
    class_names: Annotated[tuple[str, ...], Strict(False)] | None = None
    """The names of the classes; null: their values."""
    regions: dict[str, Annotated[tuple[int | str, ...], Strict(False)]] = Field({})
    """Unions of classes by the values of these, as {whole: [1, 2, 3], core: [1, 3]} of a tumor and its parts: overlap
    in the loss is theirs instead of the classes', and they are scored, too."""
    ignore: int | str | None = None
    """The value, or color, of places without a label: they enter no loss, no score and no choice of patches."""
    spacing: Annotated[tuple[Spacing, Spacing, Spacing], Strict(False)] | Literal["files"] | None = None
    """Distance of neighboring voxels along z, y and x in millimeters, to which volumes are resampled; null: the median
    of the training cases, if they differ; files: as in the files."""
    intensity: Literal["set", "case", "foreground"] | Annotated[tuple[float, float], Strict(False)] = "set"
    """Units of the network's input. set: mean 0 and deviation 1 over the training set; case: over each image, whose
    gray values need no common scale, as of MRI; [low, high]: first clipped to this window, as of CT; foreground: to
    that of 99 % of the places of all classes but the first."""
    slices: Slices | Annotated[tuple[Slices, Slices, Slices], Strict(False)] | None = None
    """Slices of each training volume whose labels are known, along each axis, or along [z, y, x]: what a sparse
    annotation would be worth; null: all."""
    patch: Patch | Annotated[tuple[Patch, ...], Field(min_length=2, max_length=3), Strict(False)] | None = None
    """Side of the network's input in training, or [height, width], of volumes [depth, height, width]; null: as large as
    the images, at most 256, of volumes 64."""
    balanced: float = Field(0.33, ge=0, le=1)
    """Share of the patches whose center has a class that is drawn first, so that rare classes are seen."""
    folds: int = Field(5, ge=2, le=1000)
    """Parts into which the cases are divided, always in the same way."""
    fold: int | None = Field(0, ge=0, le=999)
    """The part that is held out, from 0; null: none."""
    fold_by: Literal["name", "order"] = "name"
    """name: each case by its name alone; order: consecutive cases together, as slices of one stack need."""
    group: str | None = None
    """A regular expression whose first group is what cases of one origin share in their names: '(.*)_[0-9]+'."""
    memory_budget: float = Field(2.0, ge=0)
    """GiB of decoded cases up to which all are kept; larger sets are decoded as needed."""
    workers: int = Field(2, ge=0, le=1000)
    """Processes that decode, for sets larger than memory_budget."""

    @field_validator("intensity")
    @classmethod
    def _is_a_window(cls, intensity: str | tuple[float, float]) -> str | tuple[float, float]:
        if not isinstance(intensity, str) and not intensity[0] < intensity[1]:
            raise ValueError(f"the window [{intensity[0]:g}, {intensity[1]:g}] is empty; write [low, high]")
        return intensity

    @property
    def window(self) -> tuple[float, float] | None:
        """The values to which images are clipped, of a resolved config."""
        return self.intensity if isinstance(self.intensity, tuple) else None

    @field_validator("group")
    @classmethod
    def _has_a_group(cls, pattern: str | None) -> str | None:
        try:
            if pattern is not None and not re.compile(pattern).groups:
                raise ValueError(f"{printable(pattern, 60)} has no group; write (...) around the shared part")
        except re.error as error:
            raise ValueError(f"{printable(pattern, 60)} is not a regular expression: {error}") from None
        return pattern


@dataclass(frozen=True)
class Source:
    """A file, or one page of it."""

    path: str
    page: int = 0

    def __str__(self) -> str:
        return f"{self.path}, page {self.page}" if self.page else self.path


@dataclass(frozen=True)
class Pair:
    """The files of one case."""

    name: str
    """Without folder and suffix; unique, and the name of its prediction."""
    image: tuple[Source, ...]
    """One file, or one for each channel."""
    target: Source
    weight: Source | None = None


def find_pairs(
    config: PairConfig, log: Callable[[str], None] = print, suffixes: Collection[str] | None = None
) -> list[Pair]:
    """Return the cases of a folder in the natural order of their names. Log what stays unpaired.

    suffixes: of the files, as ".nii.gz"; None: those of images, whose stacks are paired by page.

    Raise UserError if there is no such folder, no layout that fits, or no pair.
    """
    folder, files_in = Path(config.path).expanduser(), partial(image_files, suffixes=suffixes)
    if not folder.is_dir():
        names = os.listdir(folder.parent) if folder.parent.is_dir() else []
        near = did_you_mean(folder.name, names) or "; give a folder of images and targets"
        raise UserError(f"data.path: {printable(config.path)} is no folder{near}")
    if config.targets is not None:
        targets = Path(config.targets).expanduser()
        if not targets.is_dir():
            raise UserError(f"data.targets: {printable(config.targets)} is no folder; leave it out if path has both")
        return _by_name(folder, targets, None, log, files_in)
    if (folder / "metadata.jsonl").is_file():
        return _by_metadata(folder)
    images = _first(folder, IMAGE_FOLDERS)
    targets = _first(folder, TARGET_FOLDERS)
    if images and targets:
        return _by_name(images, targets, _first(folder, WEIGHT_FOLDERS), log, files_in)
    if suffixes is None and (stacks := _stacks(folder)):
        return stacks
    found = ", ".join(sorted(printable(entry.name, 40) for entry in folder.iterdir())[:6]) or "nothing"
    raise UserError(
        f"data.path: {folder} has no pairs of images and targets (found {found}); expected images/ and labels/, "
        "metadata.jsonl, imagesTr/ and labelsTr/, or image.tif and label.tif"
    )


def find_images(config: PairConfig) -> tuple[dict[str, tuple[Source, ...]], dict[str, Source]] | None:
    """Return the images of a folder without targets, and their weights, by name; None if there are targets or no image.

    Images are in the folder or in images/, weights in weights/.
    """
    folder = Path(config.path).expanduser()
    if config.targets is not None or not folder.is_dir() or (folder / "metadata.jsonl").is_file():
        return None
    if _first(folder, TARGET_FOLDERS) or _stacks(folder):
        return None
    weights = _first(folder, WEIGHT_FOLDERS)
    images = group_channels(image_files(_first(folder, IMAGE_FOLDERS) or folder))
    named = {name: images[name] for name in sorted(images, key=natural)}
    kept = {name: Source(str(file)) for name, file in _by_stem(image_files(weights) if weights else ()).items()}
    return (named, {name: kept[name] for name in named if name in kept}) if named else None


def natural(name: str) -> tuple:
    """Return a sort key by which image2 comes before image10; it differs for all names."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)], name


def image_files(folder: Path, suffixes: Collection[str] | None = None) -> list[Path]:
    """Return the files in a folder, not in its subfolders, in natural order: images and arrays, or these suffixes."""
    known = tuple(suffixes or {*Image.registered_extensions(), ".npy"})
    files = [file for file in folder.iterdir() if file.name.lower().endswith(known) and not file.name.startswith(".")]
    return sorted(files, key=lambda file: natural(file.name))


def group_channels(files: Iterable[Path]) -> dict[str, tuple[Source, ...]]:
    """Return the files of each image by its name: one, or those of its channels NAME_0000, NAME_0001, ...

    Raise UserError if two files have the same name, or if a channel is missing.
    """
    found: dict[str, dict[int, Path]] = {}
    for file in files:
        channel = CHANNEL.fullmatch(stem := stem_of(file))
        name, number = (channel[1], int(channel[2])) if channel else (stem, 0)
        _refuse_twins(file, found.setdefault(name, {}).setdefault(number, file))
    for name, channels in found.items():
        if missing := set(range(len(channels))) - channels.keys():
            raise UserError(f"data.path: {name} has no channel {min(missing):04d}; add it, or rename the others")
    return {name: tuple(Source(str(channels[n])) for n in sorted(channels)) for name, channels in found.items()}


def _by_stem(files: Iterable[Path]) -> dict[str, Path]:
    """Return files by their names without suffix. Raise UserError if two have the same."""
    found: dict[str, Path] = {}
    for file in files:
        _refuse_twins(file, found.setdefault(stem_of(file), file))
    return found


def _refuse_twins(file: Path, other: Path) -> None:
    if other != file:
        raise UserError(f"data.path: {other} and {file.name} have the same name; rename or remove one")


def _first(folder: Path, names: Iterable[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _by_name(
    images: Path,
    targets: Path,
    weights: Path | None,
    log: Callable[[str], None],
    files_in: Callable[[Path], list[Path]],
) -> list[Pair]:
    named = _by_stem(files_in(targets))
    files = files_in(images)
    # Only channels belong to one target; nuclei_0001 and nuclei_0002 with targets of their own are two images.
    separate = set(map(stem_of, files)) & named.keys()
    grouped = group_channels(file for file in files if stem_of(file) not in separate)
    alone = _by_stem(file for file in files if stem_of(file) in separate)
    grouped |= {name: (Source(str(file)),) for name, file in alone.items()}
    weighted = {name: Source(str(file)) for name, file in _by_stem(files_in(weights) if weights else ()).items()}
    paired = sorted(grouped.keys() & named.keys(), key=natural)
    if not paired and not files:
        _refuse_other_kind(images)
    if not paired:
        examples = [next(iter(names), "none") for names in (grouped, named)]
        raise UserError(
            f"data.path: no image in {images} has the name of a target in {targets} (such as {examples[0]} and "
            f"{examples[1]}, without suffix); rename them"
        )
    for kind, folder, single in (("images", images, grouped), ("targets", targets, named)):
        if unpaired := sorted(single.keys() - set(paired), key=natural):
            listed = ", ".join(printable(name, 40) for name in unpaired[:3]) + ", ..." * (len(unpaired) > 3)
            log(f"left out {len(unpaired)} {kind} in {folder} without a partner: {listed}")
    return [Pair(name, grouped[name], Source(str(named[name])), weighted.get(name)) for name in paired]


def _refuse_other_kind(folder: Path) -> None:
    """Raise UserError if the files have another number of axes than is configured."""
    for kind, dims, found in (
        ("volumes", 3, [file for file in folder.iterdir() if file.name.lower().endswith(VOLUMES)]),
        ("images", 2, image_files(folder)),
    ):
        if found:
            raise UserError(f"data.path: {folder} has {kind}; set unet.dims {dims} to train on them")


def _by_metadata(folder: Path) -> list[Pair]:
    pairs = []
    file = folder / "metadata.jsonl"
    for number, text in enumerate(_text(file).splitlines(), start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{file}:{number}: not JSON: {error.msg}; write one object on each line") from None
        if not isinstance(line, dict) or not {"file_name", "target"} <= line.keys():
            raise UserError(f"{file}:{number}: no file_name and target; every line needs both")
        names = line["file_name"] if isinstance(line["file_name"], list) else [line["file_name"]]
        if not names:
            raise UserError(f"{file}:{number}: file_name is empty; list the files of the channels")
        images = tuple(_inside(folder, name, file, number) for name in names)
        weight = line.get("weight")
        target = _inside(folder, line["target"], file, number)
        name = stem_of(Path(images[0].path))
        pairs.append(Pair(name, images, target, weight and _inside(folder, weight, file, number)))
    if repeated := [name for name, number in Counter(pair.name for pair in pairs).items() if number > 1]:
        raise UserError(f"{file}: two lines have an image called {repeated[0]}; rename one")
    if not pairs:
        raise UserError(f"data.path: {file} lists no pair")
    return sorted(pairs, key=lambda pair: natural(pair.name))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 at byte {error.start}; save it as UTF-8") from None


def _inside(folder: Path, name: object, file: Path, number: int) -> Source:
    """Return a file of the folder. Raise UserError for one that is missing or outside, which may be private."""
    path = os.path.normpath(folder / str(name))
    if not path.startswith(os.path.join(os.path.normpath(folder), "")):
        raise UserError(f"{file}:{number}: {printable(name)} is outside of {folder}; move it inside")
    if not os.path.isfile(path):
        raise UserError(f"{file}:{number}: {printable(name)} does not exist")
    return Source(path)


def _stacks(folder: Path) -> list[Pair]:
    """Return the pages of two stacks called as the folders are, without the plural."""
    files = {file.stem.lower(): file for file in sorted(folder.iterdir()) if file.suffix.lower() in STACK}
    image = next((files[name] for name in IMAGE_FOLDERS if name in files), None)
    target = next((files[name] for name in TARGET_FOLDERS if name in files), None)
    if not image or not target:
        return []
    pages = [number_of_pages(file) for file in (image, target)]
    if pages[0] != pages[1]:
        raise UserError(f"data.path: {image} has {pages[0]} pages, {target.name} {pages[1]}; they are paired by page")
    return [
        Pair(f"{image.stem}_{page:04d}", (Source(str(image), page),), Source(str(target), page))
        for page in range(pages[0])
    ]


def number_of_pages(file: Path) -> int:
    """Return the number of images in a file. Raise UserError if it is none."""
    try:
        with Image.open(file) as image:
            return getattr(image, "n_frames", 1)
    except OSError as error:
        raise UserError(f"data.path: {file} is not a stack of images: {error}") from None


# ── folds ─────────────────────────────────────────────────────────────────────────────────────────


def split_fold(names: list[str], config: PairConfig) -> tuple[list[int], list[int]]:
    """Return the indices of the cases to train on, and of those held out.

    Cases of one group are together. Raise UserError if a part is empty, or if `group` does not match a name.
    """
    if config.fold is None:
        return list(range(len(names))), []
    if config.fold >= config.folds:
        raise UserError(f"data.fold: {config.fold}, but there are folds 0 to {config.folds - 1}; choose one of them")
    origins = [origin_of(name, config.group) for name in names]
    parts = _parts(origins, config)
    held_out = [index for index, origin in enumerate(origins) if parts[origin] == config.fold]
    trained = [index for index, origin in enumerate(origins) if parts[origin] != config.fold]
    if not held_out or not trained:
        number = len(set(origins))
        part = "all" if held_out else "none"
        raise UserError(
            f"data.fold: {config.fold} of {config.folds} has {part} of the {len(names)} cases ({number} groups); "
            "choose another fold or fewer folds, or null to hold none out"
        )
    return trained, held_out


def _parts(origins: list[str], config: PairConfig) -> Mapping[str, int]:
    """Return the fold of each origin."""
    ordered = list(dict.fromkeys(origins))
    if config.fold_by == "order":
        return {origin: place * config.folds // len(ordered) for place, origin in enumerate(ordered)}
    digests = {origin: hashlib.sha256(origin.encode()).digest() for origin in ordered}
    return {origin: int.from_bytes(digest[:8], "big") % config.folds for origin, digest in digests.items()}


def origin_of(name: str, pattern: str | None) -> str:
    """Return what the case has in common with others of its group: the name itself without a pattern.

    Raise UserError if the pattern does not match.
    """
    if pattern is None:
        return name
    found = re.search(pattern, name)
    if not found:
        raise UserError(f"data.group: {printable(pattern, 60)} does not match {printable(name, 60)}; it must match all")
    return found[1] or ""
