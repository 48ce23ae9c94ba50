"""Scores of predicted classes against scikit-learn, MONAI, brute force and closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.metrics import hausdorff_distance
from sklearn.metrics import brier_score_loss, confusion_matrix, f1_score, jaccard_score, precision_score, recall_score

from diffunet.core.errors import UserError
from diffunet.evaluation import overlap
from diffunet.evaluation.overlap import (
    average_surface_distance,
    boundary_f1,
    brier_score,
    confusion,
    dice,
    expected_calibration_error,
    hausdorff95,
    iou,
    mean_present,
    pixel_accuracy,
    pixel_error,
    surface_distances,
    surface_scores,
)

CLASSES = 4


def labels(seed: int, shape: tuple[int, ...] = (9, 7, 5), classes: int = CLASSES) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, shape)


def blob(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    from scipy import ndimage

    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5) > 0.02


def square(at: tuple[int, int], side: int = 6, shape: tuple[int, int] = (24, 20)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[at[0] : at[0] + side, at[1] : at[1] + side] = True
    return mask


# ── overlap ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(3))
def test_overlap_equals_scikit_learn(seed):
    predicted, truth, known = labels(seed), labels(seed + 10), labels(seed + 20, classes=3) > 0
    counts = confusion(torch.from_numpy(predicted), truth, CLASSES, known)
    y, p = truth[known], predicted[known]
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, confusion_matrix(y, p, labels=range(CLASSES)))
    pairs = (dice, f1_score), (iou, jaccard_score), (overlap.precision, precision_score), (overlap.recall, recall_score)
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours(counts), theirs(y, p, average=None), rtol=1e-12)
    assert pixel_accuracy(counts) == pytest.approx((y == p).mean())
    assert pixel_error(counts) == pytest.approx((y != p).mean())


def test_absent_classes():
    counts = confusion(np.array([0, 0, 2]), np.array([0, 0, 1]), CLASSES)
    for score in (dice, iou, overlap.precision, overlap.recall):
        np.testing.assert_array_equal(score(counts), [1, 0, 0, np.nan])
        mean, absent = mean_present(score(counts))
        assert mean == pytest.approx(1 / 3) and absent == 1
    assert np.isnan(pixel_accuracy(np.zeros((2, 2), int)))
    assert np.isnan(mean_present(np.full(3, np.nan))[0])


def test_pooled_scores_weight_pixels():
    large, small = square((0, 0), 20, (20, 20)).astype(int), np.array([0, 1])
    wrong = confusion(1 - small, small, 2)
    pooled = confusion(large, large, 2) + wrong
    assert dice(wrong)[1] == 0
    assert dice(pooled)[1] == pytest.approx(2 * 400 / (2 * 400 + 2))


@pytest.mark.parametrize(("predicted", "truth"), [([0, 4], [0, 0]), ([0, 0], [0, 255]), ([0, 0], [-1, 0])])
def test_labels_out_of_range_are_an_error_unless_ignored(predicted, truth):
    with pytest.raises(UserError, match="must be 0 to 3"):
        confusion(np.array(predicted), np.array(truth), CLASSES)
    known = (np.array(truth) == 0) & (np.array(predicted) == 0)
    assert confusion(np.array(predicted), np.array(truth), CLASSES, known).sum() == 1


def test_shapes_must_agree():
    with pytest.raises(UserError, match="shape"):
        confusion(labels(0), labels(0)[1:], CLASSES)
    with pytest.raises(UserError, match="shape"):
        surface_distances(square((0, 0)), square((0, 0))[:1], (1, 1))
    with pytest.raises(UserError, match="needs 2 numbers"):
        surface_distances(square((0, 0)), square((0, 0)), (1, 1, 1))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_predictions_that_are_ignored_never_change_a_score(data):
    shape = (6, 5)
    predicted, truth, other = (data.draw(arrays(np.int64, shape, elements=st.integers(0, 2))) for _ in range(3))
    known = data.draw(arrays(bool, shape))
    changed = np.where(known, predicted, other)
    np.testing.assert_array_equal(confusion(predicted, truth, 3, known), confusion(changed, truth, 3, known))
    for name, values in surface_scores(predicted, truth, 3, (1, 2), known).items():
        np.testing.assert_array_equal(values, surface_scores(changed, truth, 3, (1, 2), known)[name])
    probabilities = np.eye(3)[predicted].transpose(2, 0, 1) * 0.7 + 0.1
    altered = np.where(known, probabilities, 1 / 3)
    for score in (expected_calibration_error, brier_score):
        assert score(probabilities, truth, known) == pytest.approx(score(altered, truth, known), nan_ok=True)


# ── surfaces ──────────────────────────────────────────────────────────────────────────────────────


def nearest_by_pairs(mask: np.ndarray, other: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Return the surface distances by all pairs of surface pixels, with surfaces found pixel by pixel."""

    def surface(mask: np.ndarray) -> np.ndarray:
        padded = np.pad(mask, 1)
        found = []
        for place in np.argwhere(padded):
            steps = [s * np.eye(mask.ndim, dtype=int)[axis] for axis in range(mask.ndim) for s in (-1, 1)]
            if not all(padded[tuple(place + step)] for step in steps):
                found.append(place)
        return np.array(found) * spacing

    return np.linalg.norm(surface(mask)[:, None] - surface(other)[None], axis=2).min(1)


@pytest.mark.parametrize(("shape", "spacing"), [((17, 13), (1, 1)), ((12, 15), (0.5, 2)), ((9, 8, 7), (3, 0.7, 1))])
def test_surface_distances_equal_those_by_pairs(shape, spacing):
    predicted, truth = blob(0, shape), blob(1, shape)
    forth, back = surface_distances(torch.from_numpy(predicted), truth, spacing)
    np.testing.assert_allclose(forth, nearest_by_pairs(predicted, truth, spacing), atol=1e-12)
    np.testing.assert_allclose(back, nearest_by_pairs(truth, predicted, spacing), atol=1e-12)
    if set(spacing) == {1}:
        assert max(forth.max(), back.max()) == pytest.approx(hausdorff_distance(predicted, truth))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "spacing"), [((31, 22), (1.0, 1.0)), ((20, 33), (0.5, 2.0)), ((12, 15, 9), (3.0, 0.7, 1.0))]
)
def test_scores_equal_monai(shape, spacing):
    from monai.metrics import compute_average_surface_distance, compute_dice, compute_hausdorff_distance

    predicted, truth = blob(2, shape), blob(3, shape)
    pair = [torch.from_numpy(mask)[None, None] for mask in (predicted, truth)]
    distances = surface_distances(predicted, truth, spacing)
    settings = {"include_background": True, "spacing": spacing}
    expected = compute_hausdorff_distance(*pair, percentile=95, **settings)
    assert hausdorff95(distances) == pytest.approx(float(expected), rel=1e-6)
    expected = compute_average_surface_distance(*pair, symmetric=True, **settings)
    assert average_surface_distance(distances) == pytest.approx(float(expected), rel=1e-6)
    expected = compute_dice(*(mask.float() for mask in pair))
    assert dice(confusion(predicted, truth, 2))[1] == pytest.approx(float(expected), rel=1e-6)


def test_shifted_squares():
    distances = surface_distances(square((4, 4)), square((4, 7)), (1, 2))
    assert hausdorff95(distances) == 6  # 3 columns of 2 mm; 6 of 20 surface pixels are that far
    assert boundary_f1(square((4, 4)), square((4, 7)), 5.9, (1, 2)) < 1
    assert boundary_f1(square((4, 4)), square((4, 7)), 6, (1, 2)) == 1
    line, shifted = np.eye(8, dtype=bool)[2:3], np.eye(8, dtype=bool)[5:6]  # one pixel each
    assert average_surface_distance(surface_distances(line, shifted, (1, 2))) == 6
    assert boundary_f1(line, shifted, 5.9, (1, 2)) == 0


def test_the_quantile_is_95_percent():
    row, end = np.ones((1, 21), bool), np.arange(21)[None] == 0
    distances = surface_distances(row, end, (1, 0.5))  # 0, 0.5, ..., 10
    assert hausdorff95(distances) == 9.5
    assert average_surface_distance(distances) == pytest.approx(21 * 5 / 22)


def test_boundary_f1_is_a_harmonic_mean():
    truth, predicted = np.zeros((1, 40), bool), np.zeros((1, 40), bool)
    truth[0, [0, 10]], predicted[0, [1, 20, 30, 39]] = True, True
    shares = 1 / 4, 1 / 2
    assert boundary_f1(predicted, truth, 1, (1, 1)) == pytest.approx(2 * shares[0] * shares[1] / sum(shares))


def test_the_larger_direction_counts():
    truth = np.zeros((1, 60), bool)
    truth[0, ::2] = True
    predicted = truth.copy()
    predicted[0, 31:] = False
    forth, back = surface_distances(predicted, truth, (1, 1))
    assert forth.max() == 0 and hausdorff95((forth, back)) == hausdorff95((back, forth)) > 20


def test_perfect_missed_invented_and_absent_objects():
    mask, none = square((4, 4)), np.zeros((24, 20), bool)
    spacing, diagonal = (0.5, 3), float(np.hypot(24 * 0.5, 20 * 3))
    for predicted, truth, distance, f1 in (
        (mask, mask, 0, 1),
        (none, mask, diagonal, 0),
        (mask, none, diagonal, 0),
        (none, none, np.nan, np.nan),
    ):
        distances = surface_distances(predicted, truth, spacing)
        assert hausdorff95(distances) == pytest.approx(distance, nan_ok=True)
        assert average_surface_distance(distances) == pytest.approx(distance, nan_ok=True)
        assert boundary_f1(predicted, truth, 1, spacing) == pytest.approx(f1, nan_ok=True)
    truth = mask + 2 * square((14, 12))
    scores = surface_scores(mask + 3 * square((0, 12), 3), truth, 5, spacing)
    np.testing.assert_array_equal(scores["missed"], [False, False, True, False, False])
    np.testing.assert_array_equal(scores["invented"], [False, False, False, True, False])
    np.testing.assert_allclose(scores["hausdorff95"][1:], [0, diagonal, diagonal, np.nan])
    assert mean_present(scores["hausdorff95"][1:]) == (pytest.approx(2 * diagonal / 3), 1)


def test_distances_in_mm_do_not_depend_on_the_resolution():
    """Pixels of half the size: the same objects, of which the surfaces move by less than half a pixel."""
    predicted, truth = square((4, 4), 8), square((7, 6), 9)
    twice = [np.kron(mask, np.ones((2, 2), bool)) for mask in (predicted, truth)]
    for score in (hausdorff95, average_surface_distance):
        coarse = score(surface_distances(predicted, truth, (1.2, 0.8)))
        assert score(surface_distances(*twice, (0.6, 0.4))) == pytest.approx(coarse, abs=0.6)
    missed = (np.zeros_like(mask) for mask in (predicted, twice[0]))
    distances = (
        surface_distances(next(missed), truth, (1.2, 0.8)),
        surface_distances(next(missed), twice[1], (0.6, 0.4)),
    )
    assert hausdorff95(distances[0]) == pytest.approx(hausdorff95(distances[1]))


def test_known_places_are_like_the_image():
    """Scores where a block is known are those of the block alone, but for the diagonal of missed objects."""
    predicted, truth = blob(4, (20, 18)).astype(int), blob(5, (20, 18)).astype(int)
    block = np.s_[3:15, 4:18]
    known = np.zeros((20, 18), bool)
    known[block] = True
    inside, alone = (
        surface_scores(predicted, truth, 2, (1, 2), known),
        surface_scores(predicted[block], truth[block], 2, (1, 2)),
    )
    for name, values in inside.items():
        np.testing.assert_allclose(values, alone[name])


# ── calibration ───────────────────────────────────────────────────────────────────────────────────


def test_calibration_error_in_closed_form():
    """Two bins: confidence 0.9 of which 3 of 4 are right, and 0.6 of which none of 2 is."""
    confident = np.array([0.9, 0.9, 0.9, 0.9, 0.6, 0.6])
    probabilities, truth = np.stack([confident, 1 - confident]), np.array([0, 0, 0, 1, 1, 1])
    expected = 4 / 6 * abs(0.75 - 0.9) + 2 / 6 * abs(0 - 0.6)
    assert expected_calibration_error(torch.from_numpy(probabilities), truth) == pytest.approx(expected)
    assert expected_calibration_error(probabilities, truth, bins=1) == pytest.approx(abs(0.5 - 0.8))
    assert expected_calibration_error(np.eye(2)[truth].T, truth) == 0
    assert np.isnan(expected_calibration_error(probabilities, truth, np.zeros(6, bool)))


def test_calibrated_probabilities_have_a_small_error():
    generator = np.random.default_rng(0)
    probability = generator.random((100, 200))
    truth = (generator.random((100, 200)) < probability).astype(int)
    assert expected_calibration_error(np.stack([1 - probability, probability]), truth) < 0.02
    sharper = np.clip(2 * probability - 0.5, 0, 1)
    assert expected_calibration_error(np.stack([1 - sharper, sharper]), truth) > 0.1


def test_bins_are_open_below():
    """A confidence on the edge of two bins belongs to the lower one (Guo et al. 2017)."""
    confident, truth = np.array([0.75, 0.8, 0.75, 0.7]), np.array([1, 0, 0, 1])
    probabilities = np.stack([confident, 1 - confident])
    below = [confident <= 0.75, confident > 0.75]
    expected = sum(some.mean() * abs((truth == 0)[some].mean() - confident[some].mean()) for some in below)
    assert expected_calibration_error(probabilities, truth, bins=4) == pytest.approx(expected)


def test_brier_score_equals_scikit_learn():
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(2), (8, 9)).transpose(2, 0, 1)
    truth = generator.integers(0, 2, (8, 9))
    expected = 2 * brier_score_loss(truth.ravel(), probabilities[1].ravel())
    assert brier_score(probabilities, truth) == pytest.approx(expected)
    assert brier_score(np.eye(3)[:, [0, 1, 2]], np.array([0, 1, 0])) == pytest.approx(2 / 3)
