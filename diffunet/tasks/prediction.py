"""Training a network that predicts a class or numbers for each place of an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.rng import BatchRNG
from ..core.runtime import prepare_for
from ..core.storage import load_strictly, load_tensors, tensors_to_bytes
from ..data.cases import Case, Patches
from ..data.labels import UNKNOWN
from ..data.paired import PairedData
from ..data.warping import Warping
from ..evaluation.overlap import confusion, dice
from ..evaluation.references import evenly_spaced
from ..models.posterior import TargetDenoiser
from ..models.predictor import Predictor
from ..objectives.posterior import Posterior
from ..objectives.supervised import Supervised
from ..runs.figures import plot_curves
from ..runs.painting import save_predictions
from ..runs.prediction import PredictionConfig, model_file
from ..runs.run import Run
from ..training.config import TrainConfig
from .finetuning import INITIAL_WEIGHTS
from .fit import make_accelerator
from .task import Task
from .transfer import Source, input_statistics

VALIDATED = 8
"""Held-out cases, at most, on which a preview measures, and as many of those trained on."""
SHOWN = 4
"""Cases in a preview's figure."""
ONE_VIEW = {"average": False}
"""Settings of predictions that previews leave out."""
NOISE_LEVELS = 2
"""Noisy targets of each case for the losses of a preview of samples."""


def prediction(config: PredictionConfig, source: Source | None = None) -> Task:
    """Return the task of training a predictor, beginning with the weights of `source` if there is one.

    A finetuning that is resumed has those weights in its folder. Raise UserError where config and data disagree.
    """
    accelerator = make_accelerator(config.train)
    from accelerate.utils import tqdm  # a bar in the main process only

    log = accelerator.print
    progress = partial(tqdm, desc="read", unit="case", leave=False, delay=1)
    pairs = config.load(log, progress)
    trained, held_out = pairs.split_fold()
    config = config.resolve(pairs)
    run, weights = Run(config.train.output), {}
    initial = run.folder / INITIAL_WEIGHTS
    if config.finetune.pretrained or config.finetune.encoder:
        weights = source(config, log) if source else load_tensors(initial)
    size, border = config.patch_size, config.border
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
    objective = config.build_objective(pairs)
    kind = SamplesPreview if isinstance(objective, Posterior) else PredictionPreview
    preview = kind(run, config, pairs, objective, trained, held_out, accelerator.device)

    def build(train: TrainConfig) -> Predictor | TargetDenoiser:
        predictor = config.build_predictor()
        predictor.normalized(**config.statistics(pairs) | input_statistics(config, pairs))
        load_strictly(predictor, predictor.state_dict() | weights, initial)
        prepare_for(predictor.unet, train.runtime)
        return predictor

    def publish(ema: Predictor | TargetDenoiser) -> None:
        run.publish(ema)
        plot_curves(run.folder)

    output = f"patches of {'×'.join(map(str, size))}"
    if any(border):
        output += f" -> {'×'.join(str(side - edge) for side, edge in zip(size, border, strict=True))}"
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
        files=model_file(config) | ({INITIAL_WEIGHTS: tensors_to_bytes(weights)} if source else {}),
    )


@dataclass(frozen=True)
class PredictionPreview:
    """Measures held-out cases, and draws some beside their targets to RUN/samples."""

    run: Run
    config: PredictionConfig
    pairs: PairedData
    objective: Supervised | Posterior
    trained: list[int]
    held_out: list[int]
    device: torch.device

    def __call__(self, step: int, ema: Any) -> dict[str, float]:
        """Return val_loss and train_eval_loss, and the Dice coefficient of held-out cases, if targets are classes."""
        application = self.config.application
        predictor = application.member(ema, self.config.patch_size, self.config.predict.model_copy(update=ONE_VIEW))
        trained = [self._predict(predictor, index) for index in evenly_spaced(self.trained, VALIDATED)]
        held_out = [self._predict(predictor, index) for index in evenly_spaced(self.held_out, VALIDATED)]
        shown = [application.drawn(*predicted) for predicted in (held_out or trained)[:SHOWN]]
        save_predictions(self.run.folder / "samples", step, shown, self.pairs.labels)
        found = {"train_eval_loss": self._loss(trained)}
        if held_out:
            found["val_loss"] = self._loss(held_out)
            if self.pairs.labels:
                found["val_dice"] = float(np.nanmean(dice(sum(map(confusion_of, held_out)))))
        return found

    @torch.no_grad()
    def _predict(self, predictor: nn.Module, index: int) -> tuple[Case, Tensor]:
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


class SamplesPreview(PredictionPreview):
    """The same for samples of the targets: draws one of each case, and measures the losses at fixed noise."""

    def __call__(self, step: int, ema: Any) -> dict[str, float]:
        """Return val_loss and train_eval_loss, and the Dice coefficient of held-out samples, if targets are classes."""
        denoiser = ema.tiled(self.config.patch_size)
        one = self.config.predict.model_copy(update=ONE_VIEW | {"samples": 1})
        one_sample = self.config.application.member(ema, self.config.patch_size, one)
        shown = evenly_spaced(self.held_out or self.trained, SHOWN)
        sampled = [self._predict(one_sample, index) for index in shown]
        save_predictions(self.run.folder / "samples", step, sampled, self.pairs.labels)
        found = {"train_eval_loss": self._noisy_loss(denoiser, self.trained)}
        if self.held_out:
            found["val_loss"] = self._noisy_loss(denoiser, self.held_out)
            if self.pairs.labels:
                found["val_dice"] = float(np.nanmean(dice(sum(map(confusion_of, sampled)))))
        return found

    @torch.no_grad()
    def _noisy_loss(self, denoiser: nn.Module, indices: Sequence[int]) -> float:
        """Return the mean loss of some cases, with the same noise every time."""
        losses = []
        for number, index in enumerate(evenly_spaced(indices, VALIDATED)):
            case = self.pairs.cases[index]
            parts = {"image": case.image, "target": case.target, "weight": case.weight}
            batch = {name: part[None].to(self.device) for name, part in parts.items() if part is not None}
            rng = BatchRNG(torch.Generator(self.device).manual_seed(number))
            losses += [self.objective.loss(denoiser, rng=rng, **batch)["loss"].item() for _ in range(NOISE_LEVELS)]
        return float(np.mean(losses))


def confusion_of(predicted: tuple[Case, Tensor]) -> np.ndarray:
    """Return the confusion of classes of a case, (K, K), at the places with a label."""
    case, output = predicted
    return confusion(output.argmax(0), case.target, len(output), case.target != UNKNOWN)
