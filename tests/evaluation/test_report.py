import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from diffunet.conditions.label import LabelConfig
from diffunet.core.errors import UserError
from diffunet.data.config import DataConfig
from diffunet.data.dataset import load_images
from diffunet.evaluation.features import INCEPTION_SHA, DigitFeatures, PixelFeatures
from diffunet.evaluation.metrics import frechet_distance
from diffunet.evaluation.report import (
    Evaluation,
    closest_pairs,
    compare,
    evaluate_images,
    format_record,
    frechet_name,
    memorization_record,
)


@pytest.fixture(scope="module")
def digits():
    return load_images(DataConfig(), {"label": LabelConfig()})


@pytest.fixture(scope="module")
def features(digits):
    trained, _ = digits.split_held_out()
    batch = trained.__getitems__(list(range(len(trained))))
    return DigitFeatures(batch["image"], batch["label"])


def record_of(samples, digits, features, labels=None):
    return evaluate_images(samples, {} if labels is None else {"label": labels.tolist()}, digits, features)


def test_noisy_copies_are_memorization_and_new_images_are_not(digits, features):
    trained, held_out = digits.split_held_out()
    noise = torch.randn(400, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    copies = trained.__getitems__(list(range(400)))["image"].float() + 8 * noise
    found = record_of(copies.clamp(0, 255).round().to(torch.uint8), digits, features)["memorization"]["features"]
    assert found["value"] > 0.95
    assert found["verdict"] is True
    assert found["median_distance"] < 0.5 * found["floor_median_distance"]
    new = record_of(held_out.__getitems__(list(range(len(held_out))))["image"], digits, features)
    assert new["memorization"]["features"]["value"] == new["memorization"]["features"]["floor"] < 0.1
    assert new["memorization"]["features"]["verdict"] is False


def test_copies_among_new_images_are_memorization():
    generator = torch.Generator().manual_seed(0)
    trained, held_out, new, noise = torch.randn(4, 1000, 20, generator=generator)
    samples = torch.cat([trained[:60] + 0.01 * noise[:60], new[:240]])
    assert memorization_record(samples, trained, held_out)["verdict"] is True
    assert memorization_record(samples, trained, held_out)["value"] == pytest.approx(0.2 + 0.8 * 0.05, abs=0.04)
    assert memorization_record(new[:300], trained, held_out)["verdict"] is False
    assert memorization_record(new[:300], trained, held_out[:0])["verdict"] is False


def test_class_accuracy_and_distances_of_digits(digits, features):
    images, labels = digits.images[:300], digits.columns["label"].values[:300]
    right = record_of(images, digits, features, labels)
    assert right["class_accuracy"]["value"] > 0.99
    assert right["class_accuracy"]["floor"] > 0.9
    wrong = record_of(images, digits, features, (labels + 1) % 10)
    assert wrong["class_accuracy"]["value"] < 0.02
    assert "class_accuracy" not in record_of(images, digits, features)
    assert "class_accuracy" not in evaluate_images(images[:3], {"label": [None] * 3}, digits, features)
    assert "class_accuracy" not in evaluate_images(images[:3], {"style": labels[:3].tolist()}, digits, features)
    found = right["metrics"]["frechet_distance"]
    assert found["floor"] == pytest.approx(35, abs=8)  # 300 are few
    noise = torch.randint(0, 256, (300, 1, 8, 8), dtype=torch.uint8)
    far = record_of(noise, digits, features)["metrics"]["frechet_distance"]
    assert far["value"] > 10 * found["value"]
    assert far["error"] < far["value"] / 10


def test_frechet_distance_is_to_all_real_images_on_scikit_learns_scale(digits, features):
    pixels = torch.from_numpy(load_digits().data).double()
    found = record_of(digits.images[:200], digits, features)
    expected = frechet_distance(pixels[:200], pixels)
    assert found["metrics"]["frechet_distance"]["value"] == pytest.approx(expected, abs=1e-4)
    assert found["real"]["num_images"] == 1797
    assert found["real"]["held_out"] == 89


def test_records_are_reproducible(digits, features):
    first, again = (record_of(digits.images[50:100], digits, features) for _ in range(2))
    assert first == again
    other = load_images(DataConfig(held_out=0.1))
    assert record_of(digits.images[50:100], other, features)["real"]["sha256"] != first["real"]["sha256"]


def test_metrics_of_few_images_are_finite_and_of_fewer_an_error(digits, features):
    found = record_of(digits.images[:3], digits, features)
    assert all(np.isfinite(value) for metric in found["metrics"].values() for value in metric.values())
    with pytest.raises(UserError, match=r"\(got 2 samples and 1797 real images\); at least 3 and 6"):
        record_of(digits.images[:2], digits, features)


def test_only_the_features_of_fid_give_fid():
    class Inception(PixelFeatures):
        weights = INCEPTION_SHA + "0" * 56

    inception, others = Inception(8), Inception(8)
    others.weights = "1" * 64
    assert frechet_name(inception, 50_000, 50_000) == "FID-50k"
    assert frechet_name(inception, 1000, 50_000) == "FID-1k"
    assert frechet_name(inception, 1000, 1797) == "FID-1k against 1.797k"
    assert frechet_name(others, 50_000, 50_000) == "frechet_distance"
    assert frechet_name(PixelFeatures(8), 50_000, 50_000) == "frechet_distance"
    samples, real = torch.randn(2, 30, 4)
    assert "FID-1k" in compare(samples, real, "FID-1k")


def test_every_metric_has_an_error_and_a_floor():
    real = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    samples = 0.5 + torch.randn(150, 3, generator=torch.Generator().manual_seed(1))
    found = compare(samples, real)
    assert found.keys() == {"frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage"}
    assert all(metric.keys() == {"value", "error", "floor"} for metric in found.values())
    distance = found["frechet_distance"]
    assert distance["value"] == pytest.approx(0.75, abs=0.3)
    assert distance["value"] > distance["floor"] + 3 * distance["error"]
    assert found["precision"]["floor"] > 0.85


def test_closest_pairs_come_nearest_first(digits):
    images, small = digits.images, PixelFeatures(8)
    samples = images[[100, 5, 700]].clone()
    samples[0] = 255 - samples[0]
    samples[2, 0, 0, 0] = 3
    pairs = closest_pairs(samples, images, small(samples), small(images), 2)
    assert torch.equal(pairs, torch.stack([samples[1], images[5], samples[2], images[700]]))


def test_evaluation_adds_the_source_and_prints_a_table(digits, features):
    samples, labels = digits.images[:40], digits.columns["label"].values[:40]
    source = {"num_images": 40, "sampler": "dpm++", "steps": 25, "seed": 3}
    evaluation = Evaluation.of(source, samples, {"label": labels.tolist()}, digits, features)
    record = evaluation.record
    assert record["samples"] == source
    assert record["real"] | {"path": "digits", "split": "train", "num_images": 1797} == record["real"]
    assert record["diffunet"].keys() == {"version", "commit"}
    closest = evaluation.closest()
    assert closest.keys() == {"pixels"}
    assert torch.equal(closest["pixels"][::2], closest["pixels"][1::2])  # each is its own nearest image
    lines = format_record(record).splitlines()
    assert lines[0] == "40 samples (dpm++, 25 steps, seed 3) against 1,797 real images of digits"
    assert lines[1] == "features: 64 pixels, 0 to 16 (64 dimensions)"
    distance = record["metrics"]["frechet_distance"]
    table = {line[:26].strip(): line[26:].split() for line in lines[4:-1]}
    assert table["frechet distance"] == [
        f"{distance['value']:.4g}",
        "±",
        f"{distance['error']:.2g}",
        f"{distance['floor']:.4g}",
    ]
    assert {"kernel distance", "precision", "memorization, in features", "class accuracy"} < table.keys()
    assert lines[-1].startswith("MEMORIZED")
    record["memorization"]["features"]["verdict"] = False
    record["samples"] = {"folder": "images", "num_images": 40}
    assert format_record(record).startswith("40 samples against")
    assert "MEMORIZED" not in format_record(record)


def test_the_table_of_conditional_metrics_has_their_references(digits, features):
    source = {"folder": "images", "num_images": 30}
    record = Evaluation.of(source, digits.images[:30], {}, digits, features).record
    row = {"value": 0.6, "error": 0.01, "reference": 7 / 9}
    record["conditional"] = {"examples": 90, "samples_per_example": 8, "seed": 0, "metrics": {"truth_coverage": row}}
    lines = format_record(record).splitlines()
    assert "conditions of 90 held-out examples, 8 samples of each" in lines
    line = next(line for line in lines if line.startswith("truth coverage"))
    assert line[26:].split() == ["0.6", "±", "0.01", "0.7778"]
