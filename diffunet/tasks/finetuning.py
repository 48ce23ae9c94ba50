"""Finetuning: a training that begins with the weights of a run or of diffusers, and its configuration."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..conditions.base import ConditionConfig
from ..conditions.label import LISTED, LabelConfig
from ..core.errors import UserError, printable
from ..core.settings import merge, read_yaml, settings_from
from ..data.dataset import DataConfig, ImageDataset
from ..evaluation.features import PixelFeatures, extract
from ..evaluation.report import memorization_record
from ..interop.diffusers import load_diffusers
from ..models.denoiser import Denoiser
from ..runs.config import Config, FinetuneConfig
from ..runs.run import Run
from ..sampling.generate import SampleBatch

INITIAL_WEIGHTS = "initial.safetensors"
"""File of a run folder: the weights at step 0, which a finetuning is resumed with and which LoRA changes."""
SHARE = 10
"""A finetuning has this fraction of the steps of its source, between lines of the log, previews and so on as well."""
EMA_SHARE = 0.1
"""Length of the EMA as a share of the finetuning: e^-10 of the source's weights remain at the end."""
OWN_CHOICE = {
    *("unet.dropout", "objective.condition_dropout"),
    *("objective.min_snr_gamma", "objective.P_mean", "objective.P_std", "objective.sigma_min", "objective.sigma_max"),
}
"""Settings that may differ from the source's: of regularization, of the weights of noise levels, and of sampling."""


@dataclass(frozen=True)
class Source:
    """A trained network."""

    name: str
    """As it was given: a folder or a hub id."""
    config: Config
    folder: Path | None
    """Its model/ folder, with the tokenizers; None: it has none."""
    denoiser: Callable[[], Denoiser]


def load_source(name: str) -> Source:
    """Return the network of a run, a diffusers folder or a hub id. Raise UserError if there is none."""
    run = Run(name)
    if (run.folder / "unet").is_dir() or not run.folder.parent.is_dir():
        config, denoiser = load_diffusers(name)
        return Source(name, config, None, lambda: denoiser)
    return Source(name, run.config(), run.folder / "model", run.denoiser)


# ── configuration ─────────────────────────────────────────────────────────────────────────────────


def configure(
    file: Path | None, flags: Mapping[str, str] = {}, changes: Mapping[str, Any] = {}
) -> tuple[Config, Source | None]:
    """Return the configuration of a new training and, if it is a finetuning, its source.

    `changes`, nested values, and then `flags`, by dotted keys, are laid over the file; all of it over the defaults or,
    with `finetune.from`, over the configuration of the source. Raise UserError for a mistake or a contradiction.
    """

    def change(values: dict) -> dict:
        return merge(values, changes)

    finetune = _finetune_section(change(read_yaml(file)[0] if file else {}), flags)
    transform = change if changes else None
    if not finetune.source:
        return settings_from(file or Config(), Config, flags, transform), None
    source = load_source(finetune.source)
    base = finetune_defaults(source, finetune.lora_rank)
    config = settings_from(file or base, Config, flags, transform, base if file else None)
    check_contradictions(config, source)
    return config, source


def _finetune_section(values: dict, flags: Mapping[str, str]) -> FinetuneConfig:
    """Return the section `finetune` of a configuration whose other sections may depend on it."""
    own = {name: word for name, word in flags.items() if name.startswith("finetune.")}
    section = {name: value for name, value in values.items() if name == "finetune"}
    return settings_from(Config(), Config, own, lambda defaults: merge(defaults, section)).finetune


def finetune_defaults(source: Source, lora_rank: int = 0) -> Config:
    """Return the configuration of a finetuning to which nothing is added: that of the source, for other images.

    The training is a tenth as long, and the learning rate a tenth; with LoRA, whose B begins at zero, it is the source's.
    The EMA begins at the source, and the weights of the least validation loss are published.
    """
    config = source.config
    train = config.train
    periods = ("steps", "log_every", "checkpoint_every", "preview_every")
    shortened = {name: max(1, getattr(train, name) // SHARE) for name in periods}
    shortened |= {"warmup_steps": train.warmup_steps // SHARE, "minutes": None}
    lora = {"snapshots": 0} if lora_rank else {"learning_rate": train.learning_rate / SHARE}
    found = {name: DataConfig.model_fields[name].default for name in ("split", "image_column", "bit_depth", "value_range")}
    classes = {"num_classes": None, "class_names": ()}
    conditions = {
        name: condition.model_copy(update=classes) if isinstance(condition, LabelConfig) else condition
        for name, condition in config.inputs.items()
    }
    return config.model_copy(update={"conditions": conditions}).replace(
        finetune={"source": source.name, "lora_rank": lora_rank},
        data=found,
        train={
            **shortened,
            **lora,
            "output": f"runs/{Path(source.name).name}-finetuned",
            "ema_share": EMA_SHARE,
            "publish": "least_val_loss",
        },
        sample={"conditions": {}, **({"guide": None} if lora_rank else {})},
    )


def check_contradictions(config: Config, source: Source) -> None:
    """Raise UserError, naming the setting, where the configuration contradicts the network of its source."""
    theirs = source.config
    objectives = config.objective.type, theirs.objective.type
    sections = ["unet", "time"] + ["objective"] * (objectives[0] == objectives[1])
    for section in sections:
        new, old = (getattr(each, section).model_dump(mode="json") for each in (config, theirs))
        for name in new:
            if new[name] != old[name] and f"{section}.{name}" not in OWN_CHOICE:
                raise _contradiction(f"{section}.{name}", source, old[name], new[name])
    if objectives[0] != objectives[1] and objectives[1] not in config.objective.begins_from:
        raise _contradiction("objective.type", source, *reversed(objectives))
    if config.data.channels != theirs.data.channels:
        raise _contradiction("data.channels", source, theirs.data.channels, config.data.channels)
    if config.finetune.lora_rank and config.train.snapshots:
        raise UserError(f"train.snapshots: LoRA has none (got {config.train.snapshots}); leave it out")


def _contradiction(key: str, source: Source, old: Any, new: Any) -> UserError:
    return UserError(f"{key}: the network of {source.name} was trained with {old} (got {new}); leave {key} out")


# ── weights ───────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def initial_weights(config: Config, source: Source, log: Callable[[str], None]) -> dict[str, Tensor]:
    """Return the weights at step 0 of the network of a resolved `config`, which predicts what the source predicts.

    Rows of classes are kept by name, and new ones are the mean of the former. A new condition has no effect at first.
    A condition that the data lack is absent. Raise UserError, naming a condition that does not fit.
    """
    new, old = config.build_denoiser(), source.denoiser()
    tensors = {name: value for name, value in old.state_dict().items() if not name.startswith("embeddings.")}
    absent = tensors["time.mlp.2.bias"].clone()
    for name, embedding in old.embeddings.items():
        if name not in config.conditions:
            _check_optional(source.config.conditions[name], f"conditions.{name}: the network of {source.name} needs it, and the data have none")
            null = embedding(None).vector
            absent += 0.0 if null is None else null[0]
    for name, embedding in new.embeddings.items():
        if name in old.embeddings:
            _take_over(embedding, old.embeddings[name], config, source, name, log)
        else:
            problem = f"conditions.{name}: the network of {source.name} has no input for it"
            _check_optional(config.conditions[name], f"{problem}; leave it out")
            last = [module for module in embedding.modules() if isinstance(module, nn.Linear | nn.Embedding)][-1]
            for parameter in last.parameters():
                parameter.zero_()
    tensors["time.mlp.2.bias"] = absent
    return tensors | {f"embeddings.{name}": value for name, value in new.embeddings.state_dict().items()}


def _check_optional(condition: ConditionConfig, problem: str) -> None:
    """Raise UserError for a condition that has layers of its own inside the U-Net."""
    if condition.has_tokens or condition.plane_channels:
        raise UserError(problem)


def _take_over(
    new: nn.Module, old: nn.Module, config: Config, source: Source, name: str, log: Callable[[str], None]
) -> None:
    """Copy the weights of the embedding of a condition, those of labels by class."""
    theirs, ours = source.config.conditions[name], config.conditions[name]
    if isinstance(theirs, LabelConfig) and isinstance(ours, LabelConfig):
        rows = dict(zip(theirs.class_names, old.table.weight, strict=False))  # the null label comes last
        mean = old.table.weight[:-1].mean(0)
        classes = [rows.get(class_name, mean) for class_name in ours.class_names]
        new.table.weight.copy_(torch.stack([*classes, old.table.weight[-1]]))
        added = [class_name for class_name in ours.class_names if class_name not in rows]
        if added:
            listed = ", ".join(added[:LISTED]) + ", ..." * (len(added) > LISTED)
            log(f"conditions.{name}: new to {source.name}, so begun at the mean of its classes: {printable(listed)}")
        return
    own_choice = {"column": None, "dropout": 0.0}
    if theirs.model_copy(update=own_choice) != ours.model_copy(update=own_choice):
        raise UserError(f"conditions.{name}: differs from that of {source.name} ({theirs.summary}); use another name")
    new.load_state_dict(old.state_dict())


# ── the end ───────────────────────────────────────────────────────────────────────────────────────


def describe_memorization(run: Run, denoiser: Denoiser, images: ImageDataset) -> str:
    """Return a line on how many samples of a denoiser are copies of training images, by their pixels."""
    config = run.config().sample
    samples = SampleBatch.concatenate(run.sampler(config, denoiser).sample(config)).pixels
    features = PixelFeatures(images.config.bit_depth)
    trained, held_out = (extract(features, images.images, p.indices.tolist()) for p in images.split_held_out())
    found = memorization_record(features(samples), trained, held_out)
    verdict = "memorized: fewer steps or more images help" if found["verdict"] else "no sign of memorization"
    floor = "of held-out images" if len(held_out) else "expected"
    share = f"{found['value']:.1%} of {len(samples)} samples are very near to a training image"
    return f"{verdict} ({share}, {found['floor']:.1%} {floor})"
