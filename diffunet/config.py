"""One configuration for a whole run, and what the data settle of it."""

import yaml

from .data import DataConfig, Pictures
from .denoiser import ConditionsConfig
from .diffusion import DiffusionConfig
from .generation import SampleConfig
from .settings import Settings, UserError
from .training import TrainConfig
from .unet import UNetConfig, levels_for


class ModelConfig(Settings):
    """What decides a network."""

    unet: UNetConfig = UNetConfig()
    conditions: ConditionsConfig = ConditionsConfig()


class Config(ModelConfig):
    """Everything that decides a run."""

    diffusion: DiffusionConfig = DiffusionConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    sample: SampleConfig = SampleConfig()

    def settled(self, pictures: Pictures) -> "Config":
        """The config with everything filled in that follows from the pictures. UserError where they disagree."""
        names, classes = pictures.class_names, self.conditions.classes
        if classes == "auto":
            classes = len(names)
        if classes and classes != len(names):
            raise UserError(
                f"conditions.classes: {classes}, but {pictures.config.path} has {len(names) or 'no'} classes"
                + (f"; use {len(names)}, or auto" if names else "; use 0, or name data.label_column")
            )
        channels = pictures.config.channels
        levels = self.unet.levels or levels_for(min(pictures.config.size))
        return self.model_copy(
            update={
                "unet": self.unet.model_copy(
                    update={
                        "levels": levels,
                        "in_channels": channels,
                        "out_channels": channels,
                        "vector_dim": self.unet.vector_dim or 4 * levels[0].channels,
                    }
                ),
                "conditions": self.conditions.model_copy(update={"classes": classes, "class_names": names}),
                "data": pictures.config,
            }
        )

    def to_yaml(self) -> str:
        """Every value, in the order of the documentation."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
