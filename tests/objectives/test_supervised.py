"""Losses of predictors against loops, torch and MONAI, and places without a label."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.metrics import structural_similarity

from diffunet.core.errors import UserError
from diffunet.core.settings import settings_from
from diffunet.objectives.regression import Regression, RegressionConfig
from diffunet.objectives.segmentation import SMOOTH, UNKNOWN, Segmentation, SegmentationConfig
from diffunet.objectives.supervised import center_of, mean_where

TERMS = ("cross_entropy", "dice", "jaccard")
STD = (2.0, 0.5)


def segmentation(**factors) -> Segmentation:
    return Segmentation(SegmentationConfig(**(dict.fromkeys(TERMS, 0.0) | factors)))


def regression(**factors) -> Regression:
    return Regression(RegressionConfig(**(dict.fromkeys(("l2", "l1", "huber", "ssim"), 0.0) | factors)), STD)


def a_batch(classes: int = 3, examples: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return logits, classes with some places unknown, and weights; the last example has no label, the one before
    lacks a class."""
    logits = 2 * torch.randn(examples, classes, 5, 6)
    target = torch.randint(0, classes, (examples, 5, 6), dtype=torch.int16)
    target[torch.rand(target.shape) < 0.3] = UNKNOWN
    target[-2][target[-2] == classes - 1] = 0
    target[-1] = UNKNOWN
    return logits, target, torch.rand(examples, 5, 6) * 3


def numbers() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return values, a target of two channels with NaN where it is unknown, and weights."""
    target = torch.randn(3, 2, 5, 6)
    target[torch.rand(target.shape) < 0.3] = math.nan
    target[-1] = math.nan
    return torch.randn(3, 2, 5, 6), target, torch.rand(3, 5, 6)


# ── segmentation ──────────────────────────────────────────────────────────────────────────────────


def test_overlaps_of_regions_are_those_of_their_summed_probabilities():
    """Each region against the rest is a case of two classes, whose second overlap counts."""
    logits, target, _ = a_batch(classes=4)
    regions = {"whole": [1, 2, 3], "core": [2, 3], "last": [3]}
    config = SegmentationConfig(cross_entropy=0, dice=1, jaccard=0)
    found = Segmentation(config, list(regions.values())).loss(lambda image: image, logits, target)["loss"]
    for example in range(4):
        terms = []
        for members in regions.values():
            known = target[example] != UNKNOWN
            p = logits[example].softmax(0)[members].sum(0)[known]
            y = torch.isin(target[example][known], torch.tensor(members)).float()
            if y.any():
                terms.append(1 - (2 * (p * y).sum() + SMOOTH) / ((p + y).sum() + SMOOTH))
        expected = torch.stack(terms).mean() if terms else torch.tensor(0.0)
        torch.testing.assert_close(found[example], expected)
    alone = Segmentation(config, [[0], [1], [2], [3]]).loss(lambda image: image, logits, target)["loss"]
    torch.testing.assert_close(alone, Segmentation(config).loss(lambda image: image, logits, target)["loss"])


def test_cross_entropy_equals_torch_with_ignore_index():
    logits, target, _ = a_batch()
    found = segmentation(cross_entropy=1.0).loss(lambda image: image, logits, target)["loss"]
    for example in range(3):
        one = slice(example, example + 1)
        expected = F.cross_entropy(logits[one], target[one].long(), ignore_index=UNKNOWN)
        torch.testing.assert_close(found[example], expected)
    assert found[3] == 0


def test_weights_multiply_the_cross_entropy_of_places():
    logits, target, weight = a_batch()
    found = segmentation(cross_entropy=1.0).loss(lambda image: image, logits, target, weight)["loss"]
    errors = F.cross_entropy(logits, target.long(), ignore_index=UNKNOWN, reduction="none")
    for example in range(3):
        known = target[example] != UNKNOWN
        torch.testing.assert_close(found[example], (errors * weight)[example][known].sum() / known.sum())
    torch.testing.assert_close(
        segmentation(cross_entropy=1.0).loss(lambda image: image, logits, target, torch.full_like(weight, 2))["loss"],
        2 * segmentation(cross_entropy=1.0).loss(lambda image: image, logits, target)["loss"],
    )


@pytest.mark.parametrize("name", ["dice", "jaccard"])
def test_overlaps_equal_loops(name):
    """Soft Dice 2 I / S and -log Jaccard I / (S - I), averaged over the classes that an example has."""
    logits, target, weight = a_batch()
    found = segmentation(**{name: 1.0}).loss(lambda image: image, logits, target, weight)["loss"]
    probability = logits.double().softmax(1)
    for example in range(3):
        terms = []
        for label in range(3):
            overlap = size = 0.0
            places = 0
            for y in range(5):
                for x in range(6):
                    if target[example, y, x] != UNKNOWN:
                        p, truth = probability[example, label, y, x].item(), int(target[example, y, x] == label)
                        overlap, size, places = overlap + p * truth, size + p + truth, places + truth
            dice = 1 - (2 * overlap + SMOOTH) / (size + SMOOTH)
            jaccard = -math.log((overlap + SMOOTH) / (size - overlap + SMOOTH))
            terms += [dice if name == "dice" else jaccard] * (places > 0)
        assert found[example].item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)
    assert found[3] == 0


@pytest.mark.slow
def test_dice_equals_monai_where_all_classes_are_present():
    losses = pytest.importorskip("monai.losses")
    logits, target = torch.randn(4, 3, 8, 8), torch.arange(256).reshape(4, 8, 8) % 3
    monai = losses.DiceLoss(softmax=True, to_onehot_y=True, smooth_nr=SMOOTH, smooth_dr=SMOOTH, reduction="none")
    expected = monai(logits, target[:, None]).flatten(1).mean(1)
    torch.testing.assert_close(segmentation(dice=1.0).loss(lambda image: image, logits, target)["loss"], expected)


def test_a_perfect_prediction_has_the_loss_zero():
    _, target, _ = a_batch()
    logits = 200.0 * torch.stack([target == label for label in range(3)], dim=1)
    found = segmentation(cross_entropy=1.0, dice=1.0, jaccard=1.0).loss(lambda image: image, logits, target)["loss"]
    assert found.abs().max() < 1e-6


def test_the_loss_is_the_sum_of_its_terms_by_their_factors():
    logits, target, weight = a_batch()
    factors = {"cross_entropy": 0.3, "dice": 2.0, "jaccard": 0.7}
    found = segmentation(**factors).loss(lambda image: image, logits, target, weight)
    assert found.keys() == {"loss", *(f"loss_{name}" for name in TERMS)}
    torch.testing.assert_close(found["loss"], sum(factor * found[f"loss_{name}"] for name, factor in factors.items()))
    for name in TERMS:
        alone = segmentation(**{name: 1.0}).loss(lambda image: image, logits, target, weight)
        assert alone.keys() == {"loss"}
        assert torch.equal(alone["loss"], found[f"loss_{name}"])


def test_cross_entropy_and_jaccard_are_the_loss_of_ternausnet():
    """H - log J (Iglovikov & Shvets 2018, section 3) of one logit, in NumPy and fp64.

    J is the ratio of sums, as in the authors' code. Here each of the two classes has one, smoothed; the difference of
    the two logits here is the one there.
    """
    logits, target = 2 * torch.randn(4, 2, 5, 6), torch.randint(0, 2, (4, 5, 6))
    found = segmentation(cross_entropy=1.0, jaccard=1.0).loss(lambda image: image, logits, target)["loss"]
    z, y = (logits[:, 1] - logits[:, 0]).double().numpy(), target.double().numpy()
    p = 1 / (1 + np.exp(-z))
    for example in range(4):
        entropy = -np.mean(y[example] * np.log(p[example]) + (1 - y[example]) * np.log(1 - p[example]))
        ratios = [
            (np.sum(a * b) + SMOOTH) / (np.sum(a + b - a * b) + SMOOTH)
            for a, b in ((y[example], p[example]), (1 - y[example], 1 - p[example]))
        ]
        assert found[example].item() == pytest.approx(entropy - np.mean(np.log(ratios)), rel=1e-5)


# ── regression ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["l2", "l1", "huber"])
def test_errors_of_numbers_equal_loops(name, weighted):
    """In units of the deviation of each channel."""
    values, target, weight = numbers()
    found = regression(**{name: 1.0}).loss(lambda image: image, values, target, weight if weighted else None)["loss"]
    of = {"l2": lambda e: e * e, "l1": abs, "huber": lambda e: e * e / 2 if abs(e) < 1 else abs(e) - 0.5}[name]
    for example in range(2):
        terms = []
        for channel in range(2):
            for y in range(5):
                for x in range(6):
                    if not math.isnan(expected := target[example, channel, y, x].item()):
                        error = (values[example, channel, y, x].item() - expected) / STD[channel]
                        terms.append(of(error) * (weight[example, y, x].item() if weighted else 1))
        assert found[example].item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)
    assert found[2] == 0


# ── places without a label ────────────────────────────────────────────────────────────────────────


def gradient(objective, prediction, target, weight) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the losses of examples and the gradient of their sum."""
    prediction = prediction.clone().requires_grad_()
    loss = objective.loss(lambda image: image, prediction, target, weight)["loss"]
    return loss.detach(), torch.autograd.grad(loss.sum(), prediction)[0]


OBJECTIVES = [
    (segmentation(cross_entropy=1.0, dice=1.0, jaccard=1.0), a_batch),
    (regression(l2=1.0, l1=1.0, huber=1.0), numbers),
]


def known_places(target: torch.Tensor) -> torch.Tensor:
    """Return where a target is known, broadcastable to the prediction."""
    return ~target.isnan() if target.is_floating_point() else (target != UNKNOWN)[:, None]


@pytest.mark.parametrize(("objective", "data"), OBJECTIVES, ids=["segmentation", "regression"])
def test_an_example_without_labels_has_no_loss_and_no_gradient(objective, data):
    loss, change = gradient(objective, *data())
    assert loss[-1] == 0
    assert not change[-1].any()
    assert loss[:-1].min() > 0
    assert change[0].any()


@pytest.mark.parametrize(("objective", "data"), OBJECTIVES, ids=["segmentation", "regression"])
def test_predictions_at_unknown_places_change_no_bit(objective, data):
    prediction, target, weight = data()
    known = known_places(target)
    changed = torch.where(known, prediction, 50 * torch.randn_like(prediction))
    assert not torch.equal(prediction, changed)
    for before, after in zip(
        gradient(objective, prediction, target, weight), gradient(objective, changed, target, weight), strict=True
    ):
        assert torch.equal(before, after)
    assert not gradient(objective, prediction, target, weight)[1][~known.expand_as(prediction)].any()


@pytest.mark.parametrize(("objective", "data"), OBJECTIVES, ids=["segmentation", "regression"])
def test_each_example_has_its_own_loss(objective, data):
    prediction, target, weight = data()
    together = objective.loss(lambda image: image, prediction, target, weight)["loss"]
    for example in range(len(prediction)):
        one = slice(example, example + 1)
        alone = objective.loss(lambda image: image, prediction[one], target[one], weight[one])["loss"]
        torch.testing.assert_close(alone, together[one], rtol=1e-6, atol=0)


@pytest.mark.parametrize(("objective", "data"), OBJECTIVES, ids=["segmentation", "regression"])
def test_a_smaller_prediction_is_compared_with_the_center(objective, data):
    prediction, target, weight = data()
    view = (..., slice(1, 4), slice(2, 4))  # one row and two columns less on each side
    found = objective.loss(lambda image: image[view], prediction, target, weight)["loss"]
    expected = objective.loss(lambda image: image, prediction[view], target[view], weight[view])["loss"]
    assert torch.equal(found, expected)


# ── parts ─────────────────────────────────────────────────────────────────────────────────────────


def test_center_and_mean_where():
    values = torch.arange(30.0).reshape(1, 5, 6)
    assert center_of(values, (1, 2)).tolist() == [[[14, 15]]]
    assert center_of(values, (5, 6)) is not None
    known = torch.tensor([[True, False, True], [False, False, False]])
    assert mean_where(torch.tensor([[1.0, math.inf, 3.0], [1.0, math.nan, 2.0]]), known).tolist() == [2.0, 0.0]


@pytest.mark.parametrize("config", [SegmentationConfig, RegressionConfig])
def test_a_loss_without_terms_is_a_mistake(config):
    zeros = {name: "0" for name in config.terms}
    with pytest.raises(UserError, match=f"every term of the loss has the factor 0; raise one of {config.terms[0]}"):
        settings_from(config(), config, zeros)


def test_similarity_is_that_of_scikit_image():
    torch.manual_seed(0)
    target = torch.randn(2, 2, 20, 24)
    prediction = target + 0.5 * torch.randn(target.shape)
    unit = torch.tensor(STD)[:, None, None]
    kwargs = {"channel_axis": 0, "data_range": 4.0, "gaussian_weights": True, "use_sample_covariance": False}
    expected = [
        1 - structural_similarity((x / unit).double().numpy(), (y / unit).double().numpy(), sigma=1.5, **kwargs)
        for x, y in zip(prediction, target, strict=True)
    ]
    found = regression(ssim=1).loss(lambda image: prediction, target, target)["loss"]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert regression(ssim=1).loss(lambda image: target, target, target)["loss"].abs().max() < 1e-6


def test_windows_with_an_unknown_place_have_no_similarity():
    prediction, target = torch.randn(1, 1, 11, 30), torch.randn(1, 1, 11, 30)
    expected = regression(ssim=1).loss(lambda image: prediction[..., :14], target, target[..., :14])["loss"]
    target[..., 3, 14:] = torch.nan
    found = regression(ssim=1).loss(lambda image: prediction, target, target)["loss"]
    torch.testing.assert_close(found, expected)  # 4 windows of 11 columns
    prediction[..., 14:] += 100
    assert torch.equal(regression(ssim=1).loss(lambda image: prediction, target, target)["loss"], found)
    weight = torch.zeros(1, 11, 30)
    assert not regression(ssim=1).loss(lambda image: prediction, target, target, weight)["loss"].any()
    weight[:, 5, 6] = 1  # the center of the second window
    alone = regression(ssim=1).loss(lambda image: prediction[..., 1:12], target, target[..., 1:12])["loss"]
    torch.testing.assert_close(
        regression(ssim=1).loss(lambda image: prediction, target, target, weight)["loss"], alone / 4
    )
