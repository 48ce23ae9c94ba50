"""Scores of predicted classes of one case: overlap, distances of surfaces, calibration.

A case is a label image of shape (*S), in 1, 2 or 3 dimensions, as an array or a tensor. `known` is False where the
truth is to be ignored; predictions at those pixels never change a score. Pooled scores are those of summed confusions.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ..core.errors import UserError

Array = np.ndarray | Tensor


def as_array(values: Array, dtype: type | None = None) -> np.ndarray:
    """Return a tensor or array as an array, from any device."""
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype)


def check_shapes(predicted: np.ndarray, truth: np.ndarray) -> None:
    """Raise UserError unless both have the same shape."""
    if predicted.shape != truth.shape:
        raise UserError(
            f"scores: the prediction has shape {predicted.shape} (got {truth.shape} of the truth); crop one"
        )


# ── overlap ───────────────────────────────────────────────────────────────────────────────────────


def confusion(predicted: Array, truth: Array, num_classes: int, known: Array | None = None) -> np.ndarray:
    """Return the numbers of pixels of each class of the truth (rows) by predicted class (columns), (K, K) int64.

    predicted, truth: integer labels (*S), from 0 to num_classes - 1 wherever `known` (*S, bool) is True.
    Raise UserError at other labels.
    """
    predicted, truth = as_array(predicted), as_array(truth)
    check_shapes(predicted, truth)
    if known is not None:
        keep = as_array(known, bool)
        check_shapes(keep, truth)
        predicted, truth = predicted[keep], truth[keep]
    for name, labels in (("truth", truth), ("prediction", predicted)):
        if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
            found = f"got {labels.min()} to {labels.max()}"
            raise UserError(f"scores: labels of the {name} must be 0 to {num_classes - 1} ({found}); ignore the others")
    codes = truth.ravel().astype(np.int64) * num_classes + predicted.ravel().astype(np.int64)
    return np.bincount(codes, minlength=num_classes**2).reshape(num_classes, num_classes)


def _share(part: np.ndarray, whole: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return part / whole for each class, 0 for 0 / 0, and NaN for a class in neither truth nor prediction."""
    absent = counts.sum(0) + counts.sum(1) == 0
    return np.where(absent, np.nan, part / np.maximum(whole, 1))


def dice(counts: np.ndarray) -> np.ndarray:
    """Return the Dice coefficient 2 |A ∩ B| / (|A| + |B|) of each class, in [0, 1], (K,) (Dice 1945); the F1 score.

    0 for a class in only one of truth and prediction, NaN for a class in neither.

    counts: a confusion, or a sum of them.
    """
    return _share(2 * counts.diagonal(), counts.sum(0) + counts.sum(1), counts)


def iou(counts: np.ndarray) -> np.ndarray:
    """Return the Jaccard index |A ∩ B| / |A ∪ B| of each class, in [0, 1], (K,); absent classes as in `dice`."""
    return _share(counts.diagonal(), counts.sum(0) + counts.sum(1) - counts.diagonal(), counts)


def precision(counts: np.ndarray) -> np.ndarray:
    """Return the share of each predicted class that is true, in [0, 1], (K,); absent classes as in `dice`."""
    return _share(counts.diagonal(), counts.sum(0), counts)


def recall(counts: np.ndarray) -> np.ndarray:
    """Return the share of each true class that was predicted, in [0, 1], (K,); absent classes as in `dice`."""
    return _share(counts.diagonal(), counts.sum(1), counts)


def pixel_accuracy(counts: np.ndarray) -> float:
    """Return the share of pixels whose class is predicted, in [0, 1]; NaN without pixels."""
    return float(counts.trace() / counts.sum()) if counts.sum() else float("nan")


def pixel_error(counts: np.ndarray) -> float:
    """Return the share of pixels whose class is not predicted, in [0, 1]; NaN without pixels."""
    return 1 - pixel_accuracy(counts)


def mean_present(scores: np.ndarray) -> tuple[float, int]:
    """Return the mean of the scores that are defined, and how many are not (NaN) and are left out of it."""
    present = np.asarray(scores)[~np.isnan(scores)]
    return float(present.mean()) if present.size else float("nan"), int(np.isnan(scores).sum())


# ── surfaces ──────────────────────────────────────────────────────────────────────────────────────


def surface_distances(
    predicted_mask: Array, true_mask: Array, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances of the surface of the prediction to that of the truth, (P,), and the reverse, (T,).

    Each pixel of a surface has the distance to the nearest of the other surface, Euclidean, between centers of pixels,
    in the unit of `spacing` (one per axis). A surface consists of the pixels of a mask (*S) that touch a pixel outside
    of it by a face; outside of the image counts as outside of the mask.

    If one mask is empty, each surface pixel of the other has the diagonal of the case as its distance, which is the
    largest possible (as in the BraTS challenges): an object that is missed or invented may not improve a mean.
    """
    from scipy import ndimage

    masks = [as_array(predicted_mask, bool), as_array(true_mask, bool)]
    check_shapes(*masks)
    shape, step = np.array(masks[0].shape), np.array(spacing, np.float64)
    if step.shape != shape.shape:
        raise UserError(f"spacing: needs {len(shape)} numbers, one per axis (got {spacing}); add or remove some")
    if not (masks[0].any() or masks[1].any()):
        return np.empty(0), np.empty(0)
    objects = ndimage.find_objects((masks[0] | masks[1]).astype(np.uint8))[0]  # the box around both: same distances
    surfaces = [mask[objects] & ~ndimage.binary_erosion(mask[objects]) for mask in masks]

    def distances(surface: np.ndarray, target: np.ndarray) -> np.ndarray:
        if not target.any():
            return np.full(surface.sum(), np.linalg.norm(shape * step))
        return ndimage.distance_transform_edt(~target, sampling=step)[surface]

    return distances(*surfaces), distances(*reversed(surfaces))


def hausdorff95(distances: tuple[np.ndarray, np.ndarray]) -> float:
    """Return the larger of the 95 % quantiles of both `surface_distances`, in the unit of the spacing (as MONAI).

    The diagonal of the case if one mask is empty, NaN if both are. Other libraries pool both directions, or weight the
    pixels of a surface by their area.
    """
    return max((float(np.quantile(some, 0.95)) for some in distances if some.size), default=float("nan"))


def average_surface_distance(distances: tuple[np.ndarray, np.ndarray]) -> float:
    """Return the mean of both `surface_distances` together, in the unit of the spacing (ASSD, Heimann et al. 2009).

    The diagonal of the case if one mask is empty, NaN if both are.
    """
    both = np.concatenate(distances)
    return float(both.mean()) if both.size else float("nan")


def boundary_f1(predicted_mask: Array, true_mask: Array, tolerance: float, spacing: Sequence[float]) -> float:
    """Return the harmonic mean of the shares of both surfaces within `tolerance` of the other, in [0, 1].

    0 if one mask is empty, NaN if both are (Csurka et al. 2013).

    tolerance: in the unit of `spacing`; the masks are those of `surface_distances`.
    """
    distances = surface_distances(predicted_mask, true_mask, spacing)
    if not all(some.size for some in distances):
        return 0.0 if any(some.size for some in distances) else float("nan")
    shares = [float((some <= tolerance).mean()) for some in distances]
    return 2 * shares[0] * shares[1] / sum(shares) if any(shares) else 0.0


def surface_scores(
    predicted: Array, truth: Array, num_classes: int, spacing: Sequence[float], known: Array | None = None
) -> dict[str, np.ndarray]:
    """Return the surface distances of all classes, and which classes are missed or invented, (K,) each.

    hausdorff95, average_surface_distance: in the unit of `spacing`. missed, invented: True for a class in the truth
    only, or in the prediction only; its distances are then the diagonal of the case, so their counts belong beside each
    mean. Objects end where `known` (*S, bool) does, as they end at the edges of the image.
    """
    predicted, truth = as_array(predicted), as_array(truth)
    check_shapes(predicted, truth)
    keep = np.ones(truth.shape, bool) if known is None else as_array(known, bool)
    rows = []
    for label in range(num_classes):
        masks = (predicted == label) & keep, (truth == label) & keep
        distances = surface_distances(*masks, spacing)
        found, present = (bool(mask.any()) for mask in masks)
        rows.append(
            {
                "hausdorff95": hausdorff95(distances),
                "average_surface_distance": average_surface_distance(distances),
                "missed": present and not found,
                "invented": found and not present,
            }
        )
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


# ── calibration ───────────────────────────────────────────────────────────────────────────────────


def _known_columns(probabilities: Array, truth: Array, known: Array | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities (K, P) and the classes (P,) of the P known pixels."""
    probabilities, truth = as_array(probabilities, np.float64), as_array(truth)
    check_shapes(probabilities[0], truth)
    keep = np.ones(truth.shape, bool) if known is None else as_array(known, bool)
    return probabilities[:, keep], truth[keep].astype(np.int64)


def expected_calibration_error(probabilities: Array, truth: Array, known: Array | None = None, bins: int = 15) -> float:
    """Return the mean of |accuracy - confidence| over bins of the confidence, weighted by pixels, in [0, 1].

    The confidence is the probability of the most probable class (Guo et al. 2017, equation 3). NaN without known
    pixels.

    probabilities: (K, *S), of sum 1; truth: classes (*S).
    """
    columns, classes = _known_columns(probabilities, truth, known)
    confidence, correct = columns.max(0), columns.argmax(0) == classes
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)  # bins are open below
    gaps = np.bincount(place, correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / classes.size) if classes.size else float("nan")


def brier_score(probabilities: Array, truth: Array, known: Array | None = None) -> float:
    """Return the mean over pixels of the squared distance of the probabilities to the true class's 1, in [0, 2].

    It is the sum over all classes (Brier 1950), which is twice the usual figure of one probability for two classes.
    NaN without known pixels.

    probabilities: (K, *S), of sum 1; truth: classes (*S).
    """
    columns, classes = _known_columns(probabilities, truth, known)
    one_hot = np.arange(len(columns))[:, None] == classes
    return float(np.square(columns - one_hot).sum(0).mean()) if classes.size else float("nan")
