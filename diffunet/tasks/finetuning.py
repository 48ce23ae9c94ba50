"""Finetuning: a training that begins with the weights of a pretrained network, and the configuration of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..conditions.base import ConditionConfig
from ..conditions.label import LISTED, LabelConfig
from ..core.errors import UserError, printable
from ..core.runtime import autocast, prepare_for
from ..core.settings import TAG, merge, read_yaml, settings_from
from ..data.config import DataConfig
from ..data.dataset import ImageDataset
from ..evaluation.features import PixelFeatures, extract
from ..evaluation.report import memorization_record
from ..interop.diffusers import load_diffusers
from ..models.denoiser import Denoiser
from ..objectives.consistency import ConsistencyConfig
from ..runs.config import Config, RunConfig
from ..runs.run import Run
from ..training.config import TrainConfig

Log = Callable[[str], None]

INITIAL_WEIGHTS = "initial.safetensors"
"""File of a run folder: the weights at step 0, by which a finetuning is resumed without the pretrained network."""
SHORTER = 10
"""A finetuning has a tenth of the steps of the pretraining, in all and between previews, checkpoints and so on."""
LORA_RATE = 3
"""LoRA, whose B begins at zero, has three times the learning rate of the pretraining (docs/finetuning.md)."""
EMA_SHARE = 0.1
"""Length of the EMA as a share of the finetuning: e^-10 of the pretrained weights remain at its end."""
MAY_DIFFER = {
    *("unet.dropout", "objective.condition_dropout"),
    *("objective.min_snr_gamma", "objective.P_mean", "objective.P_std", "objective.sigma_min", "objective.sigma_max"),
}
"""Settings that do not change what the network predicts: regularization, weights of noise levels, range of sampling."""
FOUND = ("split", "image_column", "bit_depth", "value_range")
"""Settings of the data that are those of other images, not of the network."""


@dataclass(frozen=True)
class Pretrained:
    """A trained network to begin with."""

    name: str
    """As it was given: a folder or a hub id."""
    config: Config
    folder: Path | None
    """Its model/ folder, with the tokenizers; None: it has none."""
    denoiser: Callable[[], Denoiser]


def load_pretrained(name: str) -> Pretrained:
    """Return the network of a run, a diffusers folder or a hub id. Raise UserError if there is none."""
    run = Run(name)
    is_diffusers = (run.folder / "unet").is_dir()
    if not is_diffusers and run.folder.parent.is_dir():
        return Pretrained(name, run.config(), run.folder / "model", run.denoiser)
    try:
        config, denoiser = load_diffusers(name)
    except UserError as mistake:
        raise (
            mistake if is_diffusers else UserError(f"finetune.from: no such folder, and on the hub {mistake}")
        ) from None
    return Pretrained(name, config, None, lambda: denoiser)


# ── configuration ─────────────────────────────────────────────────────────────────────────────────


def configure(
    file: Path | None, flags: Mapping[str, str] = {}, changes: Mapping[str, Any] = {}
) -> tuple[Config, Pretrained | None]:
    """Return the configuration of a new training, and the network that it begins with if it is a finetuning.

    `changes`, nested values, and then `flags`, by dotted keys, are laid over the file, and all of it over the defaults
    or, with `finetune.from`, over `finetune_defaults`. Raise UserError for a mistake or a contradiction.
    """

    def change(values: dict) -> dict:
        return merge(values, changes)

    transform = change if changes else None
    given = change(read_yaml(file)[0] if file else {})
    finetune = finetune_section(Config, given, flags)
    if finetune.pretrained is None:
        return settings_from(file or Config(), Config, flags, transform), None
    pretrained = load_pretrained(finetune.pretrained)
    base = finetune_defaults(pretrained, finetune.lora_rank)
    if _objective_type(given, flags) == "consistency":
        base = consistency_defaults(base, pretrained)
    config = settings_from(file or base, Config, flags, transform, base)
    check_contradictions(config, pretrained)
    return config, pretrained


def finetune_section(kind: type[RunConfig], values: dict, flags: Mapping[str, str]) -> Any:
    """Return the section `finetune` of a configuration whose other sections are not complete yet."""
    own = {key: word for key, word in flags.items() if key.startswith("finetune.")}
    section = {name: value for name, value in values.items() if name == "finetune"}
    return settings_from(kind(), kind, own, lambda defaults: merge(defaults, section)).finetune


def finetune_defaults(pretrained: Pretrained, lora_rank: int = 0) -> Config:
    """Return the configuration of a finetuning to which nothing is added: that of the pretraining, for other images.

    It is shorter, the EMA begins at the pretrained weights, and the weights of the least validation loss are published.
    """
    config, changes = pretrained.config, shorter(pretrained.config.train, pretrained.name)
    changes |= {"snapshots": 0, "learning_rate": LORA_RATE * config.train.peak_rate} if lora_rank else {}
    unknown = {"num_classes": None, "class_names": ()}
    conditions = {
        name: condition.model_copy(update=unknown) if isinstance(condition, LabelConfig) else condition
        for name, condition in config.inputs.items()
    }
    return config.model_copy(update={"conditions": conditions}).replace(
        finetune={"pretrained": pretrained.name, "lora_rank": lora_rank},
        data={name: DataConfig.model_fields[name].default for name in FOUND},
        train=changes,
        sample={"conditions": {}, **({"guide": None} if lora_rank else {})},  # a guide is made of snapshots
    )


def shorter(train: TrainConfig, name: str) -> dict[str, Any]:
    """Return what differs in the section `train` of a finetuning from that of the pretraining, the run `name`."""
    lengths = ("steps", "log_every", "checkpoint_every", "preview_every")
    return {length: max(1, getattr(train, length) // SHORTER) for length in lengths} | {
        "warmup_steps": train.warmup_steps // SHORTER,
        "minutes": None,
        "output": f"runs/{Path(name).name}-finetuned",
        "ema_share": EMA_SHARE,
        "publish": "least_val_loss",
    }


def _objective_type(values: Mapping[str, Any], flags: Mapping[str, str]) -> str | None:
    """Return the type of objective that a file or flags name, if they do."""
    section = values.get("objective")
    in_file = section.get(TAG) if isinstance(section, dict) else None
    return flags.get("objective.type", flags.get("objective", in_file))


def consistency_defaults(config: Config, pretrained: Pretrained) -> Config:
    """Return the defaults of a finetuning, changed for one by consistency.

    It takes as long as the pretraining. The newest weights are published: the validation loss compares neighboring
    levels, whose distance changes with the stages.
    """
    train = pretrained.config.train
    lengths = {name: getattr(train, name) for name in ("steps", "log_every", "checkpoint_every", "preview_every")}
    source = pretrained.config.objective.process
    objective = ConsistencyConfig.model_construct(source=source, condition_dropout=source.condition_dropout)
    return config.model_copy(update={"objective": objective}).replace(
        train={
            **lengths,
            "warmup_steps": train.warmup_steps,
            "output": f"runs/{Path(pretrained.name).name}-consistency",
            "publish": "newest",
        },
        sample={"sampler": "consistency", "steps": 2},
    )


def check_contradictions(config: Config, pretrained: Pretrained) -> None:
    """Raise UserError, naming the setting, where the configuration contradicts the pretrained network."""
    theirs, check = pretrained.config, partial(check_same, pretrained.name)
    if theirs.objective.type not in config.objective.begins_from:
        check("objective.type", theirs.objective.type, config.objective.type)
    processes = [each.objective.process for each in (theirs, config)]
    check("objective.source.type", *(process.type for process in processes))
    pairs = {"unet": (theirs.unet, config.unet), "time": (theirs.time, config.time), "objective": processes}
    for section, pair in pairs.items():
        old, new = (settings.model_dump(mode="json") for settings in pair)
        for name in new:
            if f"{section}.{name}" not in MAY_DIFFER:
                check(f"{section}.{name}", old[name], new[name])
    check("data.channels", theirs.data.channels, config.data.channels)
    if config.finetune.lora_rank and config.train.snapshots:
        raise UserError(f"train.snapshots: LoRA has none (got {config.train.snapshots}); leave it out")


def check_same(source: str, key: str, old: Any, new: Any) -> None:
    """Raise UserError if a setting differs from that of the source."""
    if new != old:
        old, new = printable(old), printable(new)
        raise UserError(f"{key}: the network of {source} was trained with {old} (got {new}); leave {key} out")


# ── weights ───────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def initial_weights(config: Config, pretrained: Pretrained, log: Log) -> dict[str, Tensor]:
    """Return the weights at step 0 of the network of a resolved `config`: it predicts what the pretrained one does.

    Rows of classes are kept by name; new ones are drawn with their mean and spread, since classes that begin at the
    same row are slow to separate. A new condition has no effect at first. A condition that the data lack is absent.
    Raise UserError, naming a condition that does not fit.
    """
    new, old, theirs = config.build_denoiser(), pretrained.denoiser(), pretrained.config.conditions
    tensors = {name: tensor for name, tensor in old.state_dict().items() if not name.startswith("embeddings.")}
    bias = tensors["time.mlp.2.bias"].clone()
    for name, embedding in old.embeddings.items():
        if name not in config.conditions:
            problem = f"the network of {pretrained.name} needs it, and {config.data.path} lacks it"
            _check_optional(theirs[name], f"conditions.{name}: {problem}; use images that have it")
            null = embedding(None).vector
            bias += 0.0 if null is None else null[0]
    for name, embedding in new.embeddings.items():
        if name in old.embeddings:
            _take_over(name, embedding, config, old.embeddings[name], pretrained, log)
        else:
            problem = f"the network of {pretrained.name} has no input for it"
            _check_optional(config.conditions[name], f"conditions.{name}: {problem}; leave it out")
            last = [module for module in embedding.modules() if isinstance(module, nn.Linear | nn.Embedding)][-1]
            for parameter in last.parameters():
                parameter.zero_()
    tensors["time.mlp.2.bias"] = bias
    return tensors | {f"embeddings.{name}": tensor for name, tensor in new.embeddings.state_dict().items()}


def _check_optional(condition: ConditionConfig, problem: str) -> None:
    """Raise UserError for a condition that has layers of its own inside the U-Net."""
    if condition.has_tokens or condition.plane_channels:
        raise UserError(problem)


def _take_over(name: str, new: nn.Module, config: Config, old: nn.Module, pretrained: Pretrained, log: Log) -> None:
    """Copy the weights of the embedding of a condition, those of a label class by class."""
    ours, theirs = config.conditions[name], pretrained.config.conditions[name]
    if isinstance(ours, LabelConfig) and isinstance(theirs, LabelConfig):
        table = old.table.weight  # the null label comes last
        rows = dict(zip(theirs.class_names, table[:-1], strict=False))
        generator, spread = torch.Generator().manual_seed(config.train.seed), table[:-1].std(0, correction=0)
        drawn = table[:-1].mean(0) + spread * torch.randn(len(ours.class_names), len(spread), generator=generator)
        kept = [rows.get(name, row) for name, row in zip(ours.class_names, drawn, strict=True)]
        new.table.weight.copy_(torch.stack([*kept, table[-1]]))
        if added := [class_name for class_name in ours.class_names if class_name not in rows]:
            listed = ", ".join(added[:LISTED]) + ", ..." * (len(added) > LISTED)
            log(f"conditions.{name}: new to {pretrained.name}, begin at random among its classes: {printable(listed)}")
        return
    ignored = {"column": None, "dropout": 0.0}
    if ours.model_copy(update=ignored) != theirs.model_copy(update=ignored):
        problem = f"differs from that of {pretrained.name} ({theirs.summary})"
        raise UserError(f"conditions.{name}: {problem}; leave its settings out, or use another name")
    new.load_state_dict(old.state_dict())


def teacher(config: Config, weights: dict[str, Tensor], device: torch.device) -> Callable[..., Tensor]:
    """Return the pretrained network on the device, guided by `objective.guidance_scale`, to learn consistency from.

    Raise UserError without weights.
    """
    if not weights:
        raise UserError("objective.guidance_scale: there is no network to learn from; set finetune.from, or null")
    network = config.build_denoiser().requires_grad_(False).eval().to(device)
    network.load_state_dict(weights)
    prepare_for(network.unet, config.train.runtime)
    predict = autocast(network, config.train.runtime.mixed_precision, device)
    scale = config.objective.guidance_scale

    def guided(x_t: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        prediction = predict(x_t, t, **conditions)
        return prediction if scale == 1 or not conditions else torch.lerp(predict(x_t, t), prediction, scale)

    return guided


# ── the end ───────────────────────────────────────────────────────────────────────────────────────


def describe_memorization(samples: Tensor, images: ImageDataset) -> str:
    """Return a line on how many samples are near copies of training images, by the pixels, as `diffunet evaluate`."""
    features = PixelFeatures(images.config.bit_depth or 8)
    parts = [part.indices.tolist() for part in images.split_held_out() if part.indices is not None]
    trained, held_out = (extract(features, images.images, part) for part in parts)
    found = memorization_record(features(samples), trained, held_out)
    verdict = "MEMORIZED, try fewer steps or more images" if found["verdict"] else "no sign of memorization"
    floor = "held-out images" if len(held_out) else "new images"
    share = f"{found['value']:.1%} of {len(samples)} samples are near copies of training images"
    return f"{verdict}: {share}, and {found['floor']:.1%} of {floor}"
