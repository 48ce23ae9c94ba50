"""Predictions of cases beside those of references: their scores as a record, and as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ..core.errors import UserError
from ..data.cases import Case, Cases
from ..data.labels import Labels
from .references import Reference, class_references, evenly_spaced, number_references
from .report import program_version
from .scores import (
    COUNTS,
    ERGAS_RATIO,
    TOLERANCE,
    CaseScores,
    class_scores,
    has_borders,
    number_scores,
    range_of,
    summarize,
    total_counts,
    without_nan,
)

SHOWN_CLASSES = 8
"""Classes, at most, whose own scores are in the table; the record has those of all."""
QUALITIES = "dice", "rmse", "signal_residual"
"""Scores of which the first that a case has decides how bad it is; less is worse for dice alone."""
WORST = 5
"""Cases, at most, that are kept as the worst."""


@dataclass(frozen=True)
class PredictedCase:
    """What was predicted for a case."""

    case: Case
    output: Tensor
    """(K, *S): probabilities of the classes, or numbers."""
    has_probabilities: bool = True
    """False: the class of each place has the probability 1, which is no statement about its certainty."""
    segments: np.ndarray | None = None
    """(*S) predicted instances; None: the connected parts of the objects."""


@dataclass(frozen=True)
class Judge:
    """Scores predictions and references in one way, which follows from the cases."""

    labels: Labels | None
    """None: the targets are numbers."""
    borders: bool
    data_range: float
    references: Mapping[str, Reference]
    in_millimeters: bool = False
    """Whether distances are in the unit of the cases' spacing, which all have; else in pixels."""

    @classmethod
    def of(cls, cases: Cases, labels: Labels | None, scored: Sequence[int], fitted: Sequence[int]) -> "Judge":
        """Return the judge of the scored cases, with references fitted on others."""
        some = [cases[index] for index in evenly_spaced(fitted)]
        if labels is None:
            data_range = range_of(cases[index].target for index in scored)
            return cls(None, False, data_range, number_references(some))
        planar = len(cases[scored[0]].size) == 2
        borders = planar and len(labels.codes) == 2 and not labels.instances
        borders = borders and has_borders([cases[index].target.numpy() for index in evenly_spaced(scored)])
        spaced = all(cases[index].spacing is not None for index in scored)
        return cls(labels, borders, 0.0, class_references(some, len(labels.codes)), spaced)

    def scores_of(self, prediction: PredictedCase) -> CaseScores:
        """Return the scores of a prediction. Raise UserError unless it is as large as the target."""
        case, output = prediction.case, prediction.output
        if tuple(output.shape[1:]) != case.size:
            sizes = ["×".join(map(str, size)) for size in (output.shape[1:], case.size)]
            raise UserError(f"{case.name}: the prediction has {sizes[0]} pixels, its target {sizes[1]}; scale one")
        if self.labels is None:
            return number_scores(output, case.target, self.data_range)
        return class_scores(
            output.argmax(0).numpy(),
            case.target.numpy(),
            self.labels.names,
            probabilities=output.numpy() if prediction.has_probabilities else None,
            borders=self.borders,
            instances=None if case.instances is None else case.instances.numpy(),
            segments=prediction.segments,
            spacing=case.spacing if self.in_millimeters else None,
            regions=self.labels.regions,
        )

    @property
    def definitions(self) -> dict[str, Any]:
        """What the scores depend on."""
        if self.labels is None:
            return {"data_range": self.data_range, "ergas_ratio": ERGAS_RATIO}
        objects = "instances" if self.labels.instances else "connected parts of all classes but the first"
        unit = "millimeters" if self.in_millimeters else "pixels"
        return {"distances_in": unit, "boundary_tolerance": TOLERANCE, "borders": self.borders, "objects": objects}


class Comparison:
    """Collects the scores of predictions, and of the references for the same cases."""

    def __init__(self, judge: Judge):
        self.judge = judge
        self.names: list[str] = []
        self.origins: list[str] = []
        self.scores: list[CaseScores] = []
        self.references: dict[str, list[CaseScores]] = {name: [] for name in judge.references}
        self.worst: list[tuple[PredictedCase, CaseScores]] = []
        """The predictions with the lowest Dice coefficient, or else the highest error, worst first."""

    def add(self, prediction: PredictedCase, origin: str | None = None) -> None:
        """Score a prediction and the references for its case. Cases of one origin count as one in the errors."""
        found = self.judge.scores_of(prediction)
        self.names.append(prediction.case.name)
        self.origins.append(prediction.case.name if origin is None else origin)
        self.scores.append(found)
        for name, reference in self.judge.references.items():
            output = reference.predict(prediction.case.image)
            segments = reference.segment(output) if reference.segment else None
            referred = PredictedCase(prediction.case, output, segments=segments)
            self.references[name].append(self.judge.scores_of(referred))
        self.worst = sorted([*self.worst, (prediction, found)], key=lambda one: _quality(one[1]))[:WORST]

    def record(self, predictions: Mapping[str, Any], cases: Mapping[str, Any], fitted_on: str) -> dict[str, Any]:
        """Return the record: how predictions were made, of which cases, and all scores; without NaN."""
        own, counts = summarize(self.scores, self.origins), total_counts(self.scores)
        others = {name: summarize(found, self.origins) for name, found in self.references.items()}
        counted = {name: total_counts(found) for name, found in self.references.items()}
        rows = {}
        for name, row in own.items():
            beside = {reference: found[name]["value"] for reference, found in others.items()}
            rows[name] = {**without_nan(row), "references": without_nan(beside)}
        per_case = [
            {"name": name, **without_nan(case.scores), **case.counts}
            for name, case in zip(self.names, self.scores, strict=True)
        ]
        return {
            "predictions": dict(predictions),
            "cases": {**cases, "number": len(self.scores)},
            "scores": rows,
            "counts": {
                name: {"value": counts[name], "references": {other: found[name] for other, found in counted.items()}}
                for name in (COUNTS if counts else ())
            },
            "definitions": self.judge.definitions,
            "references_fitted_on": fitted_on,
            "worst": [prediction.case.name for prediction, _ in self.worst],
            "per_case": per_case,
            "diffunet": program_version(),
        }


def title_of(name: str, scores: CaseScores) -> str:
    """Return the name of a case and the score by which it is among the worst."""
    score = _quality_of(scores)
    return f"{name}: {score.replace('_', ' ')} {scores.scores[score]:.3g}"


def _quality(scores: CaseScores) -> float:
    """Return a number that is least for the worst case, and infinite without a score."""
    score = _quality_of(scores)
    quality = scores.scores[score] if score == "dice" else -scores.scores[score]
    return float("inf") if np.isnan(quality) else quality


def _quality_of(scores: CaseScores) -> str:
    """Return the name of the score that decides how bad a case is."""
    return next(name for name in QUALITIES if name in scores.scores)


# ── the table ─────────────────────────────────────────────────────────────────────────────────────


def format_comparison(record: Mapping[str, Any]) -> str:
    """Return the record of a `Comparison` as a table of scores, their errors, and those of the references."""
    number, references = record["cases"]["number"], list(next(iter(record["scores"].values()))["references"])
    width = max(12, *(len(name) + 2 for name in references), 0)
    lines = [_cases_line(record["cases"]), *([] if number > 1 else ["not enough cases for an error"]), ""]
    lines.append(f"{'':34}{'predictions':>22}" + "".join(f"{name:>{width}}" for name in references))
    classes = {name.partition("/")[2] for name in record["scores"] if "/" in name}
    for name, row in record["scores"].items():
        if "/" in name and len(classes) > SHOWN_CLASSES:
            continue
        error = "" if row["error"] is None else f"± {row['error']:.2g}"
        beside = "".join(f"{_written(row['references'][reference]):>{width}}" for reference in references)
        undefined = f"   undefined in {row['undefined']} of {number}" if row["undefined"] else ""
        lines.append(f"{name.replace('_', ' '):34}{_written(row['value']):>11} {error:10}{beside}{undefined}")
    for name, row in record["counts"].items():
        beside = "".join(f"{row['references'][reference]:>{width},}" for reference in references)
        lines.append(f"{name.replace('_', ' '):34}{row['value']:>11,} {'':10}{beside}")
    unit = record["definitions"].get("distances_in")
    distances = f"distances in {unit}; " if unit else ""
    return "\n".join([*lines, "", f"{distances}references fitted on {record['references_fitted_on']}"])


def _cases_line(cases: Mapping[str, Any]) -> str:
    fold = "all" if cases["fold"] is None else f"fold {cases['fold']} of {cases['folds']}"
    line = f"{cases['number']:,} case{'s' * (cases['number'] != 1)} of {cases['path']} ({fold})"
    return line + (f"; {cases['trained_on']:,} of them were trained on" if cases["trained_on"] else "")


def _written(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"
