"""Training a network that predicts a class or numbers for each place of an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..core.runtime import prepare_for
from ..data.cases import Case, Patches
from ..data.labels import UNKNOWN
from ..data.paired import PairedData
from ..data.warping import Warping
from ..evaluation.overlap import confusion, dice
from ..evaluation.references import evenly_spaced
from ..models.predictor import Predictor
from ..objectives.supervised import Supervised
from ..runs.figures import plot_curves
from ..runs.painting import save_predictions
from ..runs.prediction import PredictionConfig, model_file
from ..runs.run import Run
from ..training.config import TrainConfig
from .fit import make_accelerator
from .task import Task

VALIDATED = 8
"""Held-out cases, at most, on which a preview measures, and as many of those trained on."""
SHOWN = 4
"""Cases in a preview's figure."""


def prediction(config: PredictionConfig) -> Task:
    """Return the task of training a predictor. Raise UserError where config and data disagree."""
    accelerator = make_accelerator(config.train)
    from accelerate.utils import tqdm  # a bar in the main process only

    log = accelerator.print
    progress = partial(tqdm, desc="read", unit="case", leave=False, delay=1)
    pairs = config.load(log, progress)
    trained, held_out = pairs.split_fold()
    config = config.resolve(pairs)
    size, border = config.data.patch_size, config.border
    statistics = pairs.image.mean.tolist(), pairs.image.std.tolist()
    patches = Patches(
        cases=pairs.cases,
        indices=trained,
        size=size,
        border=border,
        balanced=config.data.balanced,
        warp=Warping(config.augment, size, *statistics),
        fingerprint=pairs.fingerprint,
        workers=0 if pairs.in_memory else config.data.workers,
    )
    run, objective = Run(config.train.output), config.build_objective(pairs)
    preview = PredictionPreview(run, config, pairs, objective, trained, held_out, accelerator.device)

    def build(train: TrainConfig) -> Predictor:
        predictor = config.build_predictor()
        predictor.normalized(input_mean=pairs.image.mean, input_std=pairs.image.std)
        if pairs.target:
            predictor.normalized(output_mean=pairs.target.mean, output_std=pairs.target.std)
        prepare_for(predictor.unet, train.runtime)
        return predictor

    def publish(ema: Predictor) -> None:
        run.publish(ema)
        plot_curves(run.folder)

    output = f"patches of {size[0]}×{size[1]}"
    output += f" -> {size[0] - border[0]}×{size[1] - border[1]}" if any(border) else ""
    return Task(
        config=config,
        accelerator=accelerator,
        build_model=build,
        objective=objective,
        data=patches,
        preview=preview,
        publish=publish,
        summary=f"{len(trained):,} cases to train on, {len(held_out):,} held out, {output}",
        report=lambda ema: f"samples: {run.folder}/samples; predict with diffunet predict {run.folder} IMAGES",
        files=model_file(config),
    )


@dataclass(frozen=True)
class PredictionPreview:
    """Measures held-out cases, and draws some beside their targets to RUN/samples."""

    run: Run
    config: PredictionConfig
    pairs: PairedData
    objective: Supervised
    trained: list[int]
    held_out: list[int]
    device: torch.device

    def __call__(self, step: int, ema: Predictor) -> dict[str, float]:
        """Return val_loss and train_eval_loss, and the Dice coefficient of held-out cases, if targets are classes."""
        predictor = ema.tiled(self.config.data.patch_size)
        trained = [self._predict(predictor, index) for index in evenly_spaced(self.trained, VALIDATED)]
        held_out = [self._predict(predictor, index) for index in evenly_spaced(self.held_out, VALIDATED)]
        save_predictions(self.run.folder / "samples", step, (held_out or trained)[:SHOWN], self.pairs.labels)
        found = {"train_eval_loss": self._loss(trained)}
        if held_out:
            found["val_loss"] = self._loss(held_out)
            if self.pairs.labels:
                found["val_dice"] = float(np.nanmean(dice(sum(map(confusion_of, held_out)))))
        return found

    @torch.no_grad()
    def _predict(self, predictor: Predictor, index: int) -> tuple[Case, Tensor]:
        """Return a case and its prediction, (K, H, W)."""
        case = self.pairs.cases[index]
        return case, predictor(case.image[None].to(self.device))[0].cpu()

    def _loss(self, predicted: Sequence[tuple[Case, Tensor]]) -> float:
        losses = []
        for case, output in predicted:
            weight = None if case.weight is None else case.weight[None]
            loss = self.objective.loss(
                lambda image, output=output: output[None], case.image[None], case.target[None], weight
            )
            losses.append(float(loss["loss"]))
        return float(np.mean(losses))


def confusion_of(predicted: tuple[Case, Tensor]) -> np.ndarray:
    """Return the confusion of classes of a case, (K, K), at the places with a label."""
    case, output = predicted
    return confusion(output.argmax(0), case.target, len(output), case.target != UNKNOWN)
