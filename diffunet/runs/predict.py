"""Predict images and volumes of any size with runs: classes or numbers of each place, and the objects among them."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.runtime import default_device
from ..data.intensity import standardized
from ..data.labels import labels_of
from ..evaluation.instances import segments_of, watershed_segments
from ..models.averaging import (
    Averaged,
    Ensemble,
    Probabilities,
    View,
    mean_and_std,
    mirrors,
    rotations,
    turns,
)
from ..models.tiling import Box, valid_tile_sizes
from ..objectives.posterior import PosteriorConfig
from ..sampling.posterior import TargetSamples
from .prediction import PredictConfig, PredictionConfig, load_predictor
from .run import Run

STRIP_BYTES = 2**28
"""Memory of the predictions of one strip of an image, about; an image has one strip or several."""
COMMON = (
    *(("data", name) for name in ("class_names", "channels", "spacing", "intensity")),
    ("objective", "type"),
    ("unet", "dims"),
)
"""Settings in which runs of an ensemble agree."""
COPIES = 6
"""Arrays as large as a prediction that are in memory at once: sums, members, their mean and deviation."""


@dataclass(frozen=True)
class Prediction:
    """The prediction of one image, of the sides S: (H, W), or (D, H, W)."""

    mean: Tensor
    """(K, *S) fp32: probabilities of the classes, or numbers in the units of the targets."""
    std: Tensor
    """(K, *S): the deviation between members, of an ensemble or views; 0 of one member."""

    @property
    def classes(self) -> Tensor:
        """The most probable class of each place, (*S) int64."""
        return self.mean.argmax(0)


class ImagePredictor:
    """Predicts whole images or volumes of any size with one or several runs, tile by tile.

    Raise UserError for runs that do not belong together, and for a tile that the network cannot take.
    """

    def __init__(self, runs: Sequence[Run], config: PredictConfig | None = None):
        configs = [run.config(PredictionConfig) for run in runs]
        self.own, self.settings = configs[0], config or configs[0].predict
        for run, other in zip(runs, configs, strict=True):
            for key, kept in COMMON:
                found, expected = (getattr(getattr(one, key), kept) for one in (other, self.own))
                if found != expected:
                    raise UserError(f"{run.folder}: {key}.{kept} is {found}, that of {runs[0].folder} {expected}")
        self.labels = labels_of(self.own.data) if self.own.kind == "segmentation" else None
        self.device = default_device()
        self.model = Ensemble([self._member(run, own) for run, own in zip(runs, configs, strict=True)]).to(self.device)

        self.samples = isinstance(self.own.objective, PosteriorConfig)
        """Whether members are samples of the target."""
        self.several = len(runs) > 1 or self.settings.average or (self.samples and self.settings.samples > 1)
        """Whether predictions have a deviation between members."""

    def _member(self, run: Run, own: PredictionConfig) -> nn.Module:
        predictor = load_predictor(run)
        tile = self._tile(own, predictor)
        model = own.application.member(predictor, tile, self.settings)
        if isinstance(model, TargetSamples):
            return model
        if self.labels:
            model = Probabilities(model)
        if not self.settings.average:
            return Ensemble([model])
        return Averaged(model, _views(own, tile))

    def _tile(self, own: PredictionConfig, predictor) -> tuple[int, ...]:
        """Return the tile of a network: what is configured, or its patch."""
        if not (given := self.settings.tile):
            return own.patch_size
        if own.application.whole:
            raise UserError("--tile: the network sees whole images; leave it out")
        sides = (given,) * own.unet.dims if isinstance(given, int) else given
        if len(sides) != own.unet.dims:
            raise UserError(f"--tile: {len(sides)} sides for {own.unet.dims} axes; give one side, or {own.unet.dims}")
        for axis, side in enumerate(sides):
            fitting = valid_tile_sizes(predictor.unet, 1, side + 2 * own.unet.max_stride, axis)
            if side not in fitting:
                near = sorted(sorted(fitting, key=lambda other: abs(other - side))[:2])
                listed = " or ".join(map(str, near))
                raise UserError(f"--tile: some level would not halve {side} evenly; use {listed}")
        return sides

    @property
    def channels(self) -> int:
        """Classes, or numbers of each place."""
        return self.own.application.channels

    def __call__(
        self, image: Tensor, box: Box | None = None, watch: Callable[[Tensor], None] | None = None
    ) -> Prediction:
        """Return the prediction of an image, (C, *S), in the units of its file; of a box, what is inside it.

        `watch` gets each prediction behind the mean, (K, *S).
        """
        return self._predicted(self._prepared(image), box, watch)

    def _prepared(self, image: Tensor) -> Tensor:
        """Return an image as those of the training. Raise UserError for other channels or axes."""
        if image.ndim != self.own.unet.dims + 1:
            raise UserError(f"the image has {image.ndim - 1} axes, and the run was trained on {self.own.unet.dims}")
        if len(image) != (expected := self.own.application.input_channels):
            raise UserError(f"the image has {len(image)} channels, and the run was trained on {expected}")
        return standardized(image) if self.own.data.intensity == "case" else image

    @torch.no_grad()
    def _predicted(self, image: Tensor, box: Box | None, watch: Callable[[Tensor], None] | None) -> Prediction:
        members = (member.float() for member in self.model.members(image[None], box))
        mean, std = mean_and_std(_watched(members, watch) if watch else members)
        return Prediction(mean[0], std[0])

    def objects(self, classes: Tensor, second: Tensor) -> np.ndarray:
        """Return the objects of a prediction, numbered from 1, (*S): the parts of all classes but the first.

        classes: (*S). second: the probability of the second class, (*S), by which a watershed divides two classes.
        """
        if self.settings.watershed is None or self.channels > 2:
            return segments_of(classes)
        second = second.half().float()  # as kept for a whole image
        return watershed_segments(classes, -second, seed_below=-self.settings.watershed)

    def strips(
        self, image: Tensor, watch: Callable[[Tensor], None] | None = None
    ) -> Iterator[tuple[slice, Prediction]]:
        """Yield the prediction of an image strip by strip: rows, or planes, and what is predicted for them.

        The parts are those of the whole prediction, in bounded memory beside the image. There is one strip for samples
        and other predictions of whole images, and for `watch`, which gets each prediction behind the mean, (K, *S).
        """
        image = self._prepared(image)
        first, *others = image.shape[1:]
        if self.samples or self.own.application.whole or watch:
            yield slice(0, first), self._predicted(image, None, watch)
            return
        rows = max(STRIP_BYTES // (COPIES * 4 * self.channels * math.prod(others)), 1)
        for start in range(0, first, rows):
            stop = min(start + rows, first)
            box = [(start, stop), *((0, side) for side in others)]
            yield slice(start, stop), self._predicted(image, box, watch)


def _views(own: PredictionConfig, tile: tuple[int, ...]) -> list[View]:
    """Return the views of an image over which predictions are averaged, of volumes those that the training has seen."""
    if len(set(tile)) == 1 and len(tile) == 2:
        return turns()
    if len(set(tile)) == 1 and own.augment.mirror == "none" and own.augment.rotate == "quarters":
        return rotations()
    return mirrors(len(tile))


def _watched(members: Iterator[Tensor], watch: Callable[[Tensor], None]) -> Iterator[Tensor]:
    for member in members:
        watch(member[0])
        yield member
