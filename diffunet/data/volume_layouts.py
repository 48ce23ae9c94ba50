"""Sets of volumes in the layouts in which they are published: BRATS, the Medical Segmentation Decathlon, SLIVER07."""

import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from ..core.errors import UserError, printable
from .volumes import FORMATS, stem_of, suffix_of

BRATS = (("t1", "t1ce", "t2", "flair"), ("t1n", "t1c", "t2w", "t2f"))
"""The channels of a case by the ends of their names: until 2021, and from 2023 on."""
BRATS_FILE = re.compile(r"(?P<case>.+)[_-](?P<part>t1|t1ce|t2|flair|t1n|t1c|t2w|t2f|seg)", re.IGNORECASE)
SLIVER_FILE = re.compile(r"liver-(?P<part>orig|seg)(?P<case>\d+)", re.IGNORECASE)
CHANNEL = re.compile(r"(?P<case>.+)_(?P<part>\d{4})")
"""The name of a file with one channel, in nnU-Net's layout of the decathlon."""
DEPTH = 3
"""Folders below the given one in which cases are searched."""


class VolumeCase(NamedTuple):
    """The files of one case."""

    name: str
    """Without folder and suffix; unique."""
    images: tuple[Path, ...]
    """One file, or one for each channel."""
    target: Path


def find_volume_cases(folder: Path, log: Callable[[str], None] = print) -> list[VolumeCase]:
    """Return the cases of a folder that has one of the layouts, by name; none if it has another. Log what is left out.

    - BRATS: a folder for each case with CASE_t1, _t1ce, _t2, _flair and _seg.nii.gz, or -t1n, -t1c, -t2w, -t2f, -seg;
    - decathlon and nnU-Net: imagesTr, labelsTr and dataset.json;
    - SLIVER07: liver-orig001.mhd and liver-seg001.mhd.

    Raise UserError if a case lacks a channel, if two have one name, or if dataset.json lists what does not exist.
    """
    if all((folder / name).is_dir() for name in ("imagesTr", "labelsTr")):
        return _decathlon(folder, log)
    files = _files_below(folder)
    return _brats(files, log) or _sliver(files, log)


def volume_files(folder: Path) -> list[Path]:
    """Return the volumes in a folder, not in its subfolders, by name."""
    return sorted(file for file in folder.iterdir() if suffix_of(file) in FORMATS and not file.name.startswith("."))


def group_volumes(files: Iterable[Path]) -> dict[str, tuple[Path, ...]]:
    """Return the files of each image by its name: one, or those of its channels NAME_0000, NAME_0001, ...

    Raise UserError if two files have the same name, or if a channel is missing.
    """
    found: dict[str, dict[str, Path]] = {}
    for file in files:
        match = CHANNEL.fullmatch(stem_of(file))
        name, part = (match["case"], match["part"]) if match else (stem_of(file), "0000")
        _add(found, name, part, file)
    grouped = {}
    for name, channels in found.items():
        names = [f"{number:04d}" for number in range(len(channels))]
        grouped[name] = _complete(name, channels, names)
    return grouped


def names_in(folder: Path) -> tuple[str, ...] | None:
    """Return the names of the classes 0, 1, ... in a dataset.json of the decathlon or nnU-Net; None without them."""
    labels = _metadata(folder).get("labels")
    if not isinstance(labels, dict):
        return None
    pairs = {str(key): str(value) for key, value in labels.items()}
    numbered = pairs if "0" in pairs else {value: key for key, value in pairs.items()}  # nnU-Net lists name: number
    if set(numbered) != set(map(str, range(len(pairs)))):
        return None  # regions, or numbers that are left out
    return tuple(numbered[str(number)] for number in range(len(numbered)))


# ── layouts ───────────────────────────────────────────────────────────────────────────────────────


def _decathlon(folder: Path, log: Callable[[str], None]) -> list[VolumeCase]:
    """Return the cases that dataset.json lists for training, or those of equal names."""
    listed = _metadata(folder).get("training")
    if isinstance(listed, list) and listed and all(isinstance(entry, dict) for entry in listed):
        cases = []
        for entry in listed:
            image = _inside(folder, entry.get("image"))
            cases.append(
                VolumeCase(stem_of(image), _channels_of(image), _existing(_inside(folder, entry.get("label"))))
            )
        return _unique(cases)
    targets = {stem_of(file): file for file in volume_files(folder / "labelsTr")}
    files = volume_files(folder / "imagesTr")
    alone = [file for file in files if stem_of(file) in targets]  # a name may end with four digits of its own
    images = group_volumes(file for file in files if stem_of(file) not in targets)
    images |= {stem_of(file): (file,) for file in alone}
    _log_left_out(images.keys() - targets.keys(), "a target", log)
    return [VolumeCase(name, images[name], targets[name]) for name in sorted(images.keys() & targets.keys())]


def _brats(files: list[Path], log: Callable[[str], None]) -> list[VolumeCase]:
    found = _matched(files, BRATS_FILE, (".nii", ".nii.gz"))
    found = {case: parts for case, parts in found.items() if len(parts) > 1}
    _log_left_out({case for case, parts in found.items() if "seg" not in parts}, "a target", log)
    cases = []
    for name, parts in sorted(found.items()):
        if "seg" in parts:
            channels = max(BRATS, key=lambda names, parts=parts: len(parts.keys() & set(names)))
            cases.append(VolumeCase(name, _complete(name, parts, channels), parts["seg"]))
    return cases


def _sliver(files: list[Path], log: Callable[[str], None]) -> list[VolumeCase]:
    found = _matched(files, SLIVER_FILE, (".mhd", ".mha"))
    _log_left_out({f"liver-orig{case}" for case, parts in found.items() if "seg" not in parts}, "a target", log)
    return [
        VolumeCase(stem_of(parts["orig"]), (parts["orig"],), parts["seg"])
        for _, parts in sorted(found.items())
        if {"orig", "seg"} <= parts.keys()
    ]


def _matched(files: list[Path], pattern: re.Pattern[str], suffixes: tuple[str, ...]) -> dict[str, dict[str, Path]]:
    """Return the files whose names fit a pattern: by their case, and by which part of it they are."""
    found: dict[str, dict[str, Path]] = {}
    for file in files:
        match = pattern.fullmatch(stem_of(file))
        if match and suffix_of(file) in suffixes:
            _add(found, match["case"], match["part"].lower(), file)
    return found


def _add(found: dict[str, dict[str, Path]], case: str, part: str, file: Path) -> None:
    other = found.setdefault(case, {}).setdefault(part, file)
    if other != file:
        raise UserError(f"data.path: {other} and {file} have the same name; rename or remove one")


def _complete(name: str, parts: dict[str, Path], needed: Iterable[str]) -> tuple[Path, ...]:
    """Return the files of the channels. Raise UserError if one is missing."""
    if missing := [part for part in needed if part not in parts]:
        raise UserError(f"data.path: {printable(name)} has no channel {missing[0]}; add it, or remove the case")
    return tuple(parts[part] for part in needed)


def _unique(cases: list[VolumeCase]) -> list[VolumeCase]:
    named: dict[str, dict[str, Path]] = {}
    for case in cases:
        if case.name in named:
            raise UserError(f"data.path: dataset.json lists {printable(case.name)} twice; remove one")
        _add(named, case.name, "image", case.images[0])
    return sorted(cases)


def _log_left_out(names: Iterable[str], missing: str, log: Callable[[str], None]) -> None:
    if left := sorted(names):
        shown = ", ".join(printable(name, 40) for name in left[:3]) + ", ..." * (len(left) > 3)
        log(f"left out {len(left)} image{'s' * (len(left) > 1)} without {missing}: {shown}")


# ── files ─────────────────────────────────────────────────────────────────────────────────────────


def _files_below(folder: Path) -> list[Path]:
    """Return the volumes in a folder and in those below it, not deeper than DEPTH, without hidden ones."""
    found, level = [], [folder]
    for _ in range(DEPTH + 1):
        found += [file for place in level for file in volume_files(place) if file.is_file()]
        level = [entry for place in level for entry in place.iterdir() if entry.is_dir() and entry.name[0] != "."]
    return sorted(found)


def _metadata(folder: Path) -> dict:
    """Return the contents of dataset.json; nothing if there is none. Raise UserError if it is damaged."""
    file = folder / "dataset.json"
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not JSON ({printable(error)}); repair or remove it") from None
    return found if isinstance(found, dict) else {}


def _inside(folder: Path, name: object) -> Path:
    """Return the place of a listed file. Raise UserError if it is outside of the folder, which may be private."""
    path = os.path.normpath(folder / str(name))
    if not path.startswith(os.path.join(os.path.normpath(folder), "")):
        raise UserError(f"data.path: dataset.json lists {printable(name)}, outside of {folder}; move it inside")
    return Path(path)


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise UserError(f"data.path: dataset.json lists {printable(file)}, which does not exist; remove its line")
    return file


def _channels_of(image: Path) -> tuple[Path, ...]:
    """Return a listed file, or those of its channels, which nnU-Net lists as one."""
    name = re.compile(re.escape(stem_of(image)) + r"_\d{4}")
    if image.is_file() or not image.parent.is_dir():
        return (_existing(image),)
    files = [file for file in volume_files(image.parent) if name.fullmatch(stem_of(file))]
    return group_volumes(files)[stem_of(image)] if files else (_existing(image),)
