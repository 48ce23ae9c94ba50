"""diffunet: a U-Net backbone, and denoising diffusion with it.

from diffunet import UNet, UNetConfig, LevelConfig
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and type checkers; at run time, see below
    from .core.errors import UserError as UserError
    from .data.dataset import DataConfig as DataConfig
    from .data.dataset import ImageDataset as ImageDataset
    from .data.dataset import load_images as load_images
    from .interop.adapters import DiffusersUNet as DiffusersUNet
    from .interop.adapters import LucidrainsUNet as LucidrainsUNet
    from .interop.guided_diffusion import (
        load_guided_diffusion as load_guided_diffusion,
    )
    from .interop.guided_diffusion import (
        save_guided_diffusion as save_guided_diffusion,
    )
    from .models.conditioning import (
        Conditioning as Conditioning,
    )
    from .models.conditioning import (
        LabelEmbedding as LabelEmbedding,
    )
    from .models.conditioning import (
        PlaneEmbedding as PlaneEmbedding,
    )
    from .models.conditioning import (
        TimeEmbedding as TimeEmbedding,
    )
    from .models.conditioning import (
        TokenEmbedding as TokenEmbedding,
    )
    from .models.conditioning import (
        VectorEmbedding as VectorEmbedding,
    )
    from .models.denoiser import Denoiser as Denoiser
    from .models.denoiser import LabelConfig as LabelConfig
    from .models.denoiser import TimeConfig as TimeConfig
    from .models.inspection import describe as describe
    from .models.inspection import features as features
    from .models.inspection import receptive_field as receptive_field
    from .models.pretrained import copy_encoder as copy_encoder
    from .models.saving import load_unet as load_unet
    from .models.saving import save_unet as save_unet
    from .models.tiling import Tiled as Tiled
    from .models.unet import LevelConfig as LevelConfig
    from .models.unet import UNet as UNet
    from .models.unet import UNetConfig as UNetConfig
    from .objectives.base import Objective as Objective
    from .objectives.ddpm import DDPM as DDPM
    from .objectives.ddpm import DDPMConfig as DDPMConfig
    from .objectives.edm import EDM as EDM
    from .objectives.edm import EDMConfig as EDMConfig
    from .objectives.flow import Flow as Flow
    from .objectives.flow import FlowConfig as FlowConfig
    from .runs.config import Config as Config
    from .runs.evaluate import EvaluationConfig as EvaluationConfig
    from .runs.evaluate import evaluate as evaluate
    from .runs.run import Run as Run
    from .runs.run import load_denoiser as load_denoiser
    from .runs.run import load_run as load_run
    from .sampling.generate import SampleConfig as SampleConfig
    from .sampling.generate import Sampler as Sampler
    from .sampling.guidance import Guided as Guided
    from .sampling.loop import sample as sample
    from .tasks.generation import train as train
    from .training.config import TrainConfig as TrainConfig
    from .training.ema import EMA as EMA
    from .training.trainer import Trainer as Trainer

_HOMES = {
    "Conditioning": "models.conditioning",
    "TimeEmbedding": "models.conditioning",
    "LabelEmbedding": "models.conditioning",
    "VectorEmbedding": "models.conditioning",
    "TokenEmbedding": "models.conditioning",
    "PlaneEmbedding": "models.conditioning",
    "LevelConfig": "models.unet",
    "UNetConfig": "models.unet",
    "UNet": "models.unet",
    "features": "models.inspection",
    "receptive_field": "models.inspection",
    "describe": "models.inspection",
    "Tiled": "models.tiling",
    "copy_encoder": "models.pretrained",
    "load_unet": "models.saving",
    "save_unet": "models.saving",
    "Denoiser": "models.denoiser",
    "LabelConfig": "models.denoiser",
    "TimeConfig": "models.denoiser",
    "Objective": "objectives.base",
    "DDPM": "objectives.ddpm",
    "DDPMConfig": "objectives.ddpm",
    "EDM": "objectives.edm",
    "EDMConfig": "objectives.edm",
    "Flow": "objectives.flow",
    "FlowConfig": "objectives.flow",
    "Guided": "sampling.guidance",
    "sample": "sampling.loop",
    "SampleConfig": "sampling.generate",
    "Sampler": "sampling.generate",
    "DataConfig": "data.dataset",
    "ImageDataset": "data.dataset",
    "load_images": "data.dataset",
    "EMA": "training.ema",
    "TrainConfig": "training.config",
    "Trainer": "training.trainer",
    "UserError": "core.errors",
    "Config": "runs.config",
    "Run": "runs.run",
    "load_denoiser": "runs.run",
    "load_run": "runs.run",
    "EvaluationConfig": "runs.evaluate",
    "evaluate": "runs.evaluate",
    "train": "tasks.generation",
    "DiffusersUNet": "interop.adapters",
    "LucidrainsUNet": "interop.adapters",
    "load_guided_diffusion": "interop.guided_diffusion",
    "save_guided_diffusion": "interop.guided_diffusion",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    """Import a name on first use, so that `from diffunet import UNet` needs only torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
