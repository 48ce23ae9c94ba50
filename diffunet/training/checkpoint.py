"""Checkpoints: the whole state of a training, in a folder that is complete or absent and is verified before use."""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn

from ..core import storage
from ..core.errors import UserError
from ..core.settings import Settings
from .placement import load_moments, load_weights

OPTIMIZER = "optimizer"
FORMAT_1 = {"surroundings": "environment"}, {"ema_0.05": "average_0.05", "ema_0.1": "average_0.1"}
"""Until 2026-11: former keys of state.json, and former names of files."""


class State(Settings):
    """state.json of a checkpoint: everything but the tensors."""

    step: int = Field(ge=0)
    """Completed steps."""
    skipped: int = Field(ge=0)
    """Steps without effect, because their gradient was not finite."""
    examples: int = Field(ge=1)
    """Size of the training set."""
    data: str
    """Fingerprint of the training set."""
    environment: dict[str, str | int]
    """Processes, device, precision, torch; changes are logged when a run is resumed."""
    scaler: dict[str, Any] | None
    """State of fp16's gradient scaler."""


# ── folders ───────────────────────────────────────────────────────────────────────────────────────


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run folder, oldest first."""
    return sorted((folder / "checkpoints").glob("step_*"))


def remove(folder: Path, checkpoints: list[Path]) -> None:
    """Remove these checkpoints of a run folder, and the remains of interrupted saves and removals."""
    for checkpoint in checkpoints:
        checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.removed"))  # at once, so that none is incomplete
    for remains in (folder / "checkpoints").glob(".step_*"):
        shutil.rmtree(remains)


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint of a run folder; None if there is none.

    Raise UserError if it is damaged, naming the file and the newest checkpoint that is intact.
    """
    if not (checkpoints := list_checkpoints(folder)):
        return None
    *earlier, newest = checkpoints
    try:
        storage.verify_checksums(newest)
    except UserError as damage:
        intact = next(filter(is_intact, reversed(earlier)), None)
        offer = f"use --resume {intact}, the one before" if intact else "no earlier checkpoint is intact"
        raise UserError(f"{damage}; {offer}") from None
    return newest


def is_intact(checkpoint: Path) -> bool:
    """Return whether all files of a checkpoint have their checksums."""
    try:
        storage.verify_checksums(checkpoint)
    except UserError:
        return False
    return True


def checksum_of(checkpoint: Path) -> str:
    """Return the SHA-256 of a checkpoint's list of checksums, which stands for all of its files."""
    storage.verify_checksums(checkpoint)
    return storage.sha256_of_file(checkpoint / storage.CHECKSUMS)


# ── contents ──────────────────────────────────────────────────────────────────────────────────────


def write_checkpoint(folder: Path, state: State, files: Iterable[tuple[str, dict[str, Tensor]]]) -> None:
    """Write a checkpoint beside the older ones of a run folder.

    It holds state.json and safetensors `files`, of which `optimizer` is as `placement.moments_of` returns it. Raise
    OSError if it cannot be written, which leaves the others untouched.
    """
    with storage.atomic_directory(folder / "checkpoints" / f"step_{state.step:08d}") as checkpoint:
        for name, tensors in files:
            storage.save_tensors(checkpoint / f"{name}.safetensors", tensors)
        (checkpoint / "state.json").write_text(json.dumps(state.model_dump(), indent=2))


def read_state(checkpoint: Path) -> State:
    """Return the state of a checkpoint. Raise UserError if this version cannot read it."""
    file = checkpoint / "state.json"
    try:
        values = {FORMAT_1[0].get(name, name): value for name, value in storage.load_json(file).items()}
        return State.model_validate(values)
    except ValidationError as invalid:
        error = invalid.errors()[0]
        key = ".".join(map(str, error["loc"]))
        raise UserError(f"{file}: {key}: {error['msg'].lower()}; written by another version of diffunet") from None


def restore(checkpoint: Path, models: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> None:
    """Load the tensors of a checkpoint; `optimizer` is that of `models["model"]`.

    Raise UserError, naming the tensor, if they do not fit.
    """
    for name, model in models.items():
        file = _file(checkpoint, name)
        load_weights(model, storage.load_tensors(file), file)
    file = _file(checkpoint, OPTIMIZER)
    load_moments(models["model"], optimizer, storage.load_tensors(file), file)


def _file(checkpoint: Path, name: str) -> Path:
    file = checkpoint / f"{name}.safetensors"
    former = checkpoint / f"{FORMAT_1[1].get(name, name)}.safetensors"
    return former if former.exists() and not file.exists() else file
