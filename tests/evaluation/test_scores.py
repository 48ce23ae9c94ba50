"""Scores of predicted cases, their means over cases, and references."""

import json

import numpy as np
import pytest
import torch

from diffunet.data.cases import Case
from diffunet.data.labels import UNKNOWN, Labels
from diffunet.data.pansharpening import wald_pair
from diffunet.data.phantoms.registry import PHANTOMS
from diffunet.evaluation.comparison import Comparison, Judge, PredictedCase, format_comparison
from diffunet.evaluation.instances import average_precision, segments_of
from diffunet.evaluation.references import best_threshold, class_references, number_references
from diffunet.evaluation.scores import (
    CaseScores,
    class_scores,
    has_borders,
    jackknife,
    number_scores,
    range_of,
    summarize,
    total_counts,
)

NAMES = "outside", "inside"


def square(top: int, left: int, side: int, shape: tuple[int, int] = (24, 24)) -> np.ndarray:
    """Return classes with one square of the second class."""
    classes = np.zeros(shape, np.int16)
    classes[top : top + side, left : left + side] = 1
    return classes


def cells() -> np.ndarray:
    """Return four cells of 11 × 11 pixels, class 1, between borders of 2 pixels, class 0."""
    truth = np.ones((24, 24), np.int16)
    truth[11:13] = truth[:, 11:13] = 0
    return truth


def one_hot(classes: np.ndarray) -> np.ndarray:
    return np.stack([classes == 0, classes == 1]).astype(np.float32)


def random_classes(seed: int = 0, shape: tuple[int, int] = (24, 24)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, shape).astype(np.int16)


# ── one case ──────────────────────────────────────────────────────────────────────────────────────


def test_a_perfect_prediction_has_the_best_scores():
    truth = cells()
    found = class_scores(truth, truth, NAMES, probabilities=one_hot(truth), borders=True)
    best = {"dice": 1, "iou": 1, "boundary_f1": 1, "v_rand": 1, "v_info": 1, "dice/inside": 1}
    worst = ("hausdorff95", "average_surface_distance", "pixel_error", "calibration_error", "brier", "warping_error")
    worst += ("adapted_rand_error", "vi_split", "vi_merge", "hausdorff95/outside")
    expected = best | dict.fromkeys(worst, 0)
    assert {name: found.scores[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert found.counts == {"objects": 4, "missed": 0, "invented": 0, "missed_classes": 0, "invented_classes": 0}


def test_a_shifted_square_has_the_scores_computed_by_hand():
    """A square of 8 × 8, shifted by 2: they share 48 pixels, 16 of each are alone."""
    found = class_scores(square(8, 10, 8), square(8, 8, 8), NAMES)
    outside, wrong = 24 * 24 - 64, 32
    assert found.scores["dice/inside"] == pytest.approx(96 / 128)
    assert found.scores["iou/inside"] == pytest.approx(48 / 80)
    assert found.scores["iou/outside"] == pytest.approx((outside - 16) / (outside + 16))
    assert found.scores["dice"] == pytest.approx((96 / 128 + (outside - 16) / outside) / 2)
    assert found.scores["pixel_error"] == pytest.approx(wrong / 24**2)
    assert found.scores["hausdorff95/inside"] == 2
    assert found.scores["boundary_f1/inside"] == 1  # displaced by no more than the tolerance
    assert (found.counts["objects"], found.counts["missed"], found.counts["invented"]) == (1, 0, 0)
    assert not {"calibration_error", "v_rand", "ap50"} & found.scores.keys()


def test_missed_and_invented_objects_are_counted():
    truth = square(2, 2, 6) + square(14, 14, 6)
    found = class_scores(square(2, 2, 6) + square(2, 14, 6) + square(14, 2, 3), truth, NAMES)
    assert (found.counts["objects"], found.counts["missed"], found.counts["invented"]) == (2, 1, 2)
    nothing = class_scores(np.zeros_like(truth), truth, NAMES)
    assert (nothing.counts["missed"], nothing.counts["missed_classes"]) == (2, 1)
    assert nothing.scores["hausdorff95/inside"] == pytest.approx(24 * 2**0.5)
    empty = class_scores(truth, np.zeros_like(truth), NAMES)
    assert (empty.counts["invented"], empty.counts["invented_classes"]) == (2, 1)


def test_a_gap_in_a_border_merges_cells():
    """Two of four equal cells as one segment: their pixels 2N of 4N, so v_rand_merge is 4 / (2² + 1 + 1)."""
    truth = cells()
    predicted = truth.copy()
    predicted[5, 11:13] = 1
    found = class_scores(predicted, truth, NAMES, borders=True)
    assert found.scores["v_rand_split"] == pytest.approx(1)
    assert found.scores["v_rand_merge"] == pytest.approx(4 / 6)
    assert found.scores["vi_merge"] == pytest.approx(0.5)  # one bit for half of the pixels
    assert found.scores["warping_error"] == pytest.approx(1 / 24**2)  # a line of one pixel kept them apart
    assert (found.counts["missed"], found.counts["invented"]) == (2, 1)


def test_instances_are_scored_as_objects():
    truth = square(2, 2, 6) + 2 * square(12, 12, 8)
    predicted = square(2, 2, 6) + square(12, 12, 6)  # the second: IoU 36 / 64
    found = class_scores(predicted, (truth > 0).astype(np.int16), NAMES, instances=truth)
    assert found.scores["ap50"] == 1
    assert found.scores["mean_ap"] == pytest.approx((2 * 1 + 8 * (1 / 3)) / 10)  # it matches up to 0.55
    touching = np.where(square(2, 2, 6), 5, 0) + np.where(square(2, 8, 6), 9, 0)
    mask = (touching > 0).astype(np.int16)
    as_mask = class_scores(mask, mask, NAMES, instances=touching)
    as_objects = class_scores(mask, mask, NAMES, instances=touching, segments=touching)
    assert (as_mask.scores["ap50"], as_objects.scores["ap50"]) == (0, 1)


@pytest.mark.parametrize("kind", ["classes", "borders", "instances"])
def test_predictions_without_a_truth_change_nothing(kind):
    truth = cells()
    instances = {"instances": np.where(truth == 1, 1 + np.arange(24) // 12, 0)} if kind == "instances" else {}
    truth[:, 15:] = UNKNOWN
    found = []
    for seed in (1, 2):
        predicted = random_classes()
        predicted[:, 15:] = random_classes(seed)[:, 15:]
        probabilities = 0.8 * one_hot(predicted) + 0.1
        segments = {"segments": predicted * 7} if kind == "instances" else {}
        options = {"probabilities": probabilities, "borders": kind == "borders"} | instances | segments
        found.append(class_scores(predicted, truth, NAMES, **options))
    assert found[0].scores == found[1].scores
    assert found[0].counts == found[1].counts
    np.testing.assert_array_equal(found[0].confusion, found[1].confusion)


def test_a_case_without_any_truth_is_undefined_in_every_score():
    truth = np.full((24, 24), UNKNOWN, np.int16)
    found = class_scores(cells(), truth, NAMES, probabilities=one_hot(cells()), borders=True)
    assert all(np.isnan(value) for value in found.scores.values())
    assert not any(found.counts.values())


def test_borders_are_found_by_their_shape():
    expected = {"membranes": True, "grains": True, "shapes": False, "contours": False, "defects": False}
    found = {name: has_borders([PHANTOMS[name].generate(i, (128, 128)).target for i in (0, 1)]) for name in expected}
    assert found == expected
    assert not has_borders([1 - cells()])  # thin objects on a background


# ── numbers ───────────────────────────────────────────────────────────────────────────────────────


def test_numbers_have_the_scores_computed_by_hand():
    truth = torch.arange(2 * 16 * 16, dtype=torch.float32).reshape(2, 16, 16)
    found = number_scores(truth + 3, truth, data_range=range_of([truth])).scores
    assert range_of([truth]) == 511
    assert found["rmse"] == pytest.approx(3)
    assert found["mae"] == pytest.approx(3)
    assert found["pearson"] == pytest.approx(1)
    assert found["psnr"] == pytest.approx(20 * np.log10(511 / 3))
    means = truth.mean((1, 2)).numpy()
    assert found["ergas"] == pytest.approx(25 * np.sqrt(np.mean((3 / means) ** 2)))
    perfect = number_scores(truth, truth, 511).scores
    assert (perfect["rmse"], perfect["ssim"], perfect["sam"]) == pytest.approx((0, 1, 0))
    assert np.isnan(perfect["psnr"])
    assert not {"sam", "ergas"} & number_scores(truth[:1], truth[:1], 511).scores.keys()


def test_numbers_without_a_truth_change_nothing():
    truth = torch.rand(2, 16, 16)
    truth[0, :, 10:] = torch.nan
    first, second = torch.rand(2, 16, 16), torch.rand(2, 16, 16)
    second[:, :, :10] = first[:, :, :10]
    found = [number_scores(prediction, truth, 1.0).scores for prediction in (first, second)]
    np.testing.assert_equal(found[0], found[1])
    assert np.isnan(found[0]["ssim"])
    assert found[0]["rmse"] == pytest.approx(float((first - truth)[:, :, :10].square().mean().sqrt()))
    nothing = number_scores(first, torch.full_like(truth, torch.nan), 1.0).scores
    assert nothing.keys() == found[0].keys()
    assert all(np.isnan(value) for value in nothing.values())


# ── all cases ─────────────────────────────────────────────────────────────────────────────────────


ORIGINS = [str(index) for index in range(5000)]


def test_cases_of_one_origin_count_as_one_in_the_error():
    rng = np.random.default_rng(0)
    patients = rng.normal(size=40)
    slices = np.repeat(patients, 10) + 0.01 * rng.normal(size=400)  # ten slices that hardly differ
    origins = np.repeat(ORIGINS[:40], 10)
    found = [
        summarize([CaseScores({"rmse": value}) for value in slices], of)["rmse"] for of in (origins, ORIGINS[:400])
    ]
    assert found[0]["value"] == found[1]["value"] == pytest.approx(slices.mean())
    assert found[0]["error"] == pytest.approx(patients.std(ddof=1) / np.sqrt(40), rel=0.01)
    assert found[1]["error"] < found[0]["error"] / 2
    assert np.isnan(jackknife(np.mean, slices[:10], origins[:10]))


def test_the_error_of_a_mean_is_its_analytic_standard_error():
    values = np.random.default_rng(0).normal(size=17)
    found = summarize([CaseScores({"rmse": value}) for value in values], ORIGINS[:17])["rmse"]
    assert found["value"] == pytest.approx(values.mean())
    assert found["error"] == pytest.approx(values.std(ddof=1) / np.sqrt(17))
    many = np.random.default_rng(1).normal(size=5000)
    assert jackknife(np.mean, many, ORIGINS) == pytest.approx(1 / np.sqrt(5000), rel=0.2)
    assert np.isnan(jackknife(np.mean, values[:1], ORIGINS[:1]))


def test_undefined_cases_are_left_out_and_counted():
    found = summarize([CaseScores({"psnr": value}) for value in (10.0, float("nan"), 20.0)], ORIGINS[:3])["psnr"]
    assert (found["value"], found["undefined"]) == (15, 1)
    assert found["error"] == pytest.approx(5)


def test_pooled_scores_are_those_of_all_cases_as_one():
    pairs = [(square(8, 10, 8), square(8, 8, 8)), (square(0, 0, 2), square(0, 0, 4)), (random_classes(), cells())]
    cases = [class_scores(predicted, truth, NAMES) for predicted, truth in pairs]
    together = class_scores(*(np.concatenate(parts) for parts in zip(*pairs, strict=True)), NAMES).scores
    found = summarize(cases, ORIGINS[: len(cases)])
    assert found["dice_pooled"]["value"] == pytest.approx(together["dice"])
    assert found["iou_pooled"]["value"] == pytest.approx(together["iou"])
    assert found["dice"]["value"] == pytest.approx(np.mean([case.scores["dice"] for case in cases]))
    assert found["dice_pooled"]["error"] > 0
    assert total_counts(cases)["objects"] == sum(case.counts["objects"] for case in cases)


# ── references ────────────────────────────────────────────────────────────────────────────────────


def test_the_best_threshold_is_that_of_a_search():
    random = np.random.default_rng(0)
    for sign in (1, -1):
        second = random.random(200) < 0.4
        values = sign * (second + random.normal(0, 0.7, 200)).round(1)
        threshold, bright = best_threshold(values, second)
        candidates = np.concatenate([[-np.inf, np.inf], np.unique(values) + 0.05])
        errors = [min(((values > c) != second).mean(), ((values > c) == second).mean()) for c in candidates]
        assert (((values > threshold) == bright) != second).mean() == pytest.approx(min(errors))
        assert bright == (sign > 0)
    assert ((np.arange(5) > best_threshold(np.arange(5), np.ones(5, bool))[0]) == 1).all()


def test_references_of_classes():
    truth = square(4, 4, 12)
    image = torch.from_numpy(np.where(truth == 1, 40, 200).astype(np.uint8))[None]
    target = torch.from_numpy(truth.copy())
    target[:, 20:] = UNKNOWN
    found = class_references([Case("a", image, target)], 2)
    share = 144 / (24 * 20)
    np.testing.assert_allclose(found["constant"].predict(image)[:, 0, 0], [1 - share, share], rtol=1e-6)
    wrong = (found["threshold"].predict(image).argmax(0).numpy() != truth).mean()
    assert wrong < 0.01  # corners, which smoothing rounds
    assert "threshold" not in class_references([Case("a", image.expand(3, -1, -1), target)], 2)


def test_references_of_instances_divide_touching_discs():
    rows, columns = np.mgrid[:60, :80]
    centers = [(20, 20), (20, 37), (42, 60), (42, 12)]  # the first two overlap
    discs = [np.hypot(rows - y, columns - x) for y, x in centers]
    instances = torch.from_numpy(np.where(np.min(discs, 0) < 10, 1 + np.argmin(discs, 0), 0))
    image = 10 + 50 * (instances > 0).float()[None] + torch.randn(1, 60, 80)
    brighter = Case("b", 2 * image, (instances > 0).short(), instances=instances)
    found = class_references([Case("a", image, (instances > 0).short(), instances=instances), brighter], 2)
    assert set(found) == {"constant", "threshold", "otsu", "watershed"}
    for case in (image, 3 * image):  # the threshold of Otsu follows the image
        output = found["watershed"].predict(case)
        torch.testing.assert_close(output, found["otsu"].predict(case))
        assert float((output[1] == (instances > 0)).float().mean()) > 0.99
        joined, divided = segments_of(output[1]), found["watershed"].segment(output)
        assert average_precision(joined, instances)["matched"] == 2
        assert average_precision(divided, instances)["matched"] == 4
    assert found["otsu"].segment is None


def test_references_of_numbers():
    image = torch.rand(2, 8, 8)
    factor, offset = torch.tensor([2.0, -3.0])[:, None, None], torch.tensor([1.0, 5.0])[:, None, None]
    target = image * factor + offset
    mean = target[:, :, :6].mean((1, 2))
    target[:, :, 6:] = torch.nan
    found = number_references([Case("a", image, target)])
    torch.testing.assert_close(found["constant"].predict(image)[:, 3, 3], mean)
    torch.testing.assert_close(found["identity"].predict(image), image * factor + offset)
    assert number_references([Case("a", image[:1], target)]).keys() == {"constant", "linear"}


# ── the record ────────────────────────────────────────────────────────────────────────────────────


def comparison_of(predicted: list[np.ndarray], truths: list[np.ndarray]) -> Comparison:
    images = [torch.from_numpy(truth.astype(np.float32))[None] for truth in truths]
    cases = [Case(f"c{i}", images[i], torch.from_numpy(truth)) for i, truth in enumerate(truths)]
    everything = range(len(cases))
    comparison = Comparison(Judge.of(cases, Labels((0, 1), NAMES), everything, everything))
    for case, classes in zip(cases, predicted, strict=True):
        comparison.add(PredictedCase(case, torch.from_numpy(one_hot(classes))))
    return comparison


def test_the_record_is_json_and_names_the_worst_cases_first():
    truths = [square(8, 8, 8)] * 6 + [np.full((24, 24), UNKNOWN, np.int16)]
    comparison = comparison_of([square(8, 8 + shift, 8) for shift in (0, 3, 1, 5, 2, 4, 0)], truths)
    cases = {"path": "here", "fold": 1, "folds": 3, "trained_on": 2}
    record = comparison.record({"run": "x"}, cases, "4 other cases")
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["worst"] == ["c3", "c5", "c1", "c4", "c2"]
    assert record["scores"]["dice"]["undefined"] == 1
    assert record["per_case"][6]["dice"] is None
    assert record["scores"]["dice"]["references"]["constant"] == pytest.approx(0.5 * 1024 / (576 + 512))
    assert record["counts"]["missed"]["references"]["constant"] == 6
    table = format_comparison(record)
    assert table.startswith("7 cases of here (fold 1 of 3); 2 of them were trained on\n")
    assert "undefined in 1 of 7" in table
    assert "constant   threshold" in table


def test_one_case_has_no_error():
    record = comparison_of([square(8, 8, 8)], [square(8, 8, 8)]).record({}, {"path": "here", "fold": None}, "")
    assert record["scores"]["dice"]["error"] is None
    assert "not enough cases for an error" in format_comparison(record | {"cases": record["cases"] | {"trained_on": 0}})


def test_references_of_a_sharp_image_beside_coarse_bands():
    bands = torch.tensor([2.0, 3.0, 5.0])[:, None, None] * (1 + torch.rand(24, 24))
    image, target = wald_pair(bands)
    found = number_references([Case("a", image, target / 10)])
    assert set(found) == {"constant", "linear", "bicubic", "brovey"}
    torch.testing.assert_close(found["brovey"].predict(image), target / 10)  # only the brightness varies
    error = {name: (reference.predict(image) - target / 10).square().mean() for name, reference in found.items()}
    assert error["brovey"] < error["bicubic"] < error["constant"]
    assert error["linear"] < error["bicubic"]


def test_a_region_is_scored_as_one_class_of_its_classes():
    rng = np.random.default_rng(0)
    predicted, truth = rng.integers(0, 4, (2, 9, 8, 7)).astype(np.int16)
    truth[rng.random(truth.shape) < 0.1] = -1
    names, spacing = ("a", "b", "c", "d"), (3.0, 1.0, 0.5)
    found = class_scores(predicted, truth, names, spacing=spacing, regions={"core": (1, 3)})
    masks = [np.where(labels < 0, -1, np.isin(labels, (1, 3))).astype(np.int16) for labels in (predicted, truth)]
    alone = class_scores(*masks, ("rest", "core"), spacing=spacing)
    for score in ("dice", "iou", "hausdorff95", "average_surface_distance", "boundary_f1"):
        assert found.scores[f"{score}/core"] == pytest.approx(alone.scores[f"{score}/core"])
    plain = class_scores(predicted, truth, names, spacing=spacing)
    assert {name: found.scores[name] for name in plain.scores} == pytest.approx(plain.scores)
    in_pixels = class_scores(predicted, truth, names)
    assert in_pixels.scores["hausdorff95"] != pytest.approx(plain.scores["hausdorff95"])
