"""The whole state of a training, in a folder that is whole or absent and is checked before it is used."""

import json
import shutil
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from torch import Tensor

from ..core.settings import Settings

from ..core.errors import UserError
from ..core.storage import verify_checksums, load_json, save_tensors, atomic_directory


class State(Settings):
    """state.json of a checkpoint: all that is not tensors."""

    step: int = Field(ge=0)
    """Steps taken."""
    skipped: int = Field(ge=0)
    """Of them without effect, because the gradient was not finite."""
    examples: int = Field(ge=1)
    data: str
    """Fingerprint of the data."""
    environment: dict[str, str | int]
    """What it was trained by; a resumed run may have others, and says so."""
    scaler: dict[str, Any] | None
    """State of fp16's gradient scaler."""


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run folder, oldest first."""
    return sorted((folder / "checkpoints").glob("step_*"))


def write_checkpoint(folder: Path, state: State, tensors: dict[str, dict[str, Tensor]]) -> None:
    """Writes a checkpoint beside the older ones of a run folder: state.json and a safetensors file for each name.

    OSError if it cannot be written, which leaves the others as they were.
    """
    with atomic_directory(folder / "checkpoints" / f"step_{state.step:08d}") as checkpoint:
        for name, of_one_kind in tensors.items():
            save_tensors(checkpoint / f"{name}.safetensors", of_one_kind)
        (checkpoint / "state.json").write_text(json.dumps(state.model_dump(), indent=2))


def remove(folder: Path, checkpoints: list[Path]) -> None:
    """Removes these checkpoints of a run folder, and what kills have left of others."""
    for checkpoint in checkpoints:
        checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.removed"))      # a half removed one is none
    for remains in (folder / "checkpoints").glob(".step_*"):
        shutil.rmtree(remains)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run folder; None if there is none.

    UserError if it is damaged: names the file, and the newest checkpoint before it that is whole.
    """
    if not (checkpoints := list_checkpoints(folder)):
        return None
    *earlier, newest = checkpoints
    try:
        verify_checksums(newest)
    except UserError as damage:
        whole = next(filter(is_intact, reversed(earlier)), None)
        offer = f"--resume {whole} goes on from the one before" if whole else "and no checkpoint before it is whole"
        raise UserError(f"{damage}; {offer}") from None
    return newest


def is_intact(checkpoint: Path) -> bool:
    """Whether all files of a checkpoint are as they were written."""
    try:
        verify_checksums(checkpoint)
    except UserError:
        return False
    return True


def read_state(checkpoint: Path) -> State:
    """UserError if this version cannot read it."""
    file = checkpoint / "state.json"
    try:
        return State.model_validate(load_json(file))
    except ValidationError as invalid:
        error = invalid.errors()[0]
        key = ".".join(map(str, error["loc"]))
        raise UserError(f"{file}: {key}: {error['msg'].lower()}; another version of diffunet wrote it") from None
