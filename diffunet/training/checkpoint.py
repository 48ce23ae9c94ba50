"""Checkpoints: the whole state of a training, in a folder that is complete or absent and is verified before use."""

import json
import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn

from ..core import storage
from ..core.errors import UserError
from ..core.settings import Settings

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


def write_checkpoint(
    folder: Path, state: State, models: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
) -> None:
    """Write a checkpoint beside the older ones of a run folder.

    It holds state.json, a safetensors file for each of `models`, and the optimizer state of `models["model"]`.
    Raise OSError if it cannot be written, which leaves the others untouched.
    """
    with storage.atomic_directory(folder / "checkpoints" / f"step_{state.step:08d}") as checkpoint:
        for name, model in models.items():
            storage.save_tensors(checkpoint / f"{name}.safetensors", model.state_dict())
        storage.save_tensors(checkpoint / f"{OPTIMIZER}.safetensors", _pack(models["model"], optimizer))
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
    """Load the tensors of a checkpoint. Raise UserError, naming the tensor, if they do not fit."""
    for name, model in models.items():
        file = _file(checkpoint, name)
        storage.load_strictly(model, storage.load_tensors(file), file)
    _unpack(storage.load_tensors(_file(checkpoint, OPTIMIZER)), models["model"], optimizer, checkpoint)


def _file(checkpoint: Path, name: str) -> Path:
    file = checkpoint / f"{name}.safetensors"
    former = checkpoint / f"{FORMAT_1[1].get(name, name)}.safetensors"
    return former if former.exists() and not file.exists() else file


def _pack(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's moments by "parameter:moment"."""
    from torch.distributed.checkpoint import state_dict as dcp

    state = dcp.get_optimizer_state_dict(model, optimizer, options=dcp.StateDictOptions(full_state_dict=True))["state"]
    return {f"{name}:{key}": value for name, moments in state.items() for key, value in moments.items()}


def _unpack(tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer, source: Path) -> None:
    """Load the moments that `_pack` returned. Raise UserError if the parameters are not the model's."""
    from torch.distributed.checkpoint import state_dict as dcp

    if not tensors:  # saved before the first step that was not skipped
        return
    parameters = dict(model.named_parameters())
    if {label.rpartition(":")[0] for label in tensors} != set(parameters):
        raise UserError(f"{source}/{OPTIMIZER}.safetensors: does not match the network")
    options = dcp.StateDictOptions(full_state_dict=True)
    state = dcp.get_optimizer_state_dict(model, optimizer, options=options)
    state["state"] = defaultdict(dict)
    for label, tensor in tensors.items():
        name, _, key = label.rpartition(":")
        state["state"][name][key] = _with_strides_of(parameters[name], tensor)
    dcp.set_optimizer_state_dict(model, optimizer, state, options=options)


def _with_strides_of(parameter: Tensor, moment: Tensor) -> Tensor:
    """Return a copy of a moment in its parameter's memory format, which fused optimizers expect; a scalar as it is."""
    return torch.empty_like(parameter).copy_(moment) if moment.shape == parameter.shape else moment.clone()
