"""Scores of predicted instances of one case, and instances from probabilities.

Instances are integer labels (*S), 0 for the background, as arrays or tensors. Neighbors share a face (4 in 2-D, 6 in
3-D), unless stated otherwise.
"""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from ..core.errors import UserError
from .overlap import Array, as_array, check_shapes

Segmenter = Callable[[np.ndarray], np.ndarray]
SCIENCE_BOWL = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""Thresholds of the IoU in the 2018 Data Science Bowl."""
RAND_SCORES = "v_rand", "v_rand_split", "v_rand_merge", "v_info", "vi_split", "vi_merge", "adapted_rand_error"


# ── instances ─────────────────────────────────────────────────────────────────────────────────────


def segments_of(labels: Array) -> np.ndarray:
    """Return the connected components of a mask, or of each label above 0, numbered from 1, (*S) int64."""
    from scipy import ndimage

    labels = as_array(labels)
    values, compact = np.unique(labels, return_inverse=True)
    compact = compact.reshape(labels.shape) + 1  # as labels may be sparse, and find_objects begins at 1
    segments, count = np.zeros(labels.shape, np.int64), 0
    for number, (value, box) in enumerate(zip(values, ndimage.find_objects(compact), strict=True), start=1):
        if value > 0:
            parts, found = ndimage.label(compact[box] == number)
            segments[box] += np.where(parts > 0, parts + count, 0)
            count += found
    return segments


def watershed_segments(
    probability_of_object: Array, landscape: Array, seed_below: float, threshold: float = 0.5
) -> np.ndarray:
    """Return the segments of the object, divided where the landscape is high, numbered from 1, (*S) int64.

    The object is where its probability exceeds `threshold`. Each component of the object with a landscape below
    `seed_below` is a seed that grows by a watershed; a component of the object without a seed is one segment.

    landscape: (*S), such as the probability of a border (`seed_below` in [0, 1]), or minus the distance to the nearest
    border in pixels (`seed_below` -3: segments at least 6 pixels wide).
    """
    from skimage.segmentation import watershed

    landscape, inside = as_array(landscape, np.float64), as_array(probability_of_object) > threshold
    check_shapes(landscape, inside)
    segments = watershed(landscape, segments_of(inside & (landscape < seed_below)), mask=inside).astype(np.int64)
    rest = segments_of(inside & (segments == 0))
    return np.where(rest > 0, rest + segments.max(initial=0), segments)


def thinned(cells: Array) -> np.ndarray:
    """Return the components of a mask, or of each label above 0, and each pixel between as part of the nearest, (*S).

    Borders are thinned to nothing. Fiji's script of ISBI 2012 thins them to lines of one pixel; where these are not on
    a true border, they lower v_rand, so that published values are not for this thinning.
    """
    from scipy import ndimage

    segments = segments_of(cells)
    if not segments.any():
        return segments
    nearest = ndimage.distance_transform_edt(segments == 0, return_distances=False, return_indices=True)
    return segments[tuple(nearest)]


# ── partitions ────────────────────────────────────────────────────────────────────────────────────


class _Overlaps:
    """The overlaps of segments with true segments: labels, pixels in common, and pixels of each of both, (M,) each."""

    def __init__(self, segments: np.ndarray, truth: np.ndarray):
        (labels, rows), (true_labels, columns) = (np.unique(x, return_inverse=True) for x in (segments, truth))
        width = max(len(true_labels), 1)
        codes, pixels = np.unique(rows.ravel() * width + columns.ravel(), return_counts=True)
        self.pixels = pixels.astype(np.float64)
        self.label, self.true_label = labels[codes // width], true_labels[codes % width]
        self.size, self.true_size = (np.bincount(i, self.pixels)[i] for i in (codes // width, codes % width))


def rand_scores(segments: Array, truth: Array) -> dict[str, float]:
    """Return how segments agree with the truth about which pixels belong together, over the truth's foreground.

    With shares of pixels p_ij of segment i and true segment j, s_i and t_j (Arganda-Carreras et al. 2015):

    - v_rand: 2 Σp² / (Σs² + Σt²), in [0, 1], best 1, and its parts v_rand_split Σp² / Σt², lowered by segments that are
      split, and v_rand_merge Σp² / Σs², lowered by segments that are merged;
    - v_info: 2 I(s; t) / (H(s) + H(t)), in [0, 1], best 1;
    - vi_split H(s | t) and vi_merge H(t | s): variation of information, in bits, best 0 (Meilă 2007);
    - adapted_rand_error: 1 - v_rand of pairs of two different pixels, in [0, 1], best 0.

    Background inside the truth's foreground is a segment for each pixel, as in SNEMI3D. It is one segment for
    `skimage.metrics.adapted_rand_error`, which equals that of `segments + 1`. All are NaN if the truth is background.
    """
    segments, truth = as_array(segments), as_array(truth)
    check_shapes(segments, truth)
    foreground = truth > 0
    segments, truth = segments[foreground].astype(np.int64), truth[foreground]
    segments[segments <= 0] = segments.max(initial=0) + 1 + np.arange((segments <= 0).sum())
    overlaps = _Overlaps(segments, truth)
    number = overlaps.pixels.sum()
    if not number:
        return dict.fromkeys(RAND_SCORES, float("nan"))
    # sums over segments are sums over overlaps, as a segment's size is the sum of its overlaps
    both, in_segments, in_truth = (overlaps.pixels @ x for x in (overlaps.pixels, overlaps.size, overlaps.true_size))
    joint, entropy_s, entropy_t = (
        -overlaps.pixels @ np.log2(x / number) / number for x in (overlaps.pixels, overlaps.size, overlaps.true_size)
    )
    information, pairs = entropy_s + entropy_t, in_segments + in_truth - 2 * number
    scores = (
        2 * both / (in_segments + in_truth),
        both / in_truth,
        both / in_segments,
        2 * (information - joint) / information if information else 1.0,
        joint - entropy_t,
        joint - entropy_s,
        1 - 2 * (both - number) / pairs if pairs else 0.0,
    )
    return dict(zip(RAND_SCORES, map(float, scores), strict=True))


def scores_over_thresholds(
    probability_of_cell: Array, truth_segments: Array, thresholds: Sequence[float], segment: Segmenter = thinned
) -> dict[str, np.ndarray]:
    """Return v_rand and v_info of the cells above each threshold, (T,) each.

    The mean of these over images gives one best threshold for all of them.

    segment: from a mask of cells to segments, by default the nearest cell of each pixel.
    """
    probability = as_array(probability_of_cell)
    rows = [rand_scores(segment(probability > threshold), truth_segments) for threshold in thresholds]
    return {name: np.array([row[name] for row in rows]) for name in ("v_rand", "v_info")}


def best_over_thresholds(
    probability_of_cell: Array, truth_segments: Array, thresholds: Sequence[float], segment: Segmenter = thinned
) -> dict[str, float]:
    """Return the best v_rand and v_info over the thresholds, each with its own threshold, as ISBI 2012 ranks.

    A threshold that is best for the scored image flatters: choose it on other images, and give it alone.
    """
    best = {}
    for name, scores in scores_over_thresholds(probability_of_cell, truth_segments, thresholds, segment).items():
        place = int(scores.argmax())
        best |= {name: float(scores[place]), f"{name}_threshold": float(thresholds[place])}
    return best


# ── topology ──────────────────────────────────────────────────────────────────────────────────────


@cache
def simple_points() -> np.ndarray:
    """Return which of the 256 neighborhoods in 2-D keep the topology when the pixel between them flips, (256,) bool.

    Bit k is the k-th of the 8 neighbors in raster order. The pixel is simple if it touches exactly one component
    of the foreground (4-connected) and one of the background (8-connected) among them (Kong & Rosenfeld 1989).
    """
    from scipy import ndimage

    faces, all_neighbors = ndimage.generate_binary_structure(2, 1), ndimage.generate_binary_structure(2, 2)
    simple = np.zeros(256, bool)
    for code in range(256):
        bits = [bool(code >> k & 1) for k in range(8)]
        square = np.array([*bits[:4], False, *bits[4:]]).reshape(3, 3)
        foreground, _ = ndimage.label(square, faces)
        outside = ~square
        outside[1, 1] = False
        _, background_parts = ndimage.label(outside, all_neighbors)
        touching = set(foreground[faces].tolist()) - {0}  # the pixel itself is 0
        simple[code] = len(touching) == 1 and background_parts == 1
    return simple


def warp(true_mask: Array, predicted_mask: Array) -> np.ndarray:
    """Return the truth, warped toward the prediction without a change of topology, (H, W) bool (Jain et al. 2010).

    Simple pixels that differ are flipped until none is left: borders move, but no object is split, merged, made or
    lost, and no hole is. Objects (True) are 4-connected; the background is 8-connected and continues past the edges. A
    line thinner than its displacement stays where it is. Raise UserError unless masks are (H, W).
    """
    predicted, true = as_array(predicted_mask, bool), as_array(true_mask, bool)
    if true.ndim != 2:
        raise UserError(f"warping error: needs images of 2 dimensions (got {true.ndim}); give one slice at a time")
    check_shapes(predicted, true)
    padded, (height, width) = np.pad(true, 1), true.shape
    warped, simple = padded[1:-1, 1:-1], simple_points()
    neighbors = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3) if (y, x) != (1, 1)]
    changed = True
    while changed:
        changed = False
        for y, x in ((0, 0), (0, 1), (1, 0), (1, 1)):
            grid = slice(y, None, 2), slice(x, None, 2)  # without neighbors among each other, so flips are independent
            code = sum(neighbor[grid].astype(np.intp) << bit for bit, neighbor in enumerate(neighbors))
            flips = simple[code] & (warped[grid] != predicted[grid])
            warped[grid] ^= flips
            changed |= bool(flips.any())
    return warped


def warping_error(predicted_mask: Array, true_mask: Array) -> float:
    """Return the share of pixels that differ after the truth was warped toward the prediction, in [0, 1].

    These pixels differ in topology, not in the place of a border (Jain et al. 2010); see `warp`. 0 is best.

    predicted_mask, true_mask: (H, W), True in objects.
    """
    return float((warp(true_mask, predicted_mask) != as_array(predicted_mask, bool)).mean())


# ── objects ───────────────────────────────────────────────────────────────────────────────────────


def average_precision(segments: Array, truth: Array, iou: float = 0.5) -> dict[str, float | int]:
    """Return the share of objects that match, TP / (TP + FP + FN), in [0, 1], and the numbers of objects behind it.

    A segment and an object of the truth match if their IoU exceeds `iou`, which is unique from 0.5 on (2018 Data
    Science Bowl). matched: TP; missed: objects of the truth without a match, FN; invented: segments without one, FP.
    The share is NaN if there are no objects. Raise UserError if `iou` is below 0.5.
    """
    if not 0.5 <= iou < 1:
        raise UserError(f"average_precision: iou must be at least 0.5 and below 1 (got {iou}); choose a higher one")
    segments, truth = as_array(segments), as_array(truth)
    check_shapes(segments, truth)
    overlaps = _Overlaps(segments, truth)
    objects = (overlaps.label > 0) & (overlaps.true_label > 0)
    union = overlaps.size + overlaps.true_size - overlaps.pixels
    matched = int((objects & (overlaps.pixels / union > iou)).sum())
    found, present = (len(np.unique(x[x > 0])) for x in (overlaps.label, overlaps.true_label))
    total = found + present - matched
    share = matched / total if total else float("nan")
    return {"average_precision": share, "matched": matched, "missed": present - matched, "invented": found - matched}


def mean_average_precision(segments: Array, truth: Array, thresholds: Sequence[float] = SCIENCE_BOWL) -> float:
    """Return the mean of `average_precision` over thresholds of the IoU, in [0, 1]; NaN if there are no objects."""
    return float(np.mean([average_precision(segments, truth, iou)["average_precision"] for iou in thresholds]))
