"""One configuration for a whole run, and what the data settle of it."""

from typing import Literal, Self

import yaml

from ..data.augmentation import KINDS
from ..data.dataset import DataConfig, ImageDataset
from ..models.denoiser import ConditionsConfig
from ..objectives.ddpm import DDPM, DDPMConfig
from ..objectives.edm import EDM, EDMConfig
from ..objectives.flow import Flow, FlowConfig
from ..sampling.generate import SampleConfig
from ..objectives.base import Objective
from ..core.settings import Settings
from ..core.errors import UserError
from ..training.trainer import TrainConfig
from ..models.unet import UNetConfig, levels_for

RUNS_NEED = {"dims": 2, "padding": "same", "token_dim": 0, "plane_channels": 0}
"""What the U-Net of a run has to be; as a library it is more."""


OBJECTIVES = {"diffusion": DDPM, "edm": EDM, "flow": Flow}
"""What can be learnt; each has a section of its own."""


class ModelConfig(Settings):
    """What decides a network."""

    unet: UNetConfig = UNetConfig()
    conditions: ConditionsConfig = ConditionsConfig()

    def fitted(
        self, size: tuple[int, ...], channels: int, class_names: tuple[str, ...], augmentation: int = 0
    ) -> Self:
        """With what follows from pictures of this size, their channels, classes and numbers of distortion."""
        levels = self.unet.levels or levels_for(min(size))
        unet = {
            "levels": levels,
            "in_channels": channels,
            "out_channels": channels,
            "vector_dim": self.unet.vector_dim or 4 * levels[0].channels,
        }
        classes = len(class_names) if self.conditions.classes == "auto" else self.conditions.classes
        conditions = {"classes": classes, "class_names": class_names, "augmentation": augmentation}
        return self.model_copy(
            update={
                "unet": self.unet.model_copy(update=unet),
                "conditions": self.conditions.model_copy(update=conditions),
            }
        )


class Config(ModelConfig):
    """Everything that decides a run."""

    objective: Literal["diffusion", "edm", "flow"] = "diffusion"
    """What to learn: DDPM's diffusion, EDM's preconditioned one, or flow matching. The section of its name counts."""
    diffusion: DDPMConfig = DDPMConfig()
    edm: EDMConfig = EDMConfig()
    flow: FlowConfig = FlowConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    sample: SampleConfig = SampleConfig()

    def changed(self, **sections: dict) -> "Config":
        """With other values in some sections: `changed(train={"steps": 10})`."""
        return self.model_copy(
            update={name: getattr(self, name).model_copy(update=values) for name, values in sections.items()}
        )

    def build_objective(self) -> Objective:
        """The training objective that `objective` names, with its section."""
        return OBJECTIVES[self.objective](getattr(self, self.objective))

    def settled(self, pictures: ImageDataset) -> "Config":
        """The config with everything filled in that follows from the pictures. UserError where they disagree."""
        for key, needed in RUNS_NEED.items():
            if (found := getattr(self.unet, key)) != needed:
                raise UserError(f"unet.{key}: {found}, but a run trains on pictures and their labels; use {needed}")
        names, classes = pictures.class_names, self.conditions.classes
        if classes not in ("auto", 0, len(names)):
            raise UserError(
                f"conditions.classes: {classes}, but {pictures.config.path} has {len(names) or 'no'} classes"
                + (f"; use {len(names)}, or auto" if names else "; use 0, or name data.label_column")
            )
        told = KINDS if self.data.augmentation else 0
        fitted = self.fitted(pictures.config.size, pictures.config.channels, names, told)
        return fitted.model_copy(update={"data": pictures.config})

    def to_yaml(self) -> str:
        """Every value, in the order of the documentation, and an end by which a file that was cut off is known."""
        values = self.model_dump(mode="json")
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120, explicit_end=True)
