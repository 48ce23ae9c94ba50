import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from diffunet.data.dataset import DataConfig, load_images
from diffunet.evaluation.report import closest_pairs, compare, evaluate_pictures, frechet_name, memory
from diffunet.evaluation.features import INCEPTION_SHA, DigitFeatures, PixelFeatures
from diffunet.evaluation.metrics import frechet_distance
from diffunet.core.errors import UserError


@pytest.fixture(scope="module")
def digits():
    return load_images(DataConfig(), labelled=True)


@pytest.fixture(scope="module")
def features(digits):
    trained, _ = digits.split_held_out()
    batch = trained.__getitems__(list(range(len(trained))))
    return DigitFeatures(batch["image"], batch["label"])


def record_of(pictures, digits, features, labels=None):
    return evaluate_pictures(pictures, [None] * len(pictures) if labels is None else labels.tolist(), digits, features)


def test_a_planted_memoriser_is_caught(digits, features):
    """A "model" that returns training pictures with noise; new real pictures are not taken for one."""
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


def test_a_memoriser_of_one_in_five_is_caught_in_any_features():
    generator = torch.Generator().manual_seed(0)
    trained, held_out, new, noise = torch.randn(4, 1000, 20, generator=generator)
    some = torch.cat([trained[:60] + 0.01 * noise[:60], new[:240]])
    assert memory(some, trained, held_out)["verdict"] is True
    assert memory(some, trained, held_out)["value"] == pytest.approx(0.2 + 0.8 * 0.05, abs=0.04)
    assert memory(new[:300], trained, held_out)["verdict"] is False
    assert memory(new[:300], trained, held_out[:0])["verdict"] is False


def test_names_and_distances_of_digits(digits, features):
    images, labels = digits.images[:300], digits.labels[:300]
    right = record_of(images, digits, features, labels)
    assert right["class_accuracy"]["value"] > 0.99
    assert right["class_accuracy"]["floor"] > 0.9
    wrong = record_of(images, digits, features, (labels + 1) % 10)
    assert wrong["class_accuracy"]["value"] < 0.02
    assert "class_accuracy" not in record_of(images, digits, features)
    found = right["metrics"]["frechet_distance"]
    assert found["floor"] == pytest.approx(35, abs=8)                            # 300 are few
    noise = torch.randint(0, 256, (300, 1, 8, 8), dtype=torch.uint8)
    far = record_of(noise, digits, features)["metrics"]["frechet_distance"]
    assert far["value"] > 10 * found["value"]
    assert far["error"] < far["value"] / 10


def test_the_distance_is_to_all_real_pictures_on_scikit_learns_scale(digits, features):
    pixels = torch.from_numpy(load_digits().data).double()
    found = record_of(digits.images[:200], digits, features)
    expected = frechet_distance(pixels[:200], pixels)
    assert found["metrics"]["frechet_distance"]["value"] == pytest.approx(expected, abs=1e-4)
    assert found["real"]["num_images"] == 1797
    assert found["real"]["held_out"] == 89


def test_the_record_follows_from_the_pictures(digits, features):
    first, again = (record_of(digits.images[50:100], digits, features) for _ in range(2))
    assert first == again
    other = load_images(DataConfig(held_out=0.1), labelled=True)
    assert record_of(digits.images[50:100], other, features)["real"]["sha256"] != first["real"]["sha256"]


def test_finite_at_small_counts_and_refused_below(digits, features):
    found = record_of(digits.images[:3], digits, features)
    assert all(np.isfinite(value) for metric in found["metrics"].values() for value in metric.values())
    with pytest.raises(UserError, match="2 drawn and 1797 real pictures: too few to compare; at least 3 and 6"):
        record_of(digits.images[:2], digits, features)


def test_fid_is_only_what_is_fid():
    class Inception(PixelFeatures):
        weights = INCEPTION_SHA + "0" * 56

    inception, others = Inception(8), Inception(8)
    others.weights = "1" * 64
    assert frechet_name(inception, 50_000, 50_000) == "FID-50k"
    assert frechet_name(inception, 1000, 50_000) == "FID-1k"
    assert frechet_name(inception, 1000, 1797) == "FID-1k against 1.797k"
    assert frechet_name(others, 50_000, 50_000) == "frechet_distance"
    assert frechet_name(PixelFeatures(8), 50_000, 50_000) == "frechet_distance"
    drawn, real = torch.randn(2, 30, 4)
    assert "FID-1k" in compare(drawn, real, "FID-1k")


def test_errors_and_floors_stand_beside_every_metric():
    real = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    drawn = 0.5 + torch.randn(150, 3, generator=torch.Generator().manual_seed(1))
    found = compare(drawn, real)
    assert found.keys() == {"frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage"}
    assert all(metric.keys() == {"value", "error", "floor"} for metric in found.values())
    distance = found["frechet_distance"]
    assert distance["value"] == pytest.approx(0.75, abs=0.3)
    assert distance["value"] > distance["floor"] + 3 * distance["error"]
    assert found["precision"]["floor"] > 0.85


def test_the_closest_pairs_are_shown_nearest_first(digits):
    images, small = digits.images, PixelFeatures(8)
    drawn = images[[100, 5, 700]].clone()
    drawn[0] = 255 - drawn[0]
    drawn[2, 0, 0, 0] = 3
    pairs = closest_pairs(drawn, images, small(drawn), small(images), 2)
    assert torch.equal(pairs, torch.stack([drawn[1], images[5], drawn[2], images[700]]))
