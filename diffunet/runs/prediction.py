"""A run that predicts: its configuration, its folder, and predictors made from it."""

import json
from collections.abc import Callable
from typing import Annotated, ClassVar, Self

from pydantic import ConfigDict, Field, Strict
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.progress import no_progress
from ..core.settings import Settings
from ..core.storage import check_state_dict, load_tensors
from ..data.borders import WeightConfig
from ..data.pair_files import Kind
from ..data.paired import PairedData, load_pairs
from ..data.pairs import PairConfig, Patch
from ..data.warping import WarpingConfig
from ..models.config import LevelConfig, UNetConfig
from ..models.meta import on_meta
from ..models.posterior import TargetDenoiser
from ..models.predictor import Predictor
from ..models.saving import WEIGHTS
from ..models.tiling import valid_tile_sizes
from ..models.unet import UNet
from ..objectives.posterior import Posterior, PosteriorConfig
from ..objectives.reconstruction import ReconstructionConfig
from ..objectives.regression import RegressionConfig
from ..objectives.segmentation import SegmentationConfig
from ..objectives.supervised import Supervised
from ..objectives.water_fat import SignalConfig
from ..training.config import TrainConfig
from .applications import Application, Classes, Numbers, Samples
from .config import RunConfig
from .mri import KSpaceReconstruction, WaterFatSeparation
from .run import Run

MAX_PATCH = {2: 256, 3: 64}
"""Side of a patch of larger images, and of larger volumes, if none is given."""
APPLICATIONS: dict[type, type[Application]] = {
    SegmentationConfig: Classes,
    RegressionConfig: Numbers,
    PosteriorConfig: Samples,
    SignalConfig: WaterFatSeparation,
    ReconstructionConfig: KSpaceReconstruction,
}
"""The application of each type of objective."""
LEVELS = tuple(LevelConfig(channels=channels, blocks=1) for channels in (32, 64, 128, 256))
"""The network if none is given."""


class PredictorFinetuneConfig(Settings):
    """The weights that a training begins with, instead of random ones."""

    model_config = ConfigDict(validate_by_name=True)

    pretrained: str | None = Field(None, validation_alias="from", serialization_alias="from")
    """The folder of a run that predicts; null: random weights, or those of `encoder`."""
    encoder: str | None = None
    """Convolutions for the way down: a file (.safetensors, .pth, .pt), or vgg11, vgg13, vgg16 or vgg19, which
    torchvision downloads; null: none. Of a run that `from` names: the one that it began with."""


class PredictConfig(Settings):
    """How to predict images."""

    tile: Patch | Annotated[tuple[Patch, ...], Field(min_length=2, max_length=3), Strict(False)] | None = None
    """Side of a tile of the network's input, or one for each axis; null: the patch, or as near as the network takes."""
    average: bool = False
    """Average the predictions of the mirrored image, and with square tiles of the turned one: eight times the work. Of
    volumes those of the mirrored ones, or of the 24 rotations of a cube if the training saw these and no mirror."""
    watershed: float | None = Field(0.9, gt=0.5, lt=1)
    """Of two classes: probability of the second above which the seeds of objects lie, from which a watershed grows each
    until it meets the next, so that weak bridges join none; null: objects are connected parts."""
    samples: int = Field(8, ge=1, le=10_000)
    """Samples of the target, whose mean is the prediction; like steps and seed for the objective posterior alone."""
    steps: int = Field(10, ge=1, le=1_000_000)
    """Network calls for each sample."""
    seed: int = Field(0, ge=0, le=10**18)
    """Seed of the samples; sample i depends on it and on i alone."""


class PredictionConfig(RunConfig):
    """Everything that determines a run that predicts classes or numbers of each place."""

    task: ClassVar[str] = "prediction"

    objective: Annotated[
        SegmentationConfig | RegressionConfig | PosteriorConfig | SignalConfig | ReconstructionConfig,
        Field(discriminator="type"),
    ] = SegmentationConfig()
    """The training objective; its type decides which keys there are."""
    unet: UNetConfig = UNetConfig(levels=LEVELS, middle_attention=False)
    finetune: PredictorFinetuneConfig = PredictorFinetuneConfig()
    data: PairConfig = PairConfig()
    weights: WeightConfig = WeightConfig()
    augment: WarpingConfig = WarpingConfig()
    train: TrainConfig = TrainConfig()
    predict: PredictConfig = PredictConfig()

    @property
    def application(self) -> Application:
        """What follows from the type of the objective."""
        return APPLICATIONS[type(self.objective)](self)

    @property
    def kind(self) -> Kind:
        """What the targets are. Raise UserError where files could hold either, and nothing decides."""
        return self.application.kind

    @property
    def patch_size(self) -> tuple[int, ...]:
        """Sides of a patch of a resolved config."""
        patch = self.data.patch
        return patch if isinstance(patch, tuple) else (patch or 0,) * self.unet.dims

    def load(self, log: Callable[[str], None] = print, progress: Callable = no_progress) -> PairedData:
        """Return the images and targets, and log what was found. Raise UserError for those that cannot be used."""
        if (dims := self.unet.dims) == 1:
            raise UserError("unet.dims: predictors need 2, for images, or 3, for volumes (got 1)")
        if isinstance(self.data.patch, tuple) and len(self.data.patch) != dims:
            raise UserError(f"data.patch: {len(self.data.patch)} sides for {dims} axes; give one side, or {dims}")
        return self.application.prepared(load_pairs(self.data, self.kind, self.weights, log, progress, dims))

    def resolve(self, pairs: PairedData) -> Self:
        """Return the config completed from the data: channels, classes, and the size of a patch.

        Raise UserError for a patch that the network cannot take.
        """
        if self.unet.norm == "batch":  # an average of weights has other statistics than those of its last step
            raise UserError("unet.norm: batch norm does not fit the EMA weights of a predictor; use instance or group")
        levels = self.model_copy(update={"unet": self.unet.model_copy(update={"levels": self.unet.levels or LEVELS})})
        application = levels.application
        unet = levels.unet.model_copy(update=application.network(pairs))
        train = self.train.for_width(unet.levels[0].channels)
        resolved = levels.model_copy(update={"unet": unet, "data": pairs.config, "train": train})
        settled = resolved.replace(objective=application.settled(pairs))
        return settled.replace(data={"patch": settled._patch(pairs)})

    def _patch(self, pairs: PairedData) -> tuple[int, ...]:
        """Return sides that every level of the network halves evenly."""
        if self.application.whole:
            return self._whole(pairs.cases[0].size)
        some, most = range(min(len(pairs.names), 20)), MAX_PATCH[self.unet.dims]
        least = [min(pairs.cases[i].size[axis] for i in some) for axis in range(self.unet.dims)]
        wanted = self.patch_size if self.data.patch else tuple(min(side, most) for side in least)
        sides = []
        for axis, side in enumerate(wanted):
            fitting = fitting_sides(self.unet, side, axis)
            if self.data.patch and side not in fitting:
                near = sorted(sorted(fitting, key=lambda other: abs(other - side))[:2])
                raise UserError(
                    f"data.patch: some level would not halve {side} evenly; use {' or '.join(map(str, near))}"
                )
            sides.append(max([other for other in fitting if other <= side], default=fitting[0]))
        return tuple(sides)

    def _whole(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Return the sides of whole images. Raise UserError for a patch of other sides."""
        if self.data.patch and self.patch_size != size:
            raise UserError(f"data.patch: the network sees whole images, {'×'.join(map(str, size))}; leave it out")
        return size

    def build_predictor(self) -> nn.Module:
        """Return the model with fresh weights, of a resolved config."""
        return self.application.build()

    def build_objective(self, pairs: PairedData) -> Supervised | Posterior:
        """Return the training objective of a resolved config."""
        return self.application.build_objective(pairs)

    def statistics(self, pairs: PairedData) -> dict[str, Tensor]:
        """Return the buffers of the model that come from the data, by name."""
        image = {"input_mean": pairs.image.mean, "input_std": pairs.image.std}
        return image | dict(self.application.statistics(pairs))

    @property
    def border(self) -> tuple[int, ...]:
        """By how much the output of a patch is smaller than it along each axis."""
        with on_meta():
            output = UNet(self.unet).output_size(*self.patch_size)
        return tuple(side - left for side, left in zip(self.patch_size, output, strict=True))


def fitting_sides(unet: UNetConfig, side: int, axis: int = -1) -> list[int]:
    """Return the sides of an input that every level halves evenly, in rising order, up to some above `side`."""
    with on_meta():
        network = UNet(unet)
    return valid_tile_sizes(network, 1, max(side, network.min_input_sizes[axis]) + 2 * unet.strides[axis], axis)


def model_file(config: PredictionConfig) -> dict[str, bytes]:
    """Return the file of a run that describes its network beside the weights."""
    return {"model/config.json": json.dumps({"unet": config.unet.model_dump(mode="json")}, indent=2).encode()}


def load_predictor(run: Run) -> Predictor | TargetDenoiser:
    """Return the network of a run with its newest EMA weights, in evaluation mode. UserError if they do not fit."""
    config = run.config(PredictionConfig)
    file = run.folder / "model" / WEIGHTS
    if not file.exists():
        raise UserError(f"{file}: missing; the run has no checkpoint yet")
    tensors = load_tensors(file)
    with on_meta():
        check_state_dict(config.build_predictor().state_dict(), tensors, file)
    predictor = config.build_predictor()
    predictor.load_state_dict(tensors)
    return predictor.eval().requires_grad_(False)
