"""Scores of predicted instances against scikit-image, brute force and closed forms."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from skimage.measure import label
from skimage.metrics import adapted_rand_error, variation_of_information

from diffunet.core.errors import UserError
from diffunet.evaluation.instances import (
    average_precision,
    best_over_thresholds,
    mean_average_precision,
    rand_scores,
    scores_over_thresholds,
    segments_of,
    simple_points,
    thinned,
    warp,
    warping_error,
    watershed_segments,
)

EIGHT = np.ones((3, 3), bool)


def instances(seed: int, shape: tuple[int, ...] = (12, 11), number: int = 5, low: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, number, shape)


def small_labels(shape: tuple[int, int], largest: int) -> st.SearchStrategy[np.ndarray]:
    return arrays(np.int64, shape, elements=st.integers(0, largest))


def cells(rows: int = 3, columns: int = 3, side: int = 9, border: int = 2) -> np.ndarray:
    """Return a mask of square cells with borders between them and none at the edges."""
    cell = np.zeros((side + border, side + border), bool)
    cell[:side, :side] = True
    return np.tile(cell, (rows, columns))[:-border, :-border]


# ── segments ──────────────────────────────────────────────────────────────────────────────────────


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    pairs = set(zip(a.ravel().tolist(), b.ravel().tolist(), strict=True))
    return len(pairs) == len({x for x, _ in pairs}) == len({y for _, y in pairs})


@pytest.mark.parametrize("shape", [(15, 14), (6, 7, 5)])
def test_components_equal_scikit_image(shape):
    labels = instances(0, shape, number=3)
    for values in (labels, labels > 0, torch.from_numpy(labels)):
        found, expected = segments_of(values), label(np.asarray(values), background=0, connectivity=1)
        assert same_partition(found, expected)
        assert sorted(np.unique(found)) == list(range(expected.max() + 1))
    assert same_partition(segments_of(labels * 10**9), segments_of(labels))
    assert segments_of(np.zeros(shape, bool)).max() == 0


def test_the_watershed_divides_touching_objects():
    border = np.zeros((20, 30))
    border[:, 14:16] = 0.9
    border[5, 14:16] = 0.6  # a weak place
    objects = np.ones((20, 30))
    objects[18:] = 0
    segments = watershed_segments(torch.from_numpy(objects), border, seed_below=0.5)
    assert segments.max() == 2 and (segments[18:] == 0).all() and (segments[:18] > 0).all()
    assert len(np.unique(segments[:18, :14])) == len(np.unique(segments[:18, 16:])) == 1
    y, x = np.mgrid[:20, :40]
    discs = np.minimum(np.hypot(y - 10, x - 13), np.hypot(y - 10, x - 26)) < 8
    distance = ndimage.distance_transform_edt(discs)
    assert segments_of(discs).max() == 1
    divided = watershed_segments(discs, -distance, seed_below=-6)
    assert divided.max() == 2 and divided[10, 13] != divided[10, 26]
    np.testing.assert_array_equal(divided > 0, discs)


def test_objects_without_a_seed_are_segments():
    objects = np.zeros((5, 9))
    objects[1:4, :3], objects[2, 5:] = 1, 1
    landscape = np.where(objects > 0, 1.0, 0)
    landscape[2, 1] = 0
    segments = watershed_segments(objects, landscape, seed_below=0.5)
    assert same_partition(segments, segments_of(objects > 0))
    assert watershed_segments(0 * objects, landscape, 0.5).max() == 0


# ── partitions ────────────────────────────────────────────────────────────────────────────────────


def rand_by_pairs(segments: np.ndarray, truth: np.ndarray) -> float:
    """Return the adapted Rand error by all pairs of two pixels; background of the segments is never together."""
    foreground = np.flatnonzero(truth.ravel())
    together_s, together_t, together = 0, 0, 0
    for i, j in itertools.combinations(foreground, 2):
        s = segments.ravel()[i] == segments.ravel()[j] > 0
        t = truth.ravel()[i] == truth.ravel()[j]
        together_s, together_t, together = together_s + s, together_t + t, together + (s and t)
    return 1 - 2 * together / (together_s + together_t) if together_s + together_t else 0.0


@settings(max_examples=30, deadline=None)
@given(small_labels((4, 5), 3), small_labels((4, 5), 3))
def test_rand_error_equals_that_of_all_pairs(segments, truth):
    scores = rand_scores(segments, truth)
    if not truth.any():
        assert np.isnan(list(scores.values())).all()
        return
    assert scores["adapted_rand_error"] == pytest.approx(rand_by_pairs(segments, truth))


@pytest.mark.parametrize("seed", range(3))
def test_partitions_equal_scikit_image(seed):
    """Without background in the segments, which is one segment there and single pixels here."""
    segments, truth = instances(seed, low=1), instances(seed + 10, number=4)
    segments[:8] = truth[:8] + 1  # agree in part
    scores = rand_scores(torch.from_numpy(segments), truth)
    assert scores["adapted_rand_error"] == pytest.approx(adapted_rand_error(truth, segments)[0])
    split, merge = variation_of_information(truth, segments, ignore_labels=(0,))
    assert scores["vi_split"] == pytest.approx(split)
    assert scores["vi_merge"] == pytest.approx(merge)
    alone = np.where(segments == 2, 100 + np.arange(segments.size).reshape(segments.shape), segments)
    assert rand_scores(np.where(segments == 2, 0, segments), truth) == pytest.approx(rand_scores(alone, truth))


def test_challenge_scores_in_closed_form():
    """Two true halves that are merged, or of which one is split into halves again."""
    truth = np.repeat([[1, 1, 2, 2]], 4, axis=0)
    merged = rand_scores(np.ones_like(truth), truth)
    assert merged["v_rand_split"] == 1 and merged["v_rand_merge"] == pytest.approx(1 / 2)
    assert merged["v_rand"] == pytest.approx(2 / 3) and merged["v_info"] == 0
    assert merged["vi_split"] == 0 and merged["vi_merge"] == 1  # 1 bit: which half
    split = rand_scores(np.repeat([[1, 3, 2, 2]], 4, axis=0), truth)
    assert split["v_rand_merge"] == 1 and split["v_rand_split"] == pytest.approx(3 / 4)
    assert split["v_rand"] == pytest.approx(2 * 3 / 8 / (3 / 8 + 1 / 2))
    assert split["v_info"] == pytest.approx(2 * 1 / (1 + 1.5)) and split["vi_split"] == pytest.approx(0.5)
    perfect = rand_scores(5 - truth, truth)
    assert perfect["v_rand"] == perfect["v_info"] == 1 and perfect["adapted_rand_error"] == 0
    one = rand_scores(np.ones((2, 2), int), np.ones((2, 2), int))
    assert one["v_rand"] == one["v_info"] == 1 and one["adapted_rand_error"] == 0


def test_only_the_foreground_of_the_truth_counts():
    segments, truth, other = instances(0), instances(1), instances(2)
    assert rand_scores(np.where(truth > 0, segments, other), truth) == rand_scores(segments, truth)


def test_thick_and_thin_borders_agree_after_thinning():
    truth = segments_of(cells(border=2))
    thick = ndimage.binary_erosion(cells(border=2), border_value=1)
    assert rand_scores(segments_of(thick), truth)["v_rand"] < 0.9
    assert rand_scores(thinned(thick), truth)["v_rand"] == 1
    assert (thinned(thick) > 0).all() and not thinned(np.zeros((3, 3), bool)).any()


def test_the_best_threshold_is_found():
    """A border that is weak at one place: below its height cells merge, above the level of noise specks appear."""
    truth = cells()
    probability = np.where(truth, 0.9, 0.1)
    probability[4, 9:11] = 0.45
    probability[::3, ::3] -= 0.25
    thresholds = (0.2, 0.4, 0.55, 0.88)
    scores = scores_over_thresholds(torch.from_numpy(probability), segments_of(truth), thresholds)
    for threshold, v_rand in zip(thresholds, scores["v_rand"], strict=True):
        assert v_rand == rand_scores(thinned(probability > threshold), segments_of(truth))["v_rand"]
    best = best_over_thresholds(probability, segments_of(truth), thresholds)
    assert best == {"v_rand": 1, "v_rand_threshold": 0.55, "v_info": 1, "v_info_threshold": 0.55}
    assert scores["v_rand"][1] < 0.95
    unthinned = best_over_thresholds(probability, segments_of(truth), (0.88,), segments_of)
    assert unthinned["v_rand"] == rand_scores(segments_of(probability > 0.88), segments_of(truth))["v_rand"]


# ── topology ──────────────────────────────────────────────────────────────────────────────────────


def topology(mask: np.ndarray) -> tuple[int, int]:
    """Return the numbers of 4-connected components and of 8-connected ones of the background, with the outside."""
    return ndimage.label(mask)[1], ndimage.label(~np.pad(mask, 1), EIGHT)[1]


def test_the_table_of_simple_points_equals_counts_of_components():
    """Within background, a flip is simple exactly if neither number of components changes."""
    for code, simple in enumerate(simple_points()):
        bits = [bool(code >> k & 1) for k in range(8)]
        off = np.array([*bits[:4], False, *bits[4:]]).reshape(3, 3)
        on = off.copy()
        on[1, 1] = True
        assert simple == (topology(off) == topology(on)), code


@settings(max_examples=60, deadline=None)
@given(arrays(bool, (6, 7)), arrays(bool, (6, 7)))
def test_warping_keeps_the_topology_and_leaves_no_simple_pixel(predicted, truth):
    """A flip is simple exactly if both numbers of components stay, by Euler's formula in the plane."""
    warped = warp(truth, predicted)
    assert topology(warped) == topology(truth)
    assert ((warped == truth) | (warped == predicted)).all()
    for place in np.argwhere(warped != predicted):
        flipped = warped.copy()
        flipped[tuple(place)] ^= True
        assert topology(flipped) != topology(truth)
    assert warping_error(predicted, truth) == (warped != predicted).mean()


def test_known_warping_errors():
    truth = cells(2, 2)
    thick = ndimage.binary_erosion(truth, border_value=1)
    moved = np.hstack([truth[:, :1], truth[:, :-1]])
    for predicted in (truth, thick, moved):
        assert warping_error(torch.from_numpy(predicted), truth) == 0  # borders that move or widen
    gap = truth.copy()
    gap[3, 9:11] = True
    assert warping_error(gap, truth) == pytest.approx(1 / truth.size)  # one pixel keeps two cells apart
    hole = truth.copy()
    hole[3:6, 3:6] = False
    assert warping_error(hole, truth) == pytest.approx(9 / truth.size)  # none of a hole can be dug
    assert warping_error(truth, hole) == pytest.approx(1 / truth.size)  # a hole shrinks to one pixel
    assert warping_error(~np.ones((4, 4), bool), np.ones((4, 4), bool)) == 1 / 16  # a lost object leaves one pixel
    with pytest.raises(UserError, match="2 dimensions"):
        warping_error(np.ones((2, 2, 2)), np.ones((2, 2, 2)))


def test_foreground_is_4_connected_and_background_8_connected():
    diagonal = np.zeros((4, 4), bool)
    diagonal[:2, :2] = diagonal[2:, 2:] = True  # two cells that touch at a corner
    joined = diagonal.copy()
    joined[1, 2] = True
    assert warping_error(joined, diagonal) == 1 / 16 == warping_error(diagonal, joined)


# ── objects ───────────────────────────────────────────────────────────────────────────────────────


def objects_by_masks(segments: np.ndarray, truth: np.ndarray, iou: float) -> tuple[int, int, int]:
    masks, true_masks = ([x == value for value in np.unique(x) if value] for x in (segments, truth))
    pairs = [(a & b).sum() / (a | b).sum() > iou for a in masks for b in true_masks]
    return sum(pairs), len(true_masks) - sum(pairs), len(masks) - sum(pairs)


@settings(max_examples=40, deadline=None)
@given(small_labels((4, 5), 3), small_labels((4, 5), 3), st.booleans(), st.sampled_from([0.5, 0.6, 0.75]))
def test_average_precision_equals_that_of_all_masks(segments, truth, similar, iou):
    if similar:
        segments = np.where(np.arange(5) < 3, 7 * truth, segments)
    scores = average_precision(segments, truth, iou)
    matched, missed, invented = objects_by_masks(segments, truth, iou)
    assert (scores["matched"], scores["missed"], scores["invented"]) == (matched, missed, invented)
    total = matched + missed + invented
    assert scores["average_precision"] == pytest.approx(matched / total if total else np.nan, nan_ok=True)


def test_known_average_precisions():
    truth = np.zeros((10, 30), int)
    truth[:, :10], truth[:, 20:] = 1, 2
    segments = np.zeros_like(truth)
    segments[:8, :10], segments[:, 12:15], segments[:5, 20:] = 1, 2, 3  # IoU 0.8, invented, 0.5
    assert average_precision(segments, truth) == {
        "average_precision": pytest.approx(1 / 4),
        "matched": 1,
        "missed": 1,
        "invented": 2,
    }
    assert average_precision(segments, truth, 0.8)["matched"] == 0  # exceeds, not reaches
    assert mean_average_precision(segments, truth) == pytest.approx(6 / 10 * 1 / 4)  # matches at 0.5 to 0.75
    assert mean_average_precision(truth, truth) == 1
    assert np.isnan(mean_average_precision(0 * truth, 0 * truth))
    with pytest.raises(UserError, match="at least 0.5"):
        average_precision(segments, truth, 0.3)
