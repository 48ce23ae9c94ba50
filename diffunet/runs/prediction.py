"""A run that predicts: its configuration, its folder, and predictors made from it."""

import json
from collections.abc import Callable
from typing import Annotated, ClassVar, Self

from pydantic import Field

from ..core.errors import UserError
from ..core.progress import no_progress
from ..core.settings import Settings
from ..core.storage import check_state_dict, load_tensors
from ..data.borders import WeightConfig
from ..data.paired import PairedData, load_pairs
from ..data.pairs import PairConfig
from ..data.warping import WarpingConfig
from ..models.config import LevelConfig, UNetConfig
from ..models.meta import on_meta
from ..models.predictor import Predictor
from ..models.saving import WEIGHTS
from ..models.tiling import valid_tile_sizes
from ..models.unet import UNet
from ..objectives.regression import Regression, RegressionConfig
from ..objectives.segmentation import Segmentation, SegmentationConfig
from ..objectives.supervised import Supervised
from ..training.config import TrainConfig
from .config import RunConfig
from .run import Run

MAX_PATCH = 256
"""Side of a patch for larger images, if none is given."""
LEVELS = tuple(LevelConfig(channels=channels, blocks=1) for channels in (32, 64, 128, 256))
"""The network if none is given."""


class PredictConfig(Settings):
    """How to predict images."""

    tile: int | None = Field(None, ge=1, le=65_536)
    """Side of a tile of the network's input; null: the patch, or as near as the network takes."""
    average: bool = False
    """Average the predictions of the mirrored image, and with square tiles of the turned one; eight times the work."""


class PredictionConfig(RunConfig):
    """Everything that determines a run that predicts classes or numbers of each place."""

    task: ClassVar[str] = "prediction"

    objective: Annotated[SegmentationConfig | RegressionConfig, Field(discriminator="type")] = SegmentationConfig()
    """The training objective; its type decides which keys there are."""
    unet: UNetConfig = UNetConfig(levels=LEVELS, middle_attention=False)
    data: PairConfig = PairConfig()
    weights: WeightConfig = WeightConfig()
    augment: WarpingConfig = WarpingConfig()
    train: TrainConfig = TrainConfig()
    predict: PredictConfig = PredictConfig()

    def load(self, log: Callable[[str], None] = print, progress: Callable = no_progress) -> PairedData:
        """Return the images and targets, and log what was found. Raise UserError for those that cannot be used."""
        if self.unet.dims != 2:
            raise UserError(f"unet.dims: predictors of images need 2 (got {self.unet.dims})")
        return load_pairs(self.data, self.objective.type, self.weights, log, progress)

    def resolve(self, pairs: PairedData) -> Self:
        """Return the config completed from the data: channels, classes, and the size of a patch.

        Raise UserError for a patch that the network cannot take.
        """
        outputs = len(pairs.labels.codes) if pairs.labels else len(pairs.target.mean)
        update = {"in_channels": pairs.config.channels, "out_channels": outputs, "levels": self.unet.levels or LEVELS}
        unet = self.unet.model_copy(update=update)
        if unet.norm == "batch":  # an average of weights has other statistics than those of its last step
            raise UserError("unet.norm: batch norm does not fit the EMA weights of a predictor; use group")
        if unet.vector_dim or unet.token_dim or unet.plane_channels:
            raise UserError("unet: a predictor has no vector, tokens or planes; set their widths to 0")
        resolved = self.model_copy(update={"unet": unet, "data": pairs.config})
        return resolved.replace(data={"patch": resolved._patch(pairs)})

    def _patch(self, pairs: PairedData) -> tuple[int, int]:
        """Return (height, width) that every level of the network halves evenly."""
        least = tuple(min(pairs.cases[i].size[axis] for i in range(min(len(pairs.names), 20))) for axis in (0, 1))
        wanted = self.data.patch_size if self.data.patch else tuple(min(side, MAX_PATCH) for side in least)
        sides = []
        for side in wanted:
            fitting = fitting_sides(self.unet, side)
            if self.data.patch and side not in fitting:
                near = sorted(sorted(fitting, key=lambda other: abs(other - side))[:2])
                raise UserError(
                    f"data.patch: some level would not halve {side} evenly; use {' or '.join(map(str, near))}"
                )
            sides.append(max([other for other in fitting if other <= side], default=fitting[0]))
        return sides[0], sides[1]

    def build_predictor(self) -> Predictor:
        """Return the network with fresh weights, of a resolved config."""
        return Predictor(UNet(self.unet))

    def build_objective(self, pairs: PairedData) -> Supervised:
        """Return the training objective."""
        if isinstance(self.objective, RegressionConfig):
            return Regression(self.objective, pairs.target.std.tolist())
        return Segmentation(self.objective)

    @property
    def border(self) -> tuple[int, int]:
        """By how much the output of a patch is smaller than it, (height, width)."""
        with on_meta():
            output = UNet(self.unet).output_size(*self.data.patch_size)
        height, width = (side - left for side, left in zip(self.data.patch_size, output, strict=True))
        return height, width


def fitting_sides(unet: UNetConfig, side: int) -> list[int]:
    """Return the sides of an input that every level halves evenly, in rising order, up to some above `side`."""
    with on_meta():
        network = UNet(unet)
    return valid_tile_sizes(network, 1, max(side, network.min_input_size) + 2 * unet.max_stride)


def model_file(config: PredictionConfig) -> dict[str, bytes]:
    """Return the file of a run that describes its network beside the weights."""
    return {"model/config.json": json.dumps({"unet": config.unet.model_dump(mode="json")}, indent=2).encode()}


def load_predictor(run: Run) -> Predictor:
    """Return the predictor of a run with its newest EMA weights, in evaluation mode. UserError if they do not fit."""
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
