"""Predictors that begin with the weights of another run, or with a pretrained encoder."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..conditions.label import LISTED
from ..core.errors import UserError, printable
from ..core.settings import merge, read_yaml, settings_from
from ..data.paired import PairedData
from ..data.pairs import PairConfig
from ..interop.tensor_files import load_encoder
from ..models.meta import on_meta
from ..models.pretrained import IMAGENET_MEAN, IMAGENET_STD, match_encoder
from ..objectives.posterior import PosteriorConfig
from ..objectives.segmentation import SegmentationConfig
from ..runs.prediction import PredictionConfig, load_predictor
from ..runs.run import Run
from .finetuning import Log, check_same, finetune_section, shorter

Source = Callable[[PredictionConfig, Log], dict[str, Tensor]]
"""Returns the weights that a predictor of a resolved configuration begins with, by name; those it lacks are fresh."""
MAY_DIFFER = {"in_channels", "out_channels", "dropout"}
"""Settings of the U-Net that follow from the images and targets, or leave its weights as they are."""
FOUND = ("targets", "values", "class_names")
"""Settings of the data that are those of other targets, not of the network."""


def configure_predictor(
    file: Path | None, flags: Mapping[str, str] = {}, changes: Mapping[str, Any] = {}
) -> tuple[PredictionConfig, Source | None]:
    """Return the configuration of a new training, and where its weights come from if not all are fresh.

    `changes`, nested values, and then `flags`, by dotted keys, are laid over the file, and all of it over the defaults
    or, with `finetune.from`, over `transfer_defaults`. Raise UserError for a mistake or a contradiction.
    """
    transform = (lambda values: merge(values, changes)) if changes else None
    given = merge(read_yaml(file)[0] if file else {}, changes)
    name = finetune_section(PredictionConfig, given, flags).pretrained
    if name is None:
        config = settings_from(file or PredictionConfig(), PredictionConfig, flags, transform)
        if config.finetune.encoder is None:
            return config, None
        _check_predicts(config)
        return config, encoder_weights
    run = Run(name)
    theirs = run.config(PredictionConfig)
    base = transfer_defaults(name, theirs)
    config = settings_from(file or base, PredictionConfig, flags, transform, base)
    old, new = (each.unet.model_dump(mode="json", exclude=MAY_DIFFER) for each in (theirs, config))
    for key in new:
        check_same(name, f"unet.{key}", old[key], new[key])
    check_same(name, "finetune.encoder", theirs.finetune.encoder, config.finetune.encoder)
    _check_predicts(config)
    return config, partial(run_weights, run)


def _check_predicts(config: PredictionConfig) -> None:
    if isinstance(config.objective, PosteriorConfig):
        raise UserError("finetune: a training of objective posterior begins with random weights; leave finetune out")


def transfer_defaults(name: str, config: PredictionConfig) -> PredictionConfig:
    """Return the configuration of a finetuning to which nothing is added: that of the run `name`, for other images."""
    return config.replace(
        finetune={"pretrained": name},
        data={key: PairConfig.model_fields[key].default for key in FOUND},
        train=shorter(config.train, name),
    )


def run_weights(run: Run, config: PredictionConfig, log: Log) -> dict[str, Tensor]:
    """Return the weights of a run, without the statistics of its data.

    Outputs of classes are kept by name; those of new ones are zero. Weights of other shapes are fresh, as those of the
    first convolution for other channels. Raise UserError if the run has no weights.
    """
    with on_meta():
        needed = config.build_predictor().unet.state_dict()
    found = load_predictor(run).unet.state_dict()
    places, named = (_outputs(each) for each in (run.config(PredictionConfig), config))
    rows = [places.get(name) for name in named]
    for name in [name for name in needed if name.startswith("head.")][-2:]:
        zero = torch.zeros_like(found[name][0])
        found[name] = torch.stack([zero if row is None else found[name][row] for row in rows])
    fresh = [f"unet.{name}" for name, tensor in needed.items() if tensor.shape != found[name].shape]
    if new := [name for name, row in zip(named, rows, strict=True) if row is None]:
        fresh.append(f"the output of {_listed(new)}")
    if fresh:
        log(f"finetune.from: new to {run.folder}, begin afresh: {', '.join(fresh)}")
    return {f"unet.{name}": tensor for name, tensor in found.items() if f"unet.{name}" not in fresh}


def _outputs(config: PredictionConfig) -> dict[str, int]:
    """Return the place of each output of the network by its name."""
    number = config.unet.out_channels
    if isinstance(config.objective, SegmentationConfig) and config.data.class_names:
        return {name: place for place, name in enumerate(config.data.class_names)}
    return {f"number {place + 1} of {number}": place for place in range(number)}


def encoder_weights(config: PredictionConfig, log: Log) -> dict[str, Tensor]:
    """Return the weights of the way down that `finetune.encoder` has. Raise UserError if they do not fit."""
    name, channels = str(config.finetune.encoder), config.unet.in_channels
    try:
        tensors = load_encoder(name)
    except UserError as mistake:
        raise UserError(f"finetune.encoder: {mistake}") from None
    expected = next((tensor.shape[1] for tensor in tensors.values() if tensor.ndim == 4), channels)
    if channels not in (1, expected):
        advice = "set data.channels 3, or use gray or color images" if expected == 3 else f"use images of {expected}"
        raise UserError(f"finetune.encoder: {name} takes images of {expected} channels (got {channels}); {advice}")
    try:
        with on_meta():
            found, left_out = match_encoder(config.build_predictor().unet, tensors)
    except ValueError as misfit:
        raise UserError(f"finetune.{misfit}") from None
    rest = f"; left out: {_listed(left_out)}" if left_out else ""
    log(f"finetune.encoder: the way down begins with {sum(map(_is_weight, found))} convolutions of {name}{rest}")
    return {f"unet.{name}": tensor.float() for name, tensor in found.items()}


def _is_weight(name: str) -> bool:
    return name.endswith(".weight")


def _listed(names: list[str]) -> str:
    return printable(", ".join(names[:LISTED]) + ", ..." * (len(names) > LISTED))


def input_statistics(config: PredictionConfig, pairs: PairedData) -> dict[str, Tensor]:
    """Return the mean and standard deviation by which inputs are normalized, where they are an encoder's own.

    With an encoder, gray or color images of 8 bits have those of ImageNet; gray ones their means over the colors. The
    units of other images have no relation to those of photographs, so that they are normalized by the data.
    """
    channels = len(pairs.image.mean)
    if config.finetune.encoder is None or channels not in (1, 3) or pairs.cases[0].image.dtype != torch.uint8:
        return {}
    mean, std = (255 * torch.tensor(values) for values in (IMAGENET_MEAN, IMAGENET_STD))
    if channels == 1:
        mean, std = mean.mean(0, True), std.mean(0, True)
    return {"input_mean": mean, "input_std": std}
