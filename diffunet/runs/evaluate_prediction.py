"""Evaluation of predictions against targets: of a run, or of files in a folder."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.progress import no_progress
from ..core.settings import Settings
from ..core.storage import atomic_write, sha256_of_file
from ..data.cases import Cached, Case, Cases
from ..data.complex_pairs import has_molecules
from ..data.decoding import UNREADABLE, inspect, reason_of
from ..data.labels import UNKNOWN, Labels, count_codes, survey
from ..data.pair_files import ImageFolder, PairFiles
from ..data.paired import load_pairs
from ..data.pairs import VOLUMES, Pair, PairConfig, find_pairs, origin_of, split_fold
from ..data.volume_pairs import VolumeFolder, find_volume_pairs
from ..data.volumes.grids import Grid, Volume, affine_of
from ..evaluation.comparison import Comparison, Judge, PredictedCase, title_of
from ..models.saving import WEIGHTS
from .figures import save_comparison
from .painting import comparison_rows
from .pocket_scores import score_pockets
from .predict import ImagePredictor, Prediction
from .predicted_volumes import predict_volume
from .prediction import PredictConfig, PredictionConfig
from .run import Run


class EvaluatedPairs(Settings):
    """The cases to score."""

    data: PairConfig = PairConfig()
    """Images and targets; for a run those it was trained on, unless set."""


@dataclass(frozen=True)
class PredictionEvaluation:
    """A record, and the predictions and scores behind it."""

    record: dict[str, Any]
    comparison: Comparison
    drawn: Callable[[Case, Tensor], tuple[Case, Tensor]] = lambda case, output: (case, output)
    """What is shown of a case and its prediction."""


# ── a run ─────────────────────────────────────────────────────────────────────────────────────────


def evaluate_predictor(
    run: Run,
    data: PairConfig | None = None,
    predict: PredictConfig | None = None,
    progress: Callable = no_progress,
    log: Callable[[str], None] = print,
) -> PredictionEvaluation:
    """Score the predictions of a run for the cases that are held out from its training.

    data: other cases: those of its `fold`, or all if that is null. References are fitted on the other folds, or on the
    scored cases themselves if these are all.

    Raise UserError for a run that holds no cases out, unless `data` is given.
    """
    own = run.config(PredictionConfig)
    if data is None and own.data.fold is None:
        raise UserError(
            f"{run.folder}: trained on all of its cases; score others with --data.path, or these with --data.fold null"
        )
    data = data or own.data
    if own.unet.dims == 3 and not has_molecules(Path(data.path).expanduser()):  # scored on the grid of the files
        data = data.model_copy(update={"spacing": "files"})
    predictor = ImagePredictor([run], predict)
    application = own.application
    pairs = application.prepared(load_pairs(data, own.kind, log=log, dims=own.unet.dims))
    outputs, found = own.unet.out_channels, application.outputs(pairs)
    if found != outputs:
        kind = "classes" if pairs.labels else "channels"
        raise UserError(f"data.path: targets with {found} {kind}, but the run predicts {outputs}; choose other cases")
    others, held_out = pairs.split_fold()
    scored = held_out or others
    same_files = (data.path, data.targets) == (own.data.path, own.data.targets)
    trained = {pairs.names[index] for index in split_fold(pairs.names, own.data)[0]} if same_files else set()
    cases = _Annotated(pairs.cases)
    comparison = Comparison(application.judge(cases, pairs, scored, others))
    for index in progress(scored):
        comparison.add(_predicted(predictor, cases[index]), origin_of(pairs.names[index], data.group))
    predictions = {
        "run": run.folder.name,
        **predictor.settings.model_dump(mode="json"),
        "weights_sha256": sha256_of_file(run.folder / "model" / WEIGHTS),
    }
    trained_on = sum(pairs.names[index] in trained for index in scored)
    about = {"path": data.path, "fold": data.fold, "folds": data.folds, "trained_on": trained_on}
    fitted_on = f"{len(others):,} other cases" if held_out else "the scored cases"
    record = comparison.record(predictions, about, fitted_on)
    if own.unet.dims == 3 and has_molecules(Path(data.path).expanduser()):
        record["pockets"] = score_pockets(predictor, data, scored, progress)
    return PredictionEvaluation(record, comparison, application.drawn)


@dataclass(frozen=True)
class _Annotated:
    """Cases with the targets of the files: touching instances are divided by background for training only."""

    cases: Cases

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> Case:
        case = self.cases[index]
        if case.instances is None:
            return case
        objects = (case.instances != 0).to(case.target.dtype)
        return replace(case, target=torch.where(case.target == UNKNOWN, UNKNOWN, objects))


def _predicted(predictor: ImagePredictor, case: Case) -> PredictedCase:
    try:
        prediction = _prediction_of(predictor, case)
        objects = predictor.objects(prediction.classes, prediction.mean[1]) if predictor.labels else None
        return PredictedCase(case, prediction.mean, segments=objects)
    except (UserError, ValueError) as mistake:
        raise UserError(f"{case.name}: {mistake}") from None


def _prediction_of(predictor: ImagePredictor, case: Case) -> Prediction:
    if case.spacing is None:
        return predictor(case.image)
    return predict_volume(predictor, Volume(case.image, Grid(affine_of(case.spacing))))


# ── a folder ──────────────────────────────────────────────────────────────────────────────────────


def evaluate_files(
    folder: Path, data: PairConfig, progress: Callable = no_progress, log: Callable[[str], None] = print
) -> PredictionEvaluation:
    """Score a folder of predictions against the targets in `data.targets`, paired by name.

    Floats are numbers. Other values are those of the targets' classes; with `data.labels` instances any value other
    than 0 is an object, or several if it is not connected. There are no probabilities, so no calibration, and the
    reference is fitted on the targets.

    Raise UserError for a folder without a name in common, and for a prediction of another size than its target.
    """
    data = data.model_copy(update={"path": str(folder), "spacing": "files", "fold": None})
    truth, found = _both(data, log)
    names, labels = truth.names, None
    if not _has_numbers(found):
        labels = survey((count_codes(truth.codes(index)) for index in range(len(names))), data)
    cases = Cached(lambda index: _target_of(truth, index, labels), len(names), keep_all=False)
    everything = range(len(names))
    comparison = Comparison(Judge.of(cases, labels, everything, everything))
    for index in progress(everything):
        comparison.add(_read(found, index, cases[index], labels), origin_of(names[index], data.group))
    about = {"path": Path(data.targets or folder).name, "fold": None, "folds": None, "trained_on": 0}
    return PredictionEvaluation(comparison.record({"folder": folder.name}, about, "the scored cases"), comparison)


def _both(
    data: PairConfig, log: Callable[[str], None]
) -> tuple[ImageFolder | VolumeFolder, ImageFolder | VolumeFolder]:
    """Return the targets, and the predictions as targets of the same cases. Raise UserError for several of one case."""
    is_volume = any(file.name.endswith(VOLUMES) for file in Path(data.path).iterdir())
    pairs = (find_volume_pairs if is_volume else find_pairs)(data, log)
    for pair in pairs:
        if len(pair.image) > 1:
            raise UserError(f"{pair.name}: has {len(pair.image)} predictions ({pair.image[0]}, ...); leave one")
    kind = VolumeFolder if is_volume else ImageFolder
    swapped = [Pair(pair.name, (pair.target,), pair.image[0]) for pair in pairs]
    return kind(data, pairs), kind(data, swapped)


def _has_numbers(found: ImageFolder | VolumeFolder) -> bool:
    """Return whether the first prediction has numbers rather than classes. Raise UserError if it cannot be read.

    Floats are numbers, but classes in volumes are often stored as such.
    """
    if isinstance(found, VolumeFolder):
        values = found.values(0)
        return bool((values != values.floor()).any())
    source = found.pairs[0].target
    try:
        kind = inspect({"bytes": None, "path": source.path, "page": source.page}).name
    except UNREADABLE as error:
        raise UserError(f"{source}: {reason_of(error)}") from None
    return kind.startswith("float") or kind == "F"


def _target_of(truth: PairFiles, index: int, labels: Labels | None) -> Case:
    """Return a case with a target, and an image without channels."""
    name, spacing = truth.names[index], truth.spacing(index)
    if labels is None:
        target = truth.values(index)
        return Case(name, torch.empty(0, *target.shape[1:]), target, spacing=spacing)
    codes = truth.codes(index)
    classes = torch.from_numpy(labels.classes_of(codes, truth.place(index)))
    instances = torch.from_numpy(np.where(codes == labels.ignore, 0, codes)) if labels.instances else None
    return Case(name, torch.empty(0, *classes.shape), classes, instances=instances, spacing=spacing)


def _read(found: PairFiles, index: int, case: Case, labels: Labels | None) -> PredictedCase:
    """Return the prediction in a file. Values where the target has none are free."""
    if labels is None:
        numbers = found.values(index)
        if len(numbers) != len(case.target):
            counts = len(numbers), len(case.target)
            raise UserError(
                f"{case.name}: the prediction has {counts[0]} channels, its target {counts[1]}; choose others"
            )
        return PredictedCase(case, numbers)
    codes = found.codes(index)
    if codes.shape != case.size:
        sizes = ["×".join(map(str, shape)) for shape in (codes.shape, case.size)]
        raise UserError(f"{case.name}: the prediction has {sizes[0]} pixels, its target {sizes[1]}; crop or scale one")
    codes = np.where(case.target == UNKNOWN, labels.codes[0], codes)
    classes = torch.from_numpy(replace(labels, ignore=None).classes_of(codes, found.place(index))).long()
    output = torch.nn.functional.one_hot(classes, len(labels.codes)).movedim(-1, 0).float()
    return PredictedCase(case, output, has_probabilities=False, segments=codes if labels.instances else None)


# ── files ─────────────────────────────────────────────────────────────────────────────────────────


def save_predictor_evaluation(evaluation: PredictionEvaluation, folder: Path) -> None:
    """Write evaluation.json, and worst.png: image, target, prediction and error of the worst cases."""
    with atomic_write(folder / "evaluation.json") as file:
        file.write_text(json.dumps(evaluation.record, indent=2, allow_nan=False), encoding="utf-8")
    worst = evaluation.comparison.worst
    has_images = all(len(prediction.case.image) for prediction, _ in worst)
    shown = [evaluation.drawn(_painted(prediction.case), prediction.output) for prediction, _ in worst]
    rows = comparison_rows(shown, evaluation.comparison.judge.labels)[0 if has_images else 1 :]
    titles = [title_of(prediction.case.name, scores) for prediction, scores in worst]
    save_comparison(folder / "worst.png", rows, titles)


def _painted(case: Case) -> Case:
    """Return a case with an image, which is the target if it has none."""
    return case if len(case.image) else replace(case, image=case.target.reshape(-1, *case.size).float())
