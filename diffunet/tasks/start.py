"""Beginning and resuming runs: which configuration counts, and which changes a resumed run allows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ..core.errors import UserError, did_you_mean
from ..core.progress import print_once
from ..runs.config import Config, RunConfig
from ..runs.prediction import PredictionConfig
from ..runs.run import Run
from ..training.checkpoint import is_intact, list_checkpoints
from .task import Start

C = TypeVar("C", bound=RunConfig)

RESUMABLE = {
    "train.steps",
    "train.gradient_accumulation_steps",
    "train.runtime.mixed_precision",
    "train.runtime.channels_last",
    "train.runtime.compile",
    "train.shard",
    "train.deterministic",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.snapshots",
    "train.preview_every",
    "train.log_with",
    "data.path",
    "data.split",
    "data.memory_budget",
    "data.workers",
}
"""Settings that may change when a run is resumed, besides `sample`. Other changes make another run and need --force."""


def begin(config: Any, overwrite: bool = False) -> Start:
    """Return the start of a new run. Raise UserError if its folder holds something already."""
    run = Run(config.train.output)
    run.check_not_overwriting(overwrite)
    return Start(run, overwrite=overwrite)


def resume(
    path: str | Path, kind: type[C], change: Callable[[C], C], overwrite: bool = False, force: bool = False
) -> tuple[C, Start]:
    """Return the configuration and the start of a run that is resumed, from its folder or one of its checkpoints.

    `change` lays flags over the configuration that the run was trained with, of class `kind`. Raise UserError if there
    is nothing to resume, if a change would make it another run, or if checkpoints would be discarded.
    """
    run, checkpoint = _parse(Path(path))
    previous = run.config(kind)
    config = change(previous).replace(train={"output": str(run.folder)})
    _check_resumable(previous, config, force)
    for name in ("batch_size", "learning_rate"):
        if getattr(config.train, name) == "auto":
            config = config.replace(train={name: getattr(previous.train, name)})
    if isinstance(config, Config | PredictionConfig) and not config.unet.levels:
        config = config.model_copy(update={"unet": previous.unet})
    start = Start(run, previous.train, checkpoint, overwrite, force)
    _check_not_discarding(start, config.train.steps)
    return config, start


def _parse(path: Path) -> tuple[Run, Path | None]:
    """Return the run of a path, and the checkpoint if the path is one."""
    if path.parent.name != "checkpoints":
        return Run(path), None
    if not path.is_dir():
        names = [checkpoint.name for checkpoint in list_checkpoints(path.parent.parent)]
        raise UserError(f"--resume: {path}: no such checkpoint{did_you_mean(path.name, names)}")
    return Run(path.parent.parent), path


def _check_resumable(previous: Any, config: Any, force: bool) -> None:
    """Print every change. Raise UserError for one that would make it another run, unless `force`."""
    before, now = _flat(previous.model_dump(mode="json")), _flat(config.model_dump(mode="json"))
    for name in sorted(before.keys() | now.keys(), key=lambda key: (not key.endswith(".type"), key)):
        old, new = before.get(name), now.get(name)
        unresolved = new == "auto" or (name.startswith("conditions.") and name in before and not new)
        if old == new or name == "train.output" or unresolved:
            continue
        if name not in RESUMABLE and not name.startswith("sample.") and not force:
            raise UserError(f"--{name}: cannot change from {old} to {new} in a resumed run; start another, or --force")
        print_once(f"{name}: {old} -> {new}")


def _flat(values: dict, above: str = "") -> dict:
    """Return {"train.steps": 1000, ...}; lists stay whole."""
    flat = {}
    for name, value in values.items():
        flat |= _flat(value, f"{above}{name}.") if isinstance(value, dict) else {above + name: value}
    return flat


def _check_not_discarding(start: Start, steps: int) -> None:
    """Raise UserError if finished work would be discarded without `overwrite`, or if there is none to resume."""
    run, checkpoint = start.run, start.checkpoint
    if run.format < 1:
        raise UserError(f"{run.folder}: older than run formats; it can be sampled and evaluated, but not resumed")
    checkpoints = list_checkpoints(run.folder)
    if not run.is_new and not checkpoints:
        raise UserError(f"{run.folder}: no checkpoint to resume from")
    for origin in [checkpoint] if checkpoint else checkpoints[-1:]:
        if origin.name > f"step_{steps:08d}":
            reached = int(origin.name.removeprefix("step_"))
            raise UserError(f"--train.steps {steps}: the run is already at step {reached}; pass a larger value")
    if start.overwrite and not checkpoint:
        raise UserError("--overwrite: discards later checkpoints; name one with --resume RUN/checkpoints/step_...")
    for other in checkpoints:
        if checkpoint and other.name > checkpoint.name and is_intact(other) and not start.overwrite:
            raise UserError(f"--resume: {other} is newer than {checkpoint.name} and intact; --overwrite discards it")
