"""Run folders in which a file is missing, damaged, swapped or edited."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import yaml

from diffunet.runs.config import Config

from .cases import VALUES, Case, keys_of

WEIGHTS = "model/diffusion_pytorch_model.safetensors"
NETWORK = ("config.yaml", "model/config.json", WEIGHTS)
NEWEST = "checkpoints/step_00000004/*"
COMMANDS = {
    ("sample", "run", "--num_images", "1", "--steps", "1"): NETWORK,
    ("train", "--resume", "run", "--train.steps", "5"): ("config.yaml", NEWEST),
    ("evaluate", "run", "--num_images", "4", "--steps", "1", "--data.held_out", "0.01"): NETWORK,
    ("export", "run", "out"): NETWORK,
    ("ema", "run", "0.1"): ("config.yaml", "model/config.json", "ema_snapshots/*"),
    ("describe", "run"): ("config.yaml",),
    ("import", "run/exported", "made"): ("exported/unet/*", "exported/scheduler/*"),
}
"""Commands, and the files that each requires."""
CHANGES = {
    "empty": lambda data, place: b"",
    "cut": lambda data, place: data[:place],
    "one bit": lambda data, place: data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :],
    "zeros": lambda data, place: bytes(len(data)),
    "more": lambda data, place: data + b"\n{",
}
"""Damage to the bytes of a file."""


def run_case(rng: Random, folder: Path, run: Path) -> Case:
    """Return a case of a run folder in which a file is missing, damaged, swapped or edited."""
    shutil.copytree(run, folder / "run")
    argv = rng.choice(list(COMMANDS))
    files = sorted(path for path in (folder / "run").rglob("*") if path.name != ".lock")
    needed = {path for pattern in COMMANDS[argv] for path in (folder / "run").glob(pattern)}
    target = rng.choice([rng.choice(files), rng.choice(sorted(needed))])
    if target.is_dir():
        rng.choice([shutil.rmtree, _emptied])(target)
        return Case(
            f"{target.relative_to(folder)}: removed or empty",
            argv,
            (str(target.relative_to(folder)), "run: ", "run/exported"),
        )
    damages = ["removed", "a folder", "a link to itself", "swapped", *CHANGES]
    damages += ["edited"] * 6 if target.suffix in (".json", ".yaml", ".jsonl") else []
    damage = rng.choice(damages)
    about = f"{target.relative_to(folder)}: {damage}"
    data, changed = target.read_bytes(), [target]
    target.unlink()
    if damage == "edited":
        about += ", " + _edited(target, data.decode(), rng)
    elif damage == "a folder":
        target.mkdir()
    elif damage == "a link to itself":
        target.symlink_to(target.name)
    elif damage == "swapped":
        other = rng.choice([path for path in files if path.is_file() and path != target])
        changed.append(other)
        about += f" with {other.relative_to(folder)}"
        target.write_bytes(other.read_bytes())
        other.write_bytes(data)
    elif damage in CHANGES:
        target.write_bytes(CHANGES[damage](data, rng.randrange(len(data))))
    names = {word for path in changed for word in (path.name, str(path.relative_to(folder).parent))}
    if any("exported" in path.parts for path in changed):
        names.add("run/exported")
    if any(path.name in ("config.yaml", "config.json") for path in changed):
        names.update(keys_of(Config))
    differs = not target.is_file() or target.read_bytes() != data
    prints = (target.name,) if target in needed and differs and not _may_be_valid(target, damage) else ()
    return Case(about, argv, tuple(names), "either", prints)


def _may_be_valid(file: Path, damage: str) -> bool:
    """Return whether the damaged file may be valid, or cannot be distinguished from a valid one."""
    if damage == "edited" or (damage == "removed" and file.parent.name == "ema_snapshots"):
        return True
    sealed = file.suffix == ".safetensors" and "exported" not in file.parts  # by a checksum
    return damage in ("one bit", "more") and not sealed


def _emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _edited(file: Path, text: str, rng: Random) -> str:
    """Write the text back with one value of its YAML or JSON changed, removed or added; return a description."""
    lines = file.suffix == ".jsonl"
    read = json.loads if file.suffix == ".json" else yaml.safe_load
    values = [json.loads(line) for line in text.splitlines()] if lines else read(text)
    places = list(_entries(values))
    above, key = rng.choice(places)
    value = rng.choice(VALUES)
    match rng.randrange(4):
        case 0:
            del above[key]
            what = f"{key} removed"
        case 1 if isinstance(above, dict):
            above["something"] = value
            what = f"something beside {key}"
        case _:
            above[key] = value
            what = f"{key}: {value!r}"[:60]
    if lines:
        file.write_text("".join(json.dumps(line) + "\n" for line in values))
    else:
        file.write_text(json.dumps(values) if file.suffix == ".json" else yaml.safe_dump(values, allow_unicode=True))
    return what


def _entries(values: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container in nested values with each of its keys."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        yield values, key
        yield from _entries(value)
