"""The public names of diffunet and their homes: for editors, type checkers and the lazy imports of `__init__.py`."""

from .conditions.image import ImageConfig
from .conditions.label import LabelConfig
from .conditions.text import TextConfig
from .conditions.vector import VectorConfig
from .core.errors import UserError
from .data.config import DataConfig
from .data.dataset import ImageDataset, load_images
from .data.degradation import Degradation
from .data.pairs import PairConfig
from .interop.adapters import DiffusersUNet, LucidrainsUNet
from .interop.guided_diffusion import load_guided_diffusion, save_guided_diffusion
from .models.conditioning import (
    Conditioning,
    LabelEmbedding,
    PlaneEmbedding,
    TimeEmbedding,
    TokenEmbedding,
    VectorEmbedding,
)
from .models.config import LevelConfig, UNetConfig
from .models.denoiser import Denoiser, TimeConfig
from .models.inspection import describe, features, receptive_field
from .models.predictor import Predictor
from .models.pretrained import copy_encoder
from .models.saving import load_unet, save_unet
from .models.tiling import Tiled
from .models.unet import UNet
from .objectives.base import Objective
from .objectives.consistency import Consistency, ConsistencyConfig
from .objectives.ddpm import DDPM, DDPMConfig
from .objectives.edm import EDM, EDMConfig
from .objectives.flow import Flow, FlowConfig
from .objectives.regression import Regression, RegressionConfig
from .objectives.segmentation import Segmentation, SegmentationConfig
from .objectives.solvers import Solver
from .runs.config import Config
from .runs.edit import EditConfig, read_edit
from .runs.evaluate import EvaluationConfig, evaluate
from .runs.predict import ImagePredictor
from .runs.prediction import PredictionConfig, load_predictor
from .runs.run import Run, load_denoiser, load_run
from .sampling.editing import Interpolate, Restore, Vary
from .sampling.generate import SampleConfig, Sampler
from .sampling.guidance import Guided
from .sampling.loop import sample
from .sampling.observed import Observed
from .tasks.kinds import train
from .training.config import TrainConfig
from .training.ema import EMA
from .training.trainer import Trainer

__all__ = [
    "DDPM",
    "EDM",
    "EMA",
    "Conditioning",
    "Config",
    "Consistency",
    "ConsistencyConfig",
    "DDPMConfig",
    "DataConfig",
    "Degradation",
    "Denoiser",
    "DiffusersUNet",
    "EDMConfig",
    "EditConfig",
    "EvaluationConfig",
    "Flow",
    "FlowConfig",
    "Guided",
    "ImageConfig",
    "ImageDataset",
    "ImagePredictor",
    "Interpolate",
    "LabelConfig",
    "LabelEmbedding",
    "LevelConfig",
    "LucidrainsUNet",
    "Objective",
    "Observed",
    "PairConfig",
    "PlaneEmbedding",
    "PredictionConfig",
    "Predictor",
    "Regression",
    "RegressionConfig",
    "Restore",
    "Run",
    "SampleConfig",
    "Sampler",
    "Segmentation",
    "SegmentationConfig",
    "Solver",
    "TextConfig",
    "Tiled",
    "TimeConfig",
    "TimeEmbedding",
    "TokenEmbedding",
    "TrainConfig",
    "Trainer",
    "UNet",
    "UNetConfig",
    "UserError",
    "Vary",
    "VectorConfig",
    "VectorEmbedding",
    "copy_encoder",
    "describe",
    "evaluate",
    "features",
    "load_denoiser",
    "load_guided_diffusion",
    "load_images",
    "load_predictor",
    "load_run",
    "load_unet",
    "read_edit",
    "receptive_field",
    "sample",
    "save_guided_diffusion",
    "save_unet",
    "train",
]
