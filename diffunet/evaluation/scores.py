"""All scores of the prediction of one case, and their means over cases with errors.

Which scores there are follows from the data: overlap, surfaces and calibration of classes; with borders between the
parts of the second class, or with instances, also those of the partition; instances, objects and numbers have theirs.
Places without a truth enter no score.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from torch import Tensor

from ..data.labels import UNKNOWN
from . import fidelity
from .instances import average_precision, mean_average_precision, rand_scores, segments_of, thinned, warp
from .overlap import (
    boundary_f1,
    brier_score,
    confusion,
    dice,
    expected_calibration_error,
    iou,
    mean_present,
    pixel_error,
    surface_scores,
)

TOLERANCE = 2.0
"""Pixels, or millimeters with a spacing, by which a boundary may be displaced in `boundary_f1`."""
ERGAS_RATIO = 4.0
"""Pixel size of the spectral image over that of the sharp one, in ERGAS."""
JACKKNIFE_GROUPS = 200
"""Groups of origins, at most, of which each is left out in turn; one origin each where there are no more."""
FINEST, FEWEST_PARTS = 0.5, 2
"""Mean depth of a border over that of the parts between, at most; parts of a case, at least, on average."""
POOLED = {"dice": dice, "iou": iou}
"""Scores that are also those of all cases as one."""
COUNTS = "objects", "missed", "invented", "missed_classes", "invented_classes"


@dataclass(frozen=True)
class CaseScores:
    """Scores and counts of one case."""

    scores: dict[str, float]
    """By name; NaN where undefined. `dice` is the mean over the classes present, `dice/cell` that of one class."""
    counts: dict[str, int] = field(default_factory=dict)
    """`COUNTS`: objects of the truth; without a match, or invented; classes only in the truth, or in the prediction."""
    confusion: np.ndarray | None = None
    """(K, K) pixels of each class of the truth (rows) by predicted class, of classes."""


# ── classes ───────────────────────────────────────────────────────────────────────────────────────


def class_scores(
    classes: np.ndarray,
    truth: np.ndarray,
    names: Sequence[str],
    *,
    probabilities: np.ndarray | None = None,
    borders: bool = False,
    instances: np.ndarray | None = None,
    segments: np.ndarray | None = None,
    spacing: Sequence[float] | None = None,
    regions: Mapping[str, Sequence[int]] = {},
) -> CaseScores:
    """Return the scores of predicted classes (*S) of one case.

    Objects are the instances, or else the connected parts of all classes but the first. One is missed, or invented, if
    its IoU with none exceeds 0.5.

    truth: (*S) classes, UNKNOWN where there is none. names: of all classes. probabilities: (K, *S), for calibration.
    borders: the first class divides the parts of the second, see `has_borders`. instances: (*S) of the truth, 0 for the
    background. segments: (*S) predicted objects, by default the connected parts. spacing: in millimeters along each
    axis, in which distances then are; None: they are in pixels. regions: unions of classes, scored as these are, and in
    no mean over classes.
    """
    spacing = spacing or (1.0,) * truth.ndim
    known = truth != UNKNOWN
    counts = confusion(classes, truth, len(names), known)
    by_class, surfaces = _scores_by_class(classes, truth, counts, known, spacing)
    scores = {name: mean_present(values)[0] for name, values in by_class.items()}
    scores["pixel_error"] = pixel_error(counts)
    if probabilities is not None:
        scores["calibration_error"] = expected_calibration_error(probabilities, truth, known)
        scores["brier"] = brier_score(probabilities, truth, known)
    true_objects = _parts(truth, known) if instances is None else np.where(known, instances, 0)
    objects = _parts(classes, known) if segments is None else segments_of(np.where(known, segments, 0))
    found = average_precision(objects, true_objects)
    if instances is not None:
        scores["ap50"] = float(found["average_precision"])
        scores["mean_ap"] = mean_average_precision(objects, true_objects)
        scores |= rand_scores(objects, true_objects)
    elif borders:
        cells, true_cells = (classes == 1) & known, (truth == 1) & known
        scores |= rand_scores(thinned(cells if segments is None else objects), true_objects)
        wrong = int((warp(true_cells, cells) != cells).sum())
        scores["warping_error"] = wrong / int(known.sum()) if known.any() else float("nan")
    scores |= {f"{score}/{name}": float(x) for score, xs in by_class.items() for name, x in zip(names, xs, strict=True)}
    for name, members in regions.items():
        masks = [np.isin(labels, members).astype(np.int16) for labels in (classes, truth)]
        of_region, _ = _scores_by_class(*masks, confusion(*masks, 2, known), known, spacing)
        scores |= {f"{score}/{name}": float(values[1]) for score, values in of_region.items()}
    return CaseScores(
        scores,
        {
            "objects": int(found["matched"] + found["missed"]),
            "missed": int(found["missed"]),
            "invented": int(found["invented"]),
            "missed_classes": int(surfaces["missed"].sum()),
            "invented_classes": int(surfaces["invented"].sum()),
        },
        counts,
    )


def _scores_by_class(
    classes: np.ndarray, truth: np.ndarray, counts: np.ndarray, known: np.ndarray, spacing: Sequence[float]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the scores of each class, (K,) each, and `surface_scores`. counts: their confusion."""
    surfaces = surface_scores(classes, truth, len(counts), spacing, known)
    f1 = [boundary_f1((classes == k) & known, (truth == k) & known, TOLERANCE, spacing) for k in range(len(counts))]
    distances = {name: surfaces[name] for name in ("hausdorff95", "average_surface_distance")}
    return {"dice": dice(counts), "iou": iou(counts), **distances, "boundary_f1": np.array(f1)}, surfaces


def _parts(classes: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return the connected parts of each class but the first, numbered from 1, (*S)."""
    return segments_of(np.where(known, classes, 0))


def has_borders(truths: Sequence[np.ndarray]) -> bool:
    """Return whether the first of two classes is a border between parts of the second, as of membranes or grains.

    It is if its pixels are on average at most half as deep inside it as those of the second class are in theirs, and
    if the second class has two or more parts in a case, on average.

    truths: (H, W) classes of each case, UNKNOWN where there is none.
    """
    from scipy import ndimage

    depth, parts = np.zeros(2), 0
    for truth in truths:
        masks = truth == 0, truth == 1
        depth += [float(ndimage.distance_transform_edt(mask).sum()) / max(mask.sum(), 1) for mask in masks]
        parts += ndimage.label(masks[1])[1]
    return bool(0 < depth[0] <= FINEST * depth[1]) and parts >= FEWEST_PARTS * len(truths)


# ── numbers ───────────────────────────────────────────────────────────────────────────────────────


def number_scores(prediction: Tensor, truth: Tensor, data_range: float) -> CaseScores:
    """Return the scores of predicted numbers (C, *S) of one case, at the places with a truth in all channels.

    psnr is NaN for a perfect prediction, where it is infinite, and ssim for a case with unknown places, whose windows
    are incomplete; sam and ergas are those of several channels.

    truth: (C, *S), NaN where unknown. data_range: the span of the truth's values, for psnr and ssim.
    """
    known = ~truth.isnan().any(0)
    if not known.any():
        names = ["rmse", "mae", "pearson", "psnr", "ssim", *(["sam", "ergas"] if len(truth) > 1 else [])]
        return CaseScores(dict.fromkeys(names, float("nan")))
    pair = [values[:, known][None, :, None].double() for values in (prediction, truth)]  # (1, C, 1, P)
    scores = {name: getattr(fidelity, name)(*pair) for name in ("rmse", "mae", "pearson")}
    scores["psnr"] = fidelity.psnr(*pair, data_range)
    complete = bool(known.all()) and data_range > 0
    scores["ssim"] = fidelity.ssim(prediction[None], truth[None], data_range) if complete else float("nan")
    if len(truth) > 1:
        scores |= {"sam": fidelity.sam(*pair), "ergas": fidelity.ergas(*pair, ERGAS_RATIO)}
    return CaseScores({name: value if np.isfinite(value := float(x)) else float("nan") for name, x in scores.items()})


def range_of(truths: Iterable[Tensor]) -> float:
    """Return the span from the least to the greatest known value of all truths; 0 without any."""
    known = [values[~values.isnan()] for values in truths]
    ends = [(float(values.min()), float(values.max())) for values in known if values.numel()]
    return max(high for _, high in ends) - min(low for low, _ in ends) if ends else 0.0


# ── all cases ─────────────────────────────────────────────────────────────────────────────────────


def summarize(cases: Sequence[CaseScores], origins: Sequence[str]) -> dict[str, dict[str, float | int]]:
    """Return for each score its `value`, its standard `error`, and in how many cases it is `undefined`.

    The value is the mean over the cases in which the score is defined. `dice_pooled` and `iou_pooled`, the means over
    classes of the summed confusions, are weighted by pixels. The error is the jackknife over origins, such as the
    patient of each case, NaN for fewer than two; it is too small for those that resemble each other, such as slices of
    one stack.
    """
    found: dict[str, dict[str, float | int]] = {}
    names = dict.fromkeys(name for case in cases for name in case.scores)
    for name in sorted(names, key=lambda name: "/" in name):  # those of one class last
        values = np.array([case.scores.get(name, np.nan) for case in cases])
        known = ~np.isnan(values)
        defined, of = values[known], np.array(origins)[known]
        value = float(defined.mean()) if defined.size else float("nan")
        error = jackknife(lambda some: float(some.mean()), defined, of)
        found[name] = {"value": value, "error": error, "undefined": len(values) - len(defined)}
        if pool := POOLED.get(name):
            confusions = np.stack([case.confusion for case in cases])
            pooled = partial(_pooled, pool)
            row = {"value": pooled(confusions), "error": jackknife(pooled, confusions, origins), "undefined": 0}
            found[f"{name}_pooled"] = row
    return found


def total_counts(cases: Sequence[CaseScores]) -> dict[str, int]:
    """Return the sums of `COUNTS` over cases; none for numbers."""
    return {name: sum(case.counts[name] for case in cases) for name in COUNTS if all(case.counts for case in cases)}


def _pooled(score: Callable[[np.ndarray], np.ndarray], confusions: np.ndarray) -> float:
    """Return the mean over classes of a score of the sum of confusions (N, K, K)."""
    return mean_present(score(confusions.sum(0)))[0]


def jackknife(statistic: Callable[[np.ndarray], float], cases: np.ndarray, origins: Sequence[str]) -> float:
    """Return the standard error of a statistic of cases (N, ...), leaving out each origin in turn; NaN for one origin.

    For a mean of cases of N origins it is the sample's deviation over the root of N (Efron & Stein 1981). More than
    JACKKNIFE_GROUPS origins are left out in groups.
    """
    numbered = np.unique(np.asarray(origins), return_inverse=True)[1]
    number = min(int(numbered.max(initial=-1)) + 1, JACKKNIFE_GROUPS)
    if number < 2:
        return float("nan")
    groups = numbered % number
    without = np.array([statistic(cases[groups != left]) for left in range(number)])
    return float(np.sqrt((number - 1) * np.var(without)))


def without_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    """Return scores with None for those that are undefined, as JSON has no NaN."""
    return {name: None if np.isnan(value) else value for name, value in values.items()}
