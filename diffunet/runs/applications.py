"""What a predictor is for: one class for each kind of objective, with its network, statistics and settings."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core.errors import UserError
from ..data.cases import Case, Cases
from ..data.pair_files import Kind
from ..data.paired import PairedData
from ..data.phantoms.registry import PHANTOMS
from ..evaluation.comparison import Judge
from ..models.posterior import TargetDenoiser
from ..models.predictor import Predictor
from ..models.unet import UNet
from ..objectives.posterior import SPREAD, Posterior, PosteriorConfig
from ..objectives.regression import Regression, RegressionConfig
from ..objectives.segmentation import Segmentation, SegmentationConfig
from ..objectives.supervised import Supervised
from ..sampling.posterior import TargetSamples

if TYPE_CHECKING:
    from .prediction import PredictConfig, PredictionConfig

LEAST = 1e-4
"""Share of a target's standard deviation below which an error is rounding, and no unit of what is left to learn."""


class Application(ABC):
    """What follows from the objective of a configuration, which is resolved unless the method says otherwise."""

    whole = False
    """Whether the network sees whole images alone, neither patches nor tiles."""

    def __init__(self, config: "PredictionConfig"):
        self.config = config

    @property
    @abstractmethod
    def kind(self) -> Kind:
        """What the targets are; of any configuration."""

    @property
    def input_channels(self) -> int:
        """Channels of an image that a model takes."""
        return self.config.data.channels or 0

    @property
    def channels(self) -> int:
        """Channels of a prediction: classes, or numbers of each place."""
        return self.config.unet.out_channels

    def outputs(self, pairs: PairedData) -> int:
        """Return the channels that the network predicts; of any configuration."""
        if pairs.labels:
            return len(pairs.labels.codes)
        assert pairs.target
        return len(pairs.target.mean)

    def network(self, pairs: PairedData) -> dict[str, Any]:
        """Return the settings of the network that follow from data; of any configuration. Raise UserError."""
        unet = self.config.unet
        if unet.vector_dim or unet.token_dim or unet.plane_channels:
            raise UserError("unet: a predictor has no vector, tokens or planes; set their widths to 0")
        return {"in_channels": pairs.config.channels, "out_channels": self.outputs(pairs)}

    def prepared(self, pairs: PairedData) -> PairedData:
        """Return the data as the model takes them; of any configuration. Raise UserError."""
        return pairs

    def settled(self, pairs: PairedData) -> dict[str, Any]:
        """Return settings of the objective that follow from data; of any configuration."""
        return {}

    def build(self) -> nn.Module:
        """Return the model with fresh weights."""
        return Predictor(UNet(self.config.unet), self.config.data.window)

    @abstractmethod
    def build_objective(self, pairs: PairedData) -> Supervised | Posterior:
        """Return the training objective."""

    @abstractmethod
    def statistics(self, pairs: PairedData) -> Mapping[str, Tensor]:
        """Return the buffers of the model that come from the data, by name, besides those of the image."""

    def member(self, model: Any, tile: tuple[int, ...], settings: "PredictConfig") -> nn.Module:
        """Return what predicts whole images with a model, tile by tile. Raise UserError for settings."""
        return model.tiled(tile)

    def judge(self, cases: Cases, pairs: PairedData, scored: Sequence[int], fitted: Sequence[int]) -> Judge:
        """Return what scores predictions of some cases, with references fitted on others."""
        return Judge.of(cases, pairs.labels, scored, fitted)

    def input_of(self, image: Tensor) -> Tensor:
        """Return what the model takes of the image in a file, (C, *S)."""
        return image

    def derived(self, output: Tensor) -> dict[str, Tensor]:
        """Return what is written beside a prediction (K, *S) of numbers, by name."""
        return {}

    def drawn(self, case: Case, output: Tensor) -> tuple[Case, Tensor]:
        """Return what previews show of a case and its prediction, (K, *S)."""
        return case, output


class Classes(Application):
    """A class for each place."""

    @property
    def kind(self) -> Kind:
        return "segmentation"

    def build_objective(self, pairs: PairedData) -> Segmentation:
        assert isinstance(self.config.objective, SegmentationConfig)
        return Segmentation(self.config.objective, list(pairs.labels.regions.values()) if pairs.labels else ())

    def statistics(self, pairs: PairedData) -> Mapping[str, Tensor]:
        return {}


class Numbers(Application):
    """Numbers for each place."""

    @property
    def kind(self) -> Kind:
        return "regression"

    def build_objective(self, pairs: PairedData) -> Regression:
        assert isinstance(self.config.objective, RegressionConfig) and pairs.target
        return Regression(self.config.objective, pairs.target.std.tolist())

    def statistics(self, pairs: PairedData) -> Mapping[str, Tensor]:
        assert isinstance(self.config.objective, RegressionConfig) and pairs.target and pairs.linear
        if self.config.objective.base == "linear":
            error = pairs.linear.error
            unit = torch.where(error > LEAST * pairs.target.std, error, pairs.target.std)
            return {"linear": pairs.linear.matrix, "output_mean": pairs.linear.offset, "output_std": unit}
        return {"output_mean": pairs.target.mean, "output_std": pairs.target.std}


class Samples(Application):
    """Samples of the classes or numbers that an image can have."""

    @property
    def kind(self) -> Kind:
        config = self.config
        targets = self.objective.targets
        if targets is None and config.data.path not in PHANTOMS:
            raise UserError("objective.targets: the values of files can be classes or numbers; choose one of these")
        if targets is None:
            targets = "numbers" if PHANTOMS[config.data.path].kind == "values" else "classes"
        return "regression" if targets == "numbers" else "segmentation"

    @property
    def objective(self) -> PosteriorConfig:
        assert isinstance(self.config.objective, PosteriorConfig)
        return self.config.objective

    def network(self, pairs: PairedData) -> dict[str, Any]:
        unet = self.config.unet
        if unet.padding == "valid":
            raise UserError("unet.padding: valid borders leave out places, which samples need; use same")
        if unet.token_dim:
            raise UserError("unet.token_dim: a predictor has no tokens; use 0")
        outputs, first = self.outputs(pairs), self.config.unet.levels[0].channels
        planes = {"plane_channels": pairs.config.channels, "vector_dim": unet.vector_dim or 4 * first}
        return {"in_channels": outputs, "out_channels": outputs, **planes}

    def settled(self, pairs: PairedData) -> dict[str, Any]:
        return {"targets": "classes" if pairs.labels else "numbers"}

    def build(self) -> TargetDenoiser:
        return TargetDenoiser(UNet(self.config.unet), self.config.data.window)

    def build_objective(self, pairs: PairedData) -> Posterior:
        return Posterior(self.objective, *self._target_statistics(pairs))

    def statistics(self, pairs: PairedData) -> Mapping[str, Tensor]:
        mean, std = map(torch.tensor, self._target_statistics(pairs))
        return {"target_mean": mean, "target_scale": std / SPREAD}

    def _target_statistics(self, pairs: PairedData) -> tuple[list[float], list[float]]:
        """Return the mean and the standard deviation of each channel of the targets, and 1/2 for classes, 0 or 1."""
        if pairs.target:
            return pairs.target.mean.tolist(), pairs.target.std.tolist()
        half = [0.5] * self.config.unet.out_channels
        return half, half

    def member(self, model: TargetDenoiser, tile: tuple[int, ...], settings: "PredictConfig") -> TargetSamples:
        if settings.average:
            raise UserError("average: the mean of samples is one already; leave it out, and raise samples")
        size, classes = self.config.patch_size, self.kind == "segmentation"
        counts = settings.samples, settings.steps, settings.seed
        return TargetSamples(model.tiled(tile), self.objective.build_process(), size, classes, *counts)
