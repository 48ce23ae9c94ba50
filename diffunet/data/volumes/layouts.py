"""Sets of volumes in layouts of their own: BRATS and SLIVER07; the decathlon's is that of `find_pairs`."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from ...core.errors import UserError, printable
from ..pairs import Pair, Source, natural
from .files import FORMATS, stem_of, suffix_of

BRATS = (("t1", "t1ce", "t2", "flair"), ("t1n", "t1c", "t2w", "t2f"))
"""The channels of a case by the ends of their names: until 2021, and from 2023 on."""
BRATS_FILE = re.compile(r"(?P<case>.+)[_-](?P<part>t1|t1ce|t2|flair|t1n|t1c|t2w|t2f|seg)", re.IGNORECASE)
SLIVER_FILE = re.compile(r"liver-(?P<part>orig|seg)(?P<case>\d+)", re.IGNORECASE)
DEPTH = 3
"""Folders below the given one in which cases are searched."""


def find_published(folder: Path, log: Callable[[str], None] = print) -> list[Pair]:
    """Return the cases of a folder that has one of the layouts, by name; none if it has another. Log what is left out.

    - BRATS: a folder for each case with CASE_t1, _t1ce, _t2, _flair and _seg.nii.gz, or -t1n, -t1c, -t2w, -t2f, -seg;
    - SLIVER07: liver-orig001.mhd and liver-seg001.mhd.

    Raise UserError if a case lacks a channel, or if two have one name.
    """
    files = _files_below(folder)
    return _brats(files, log) or _sliver(files, log)


def names_in(folder: Path) -> tuple[str, ...] | None:
    """Return the names of the classes 0, 1, ... in a dataset.json of the decathlon or nnU-Net; None without them.

    Raise UserError if the file is damaged.
    """
    file = folder / "dataset.json"
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not JSON ({printable(error)}); repair or remove it") from None
    labels = found.get("labels") if isinstance(found, dict) else None
    if not isinstance(labels, dict):
        return None
    pairs = {str(key): str(value) for key, value in labels.items()}
    numbered = pairs if "0" in pairs else {value: key for key, value in pairs.items()}  # nnU-Net lists name: number
    if set(numbered) != set(map(str, range(len(pairs)))):
        return None  # regions, or numbers that are left out
    return tuple(numbered[str(number)] for number in range(len(numbered)))


def _brats(files: list[Path], log: Callable[[str], None]) -> list[Pair]:
    found = _matched(files, BRATS_FILE, (".nii", ".nii.gz"))
    found = {case: parts for case, parts in found.items() if len(parts) > 1}
    _log_left_out({case for case, parts in found.items() if "seg" not in parts}, log)
    cases = []
    for name, parts in found.items():
        if "seg" in parts:
            channels = max(BRATS, key=lambda names, parts=parts: len(parts.keys() & set(names)))
            if missing := [part for part in channels if part not in parts]:
                raise UserError(f"data.path: {printable(name)} has no channel {missing[0]}; add it, or remove the case")
            cases.append(_pair(name, [parts[part] for part in channels], parts["seg"]))
    return sorted(cases, key=lambda pair: natural(pair.name))


def _sliver(files: list[Path], log: Callable[[str], None]) -> list[Pair]:
    found = _matched(files, SLIVER_FILE, (".mhd", ".mha"))
    _log_left_out({f"liver-orig{case}" for case, parts in found.items() if "seg" not in parts}, log)
    complete = [parts for parts in found.values() if {"orig", "seg"} <= parts.keys()]
    cases = [_pair(stem_of(parts["orig"]), [parts["orig"]], parts["seg"]) for parts in complete]
    return sorted(cases, key=lambda pair: natural(pair.name))


def _pair(name: str, images: Iterable[Path], target: Path) -> Pair:
    return Pair(name, tuple(Source(str(image)) for image in images), Source(str(target)))


def _matched(files: list[Path], pattern: re.Pattern[str], suffixes: tuple[str, ...]) -> dict[str, dict[str, Path]]:
    """Return the files whose names fit a pattern: by their case, and by which part of it they are."""
    found: dict[str, dict[str, Path]] = {}
    for file in files:
        match = pattern.fullmatch(stem_of(file))
        if match and suffix_of(file) in suffixes:
            other = found.setdefault(match["case"], {}).setdefault(match["part"].lower(), file)
            if other != file:
                raise UserError(f"data.path: {other} and {file} have the same name; rename or remove one")
    return found


def _log_left_out(names: Iterable[str], log: Callable[[str], None]) -> None:
    if left := sorted(names):
        shown = ", ".join(printable(name, 40) for name in left[:3]) + ", ..." * (len(left) > 3)
        log(f"left out {len(left)} image{'s' * (len(left) > 1)} without a target: {shown}")


def _files_below(folder: Path) -> list[Path]:
    """Return the volumes in a folder and in those below it, not deeper than DEPTH, without hidden ones."""
    found, level = [], [folder]
    for _ in range(DEPTH + 1):
        entries = [entry for place in level for entry in place.iterdir() if entry.name[0] != "."]
        found += [file for file in entries if suffix_of(file) in FORMATS and file.is_file()]
        level = [entry for entry in entries if entry.is_dir()]
    return sorted(found)
