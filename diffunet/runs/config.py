"""The configuration of a run, and how the data complete it."""

import math
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import yaml
from pydantic import ConfigDict, Field, field_validator

from ..conditions.augmentation import AugmentationConfig
from ..conditions.base import ConditionConfig
from ..conditions.label import LabelConfig
from ..conditions.types import Condition
from ..core.errors import UserError, did_you_mean, printable
from ..core.settings import Settings
from ..data.augmentation import KINDS
from ..data.config import DataConfig
from ..data.dataset import ImageDataset
from ..models.codec import CodecConfig
from ..models.config import MAX_CHANNELS, UNetConfig
from ..models.denoiser import Denoiser, TimeConfig
from ..models.sizes import Size, size_for
from ..objectives.base import Objective
from ..objectives.consistency import SOURCES, Consistency, ConsistencyConfig
from ..objectives.ddpm import DDPMConfig
from ..objectives.edm import EDMConfig
from ..objectives.flow import FlowConfig
from ..sampling.generate import SampleConfig
from ..training.config import TrainConfig

OBJECTIVES: dict[str, type[Objective]] = {**SOURCES, "consistency": Consistency}
PACKAGE = Path(__file__).parents[1]
CONFIG_DIR = PACKAGE / "configs" if (PACKAGE / "configs").is_dir() else PACKAGE.parent / "configs"
"""The shipped configs: inside the installed package, or beside it in a checkout."""
COLUMNS = {"image", "pixels", "target", "weight"}
ARGUMENTS = {"time", "plane_side", "x_t", "t", "keep_masks", "model", "rng", "run", "output", "help"}
RESERVED = COLUMNS | ARGUMENTS
"""Names that a condition cannot have: columns and arguments with another meaning."""
MAX_NAME = 64
"""Maximum length of the name of a condition, which is also that of a folder."""


class ModelConfig(Settings):
    """Everything that determines a network: model/config.json."""

    unet: UNetConfig = UNetConfig()
    time: TimeConfig = TimeConfig()
    conditions: dict[str, Condition] = Field({})
    """Conditions by name: `{label: {type: label}, caption: {type: text, column: text}}`. {}: unconditional."""

    @field_validator("conditions")
    @classmethod
    def _names_are_usable(cls, conditions: dict[str, Condition]) -> dict[str, Condition]:
        for name, condition in conditions.items():
            taken = name in RESERVED or name in SampleConfig.model_fields
            if taken or (name == "augmentation") != isinstance(condition, AugmentationConfig):
                raise ValueError(f"{name} is a reserved name; choose another")
            if not name.isidentifier() or len(name) > MAX_NAME:
                raise ValueError(f"{printable(name, 40)} is not a name: use at most {MAX_NAME} letters, digits and _")
        return conditions

    @property
    def inputs(self) -> dict[str, ConditionConfig]:
        """The conditions that come from the data or a user: all but augmentation."""
        return {name: c for name, c in self.conditions.items() if not isinstance(c, AugmentationConfig)}

    @property
    def labels(self) -> dict[str, LabelConfig]:
        """The label conditions by name."""
        return {name: condition for name, condition in self.conditions.items() if isinstance(condition, LabelConfig)}

    @property
    def class_names(self) -> dict[str, tuple[str, ...]]:
        """The class names of each label condition."""
        return {name: label.class_names for name, label in self.labels.items()}

    def build_denoiser(self) -> Denoiser:
        """Return the network with fresh weights. Raise ValueError if it is not resolved, or has no vector."""
        own = sum(condition.plane_channels for condition in self.conditions.values())
        plane_side = math.isqrt(self.unet.plane_channels // own) if own else 1
        return Denoiser.from_config(self.unet, self.conditions, self.time, plane_side)


class RunConfig(Settings):
    """A configuration with a section `train`, as a run folder records it."""

    task: ClassVar[str]
    """The kind of training."""

    def replace(self, **sections: dict) -> Self:
        """Return the config with other values in some sections: `replace(train={"steps": 10})`."""
        return self.model_copy(
            update={name: getattr(self, name).model_copy(update=values) for name, values in sections.items()}
        )

    def to_yaml(self) -> str:
        """Return every value as YAML with an end mark, by which a truncated file is recognized."""
        values = self.model_dump(mode="json")
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120, explicit_end=True)


class FinetuneConfig(Settings):
    """The weights that a training begins with, instead of random ones."""

    model_config = ConfigDict(validate_by_name=True)

    pretrained: str | None = Field(None, validation_alias="from", serialization_alias="from")
    """A run folder, a DDPMPipeline folder of diffusers, or its id on the hub; null: random weights."""
    lora_rank: int = Field(0, ge=0, le=MAX_CHANNELS)
    """Rank of the change of each weight (Hu et al. 2021), which leaves few weights to train; 0: train all weights."""


class Config(ModelConfig, RunConfig):
    """Everything that determines a run."""

    task: ClassVar[str] = "generation"

    objective: Annotated[DDPMConfig | EDMConfig | FlowConfig | ConsistencyConfig, Field(discriminator="type")] = (
        DDPMConfig()
    )
    """The training objective; its type decides which keys there are."""
    codec: CodecConfig = CodecConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    sample: SampleConfig = SampleConfig()

    @property
    def sampled_size(self) -> tuple[int, int]:
        """(height, width) of what the network generates: images or latents."""
        height, width = self.data.size
        return height // self.codec.factor, width // self.codec.factor

    def resolve_model(
        self, sides: tuple[int, ...], channels: int, plane_side: int = 1, size: Size | None = None
    ) -> Self:
        """Return the config completed for images or latents of these sides (height, width) and number of channels.

        plane_side: side of the pixels of a conditioning image for each position. size: of the network; None: that of
        the config, and for `levels: auto` by the number of steps. Raise UserError for tokens without attention.
        """
        size = size if size or self.unet.levels else size_for(self.train.images)
        sized = size.of(self.unet, min(sides)) if size else self.unet
        vector_dim = sized.vector_dim or 4 * sized.levels[0].channels
        conditions = self.conditions.values()
        tokens = any(condition.has_tokens for condition in conditions)
        unet = {
            "in_channels": channels,
            "out_channels": channels,
            "vector_dim": vector_dim,
            "token_dim": (self.unet.token_dim or vector_dim) if tokens else 0,
            "plane_channels": plane_side**2 * sum(condition.plane_channels for condition in conditions),
        }
        resolved = sized.model_copy(update=unet)
        if tokens and not resolved.attention_channels():
            raise UserError("unet.levels: text needs attention, and no level has any; add attention: true to one")
        return self.model_copy(update={"unet": resolved, "train": self.train.for_width(sized.levels[0].channels)})

    def build_objective(self, **parts: Any) -> Objective:
        """Return the training objective; `parts` are further arguments of its class."""
        dropout = {name: condition.dropout for name, condition in self.inputs.items()}
        objective = OBJECTIVES[self.objective.type](self.objective, dropout, **parts)
        objective.limit = None if self.codec.pretrained else objective.limit
        return objective

    def resolve(self, images: ImageDataset, size: Size | None = None) -> Self:
        """Return the config completed from the data; its section `codec` is. Raise UserError if they disagree.

        size: as of `resolve_model`.
        """
        for name, label in self.labels.items():
            found = images.conditions[name].num_classes if name in images.conditions else 0
            if label.num_classes not in (None, found):
                advice = f"use {found} or null" if found else f"leave {name} out, or set conditions.{name}.column"
                raise UserError(
                    f"conditions.{name}.num_classes: {label.num_classes}, but {images.config.path} has "
                    f"{found or 'no'} classes; {advice}"
                )
        conditions = dict(images.conditions)
        if self.data.augmentation:
            conditions["augmentation"] = AugmentationConfig(width=KINDS)
        completed = self.model_copy(update={"conditions": conditions, "data": images.config})
        channels = len(self.codec.scale) or images.config.channels
        assert channels
        return completed.resolve_model(completed.sampled_size, channels, self.codec.factor, size)


def config_file(name: str) -> Path:
    """Return the path of a config: a file, or a shipped one by its path in the project. UserError if there is none."""
    path = Path(name)
    if not path.exists() and path.parent.name in ("", "configs") and (CONFIG_DIR / path.name).exists():
        return CONFIG_DIR / path.name
    if not path.exists() and not path.parent.is_dir():
        names = [file.name for file in CONFIG_DIR.glob("*.yaml")]
        raise UserError(f"{name}: no such file{did_you_mean(path.name, names)}")
    return path
