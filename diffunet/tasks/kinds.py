"""Which kind of training a configuration is for, and training by any of them."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from ..core.errors import UserError, did_you_mean
from ..core.settings import TAG, merge, read_yaml, settings_from
from ..objectives.autoencoding import AutoencodingConfig
from ..runs.autoencoding import AutoencoderRunConfig
from ..runs.config import OBJECTIVES, Config, RunConfig, config_file
from ..runs.prediction import APPLICATIONS, PredictionConfig
from ..runs.run import Run
from .autoencoding import autoencoding
from .finetuning import configure
from .fit import fit
from .generation import generation
from .prediction import prediction
from .start import begin, resume
from .task import Task
from .transfer import configure_predictor

KINDS: dict[str, tuple[type[RunConfig], Callable[[Any], Task]]] = {
    Config.task: (Config, generation),
    PredictionConfig.task: (PredictionConfig, prediction),
    AutoencoderRunConfig.task: (AutoencoderRunConfig, autoencoding),
}
"""The configuration and the task of each kind of run that `train.py` makes."""
COMPRESSES = AutoencodingConfig.model_fields["type"].default
"""The type of the objective of an `AutoencoderRunConfig`."""
PREDICTS = {kind.model_fields["type"].default for kind in APPLICATIONS}
"""Types of objectives of a `PredictionConfig`."""


def train(
    config: RunConfig | Mapping[str, Any] | str | Path = "configs/digits.yaml",
    *,
    resumed: bool = False,
    overwrite: bool = False,
    **sections: Mapping[str, Any],
) -> Run:
    """Train as `python train.py` does, and return the run.

        run = train("configs/digits.yaml", train={"steps": 200, "output": "runs/short"})

    `config` is a YAML file, nested values or a configuration; `sections` are laid over it. With `resumed`, a run at
    `train.output` is resumed if there is one; with `overwrite`, it is replaced. KeyboardInterrupt ends a training
    after a checkpoint. Raise UserError for a mistake in the configuration or the data.
    """
    if isinstance(config, Mapping | RunConfig):
        given = config.model_dump(mode="json") if isinstance(config, RunConfig) else config
        config, make = new(None, changes=merge(dict(given), sections))
    else:
        config, make = new(config_file(str(config)), changes=sections)
    run = Run(config.train.output)
    if resumed and run.exists:
        kind, make = kind_of_run(run.folder)
        changed = partial(settings_from, settings=kind, transform=lambda values: merge(values, sections))
        config, start = resume(run.folder, kind, changed)
    else:
        start = begin(config, overwrite)
    if fit(make(config), start):
        raise KeyboardInterrupt
    return run


def new(
    file: Path | None, flags: Mapping[str, str] = {}, changes: Mapping[str, Any] = {}
) -> tuple[Any, Callable[[Any], Task]]:
    """Return the configuration of a new training, and the function that makes its task.

    `changes`, nested values, and then `flags`, by dotted keys, are laid over the file. Raise UserError for a mistake.
    """
    kind = kind_of(file, flags, changes)
    if kind is AutoencoderRunConfig:
        transform = (lambda values: merge(values, changes)) if changes else None
        return settings_from(file or AutoencoderRunConfig(), AutoencoderRunConfig, flags, transform), autoencoding
    if kind is PredictionConfig:
        config, source = configure_predictor(file, flags, changes)
        return config, partial(prediction, source=source)
    config, pretrained = configure(file, flags, changes)
    return config, partial(generation, pretrained=pretrained)


def kind_of(file: Path | None, flags: Mapping[str, str] = {}, changes: Mapping[str, Any] = {}) -> type[RunConfig]:
    """Return the class of a configuration, by the type of its objective, or else by the run that it begins with.

    Raise UserError for an unknown type.
    """
    given = merge(read_yaml(file)[0] if file else {}, changes)
    section = given.get("objective")
    in_file = section.get(TAG) if isinstance(section, dict) else None
    found = objective_of(flags) or in_file
    known = OBJECTIVES.keys() | PREDICTS | {COMPRESSES}
    if found == COMPRESSES:
        return AutoencoderRunConfig
    if found in PREDICTS or (found is None and _begins_with_predictor(given.get("finetune"), flags)):
        return PredictionConfig
    if isinstance(found, str) and found.isidentifier() and found not in known:
        raise UserError(f"objective: {found} is not one of {', '.join(sorted(known))}{did_you_mean(found, known)}")
    return Config


def _begins_with_predictor(section: Any, flags: Mapping[str, str]) -> bool:
    """Return whether `finetune.from`, of a file or a flag, is a run that predicts."""
    in_file = section.get("from") if isinstance(section, dict) else None
    name = flags.get("finetune.from", in_file)
    return isinstance(name, str) and Run(name).task == PredictionConfig.task


def objective_of(flags: Mapping[str, str]) -> str | None:
    """Return the type of the objective that flags set: by name, or as `{type: ...}`."""
    word = flags.get("objective.type", flags.get("objective"))
    try:
        inside = yaml.safe_load(word or "")
    except yaml.YAMLError:  # reported when the flag is read
        return word
    found = inside.get(TAG) if isinstance(inside, dict) else word
    return found if isinstance(found, str) else None


def kind_of_run(path: str | Path) -> tuple[type[RunConfig], Callable[[Any], Task]]:
    """Return the configuration and the task of a run to resume, by its folder or one of its checkpoints.

    A folder that is no such run has those of generation, and is refused when it is read.
    """
    path = Path(path)
    folder = path.parent.parent if path.parent.name == "checkpoints" else path
    return KINDS.get(Run(folder).task, KINDS[Config.task])
