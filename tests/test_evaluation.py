import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.datasets import load_digits

from diffunet.evaluation import evaluate_digits, evaluate_pixels, frechet_distance, nearest_distances


def test_frechet_distance_is_the_formula():
    """With scipy's matrix square root, and for features with fewer examples than dimensions."""
    generator = np.random.default_rng(0)
    for number in (200, 5):
        a, b = generator.normal(size=(number, 8)), 1 + 2 * generator.normal(size=(number + 3, 8))
        cov_a, cov_b = np.cov(a.T), np.cov(b.T)
        root = scipy.linalg.sqrtm(cov_a @ cov_b).real
        expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)
        found = frechet_distance(torch.from_numpy(a), torch.from_numpy(b))
        assert found == pytest.approx(expected, abs=1e-4)


def test_frechet_distance_in_closed_form():
    a = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, a + 2) == pytest.approx(12, abs=1e-6)
    assert frechet_distance(a, 3 * a) == pytest.approx(12, rel=0.03)


def test_nearest_distances():
    found = nearest_distances(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 1.0], [3.0, 0.0]]))
    assert found.tolist() == [1, 4]


def real_digits():
    found = load_digits()
    images = torch.from_numpy((found.images * 255 / 16).round()).to(torch.uint8)[:, None]
    return images, found.target


def test_copies_and_wrong_labels_of_digits_are_seen():
    images, labels = real_digits()
    copied = evaluate_digits(images[:200], labels[:200].tolist())
    assert copied["copies"] == 1
    assert copied["label_agreement"] == 1
    assert copied["copies_floor"] < 0.02
    assert copied["frechet_distance_floor"] == pytest.approx(18.5, abs=2.5)
    wrong = evaluate_digits(images[:200], ((labels[:200] + 1) % 10).tolist())
    assert wrong["label_agreement"] == 0
    noise = evaluate_digits(torch.randint(0, 256, (200, 1, 8, 8), dtype=torch.uint8), [0] * 200)
    assert noise["frechet_distance"] > 500


def test_pixels_of_any_pictures():
    images, _ = real_digits()
    found = evaluate_pixels(images[:500], images, 8)
    assert found["nearest_training_image"] == 0
    assert found["nearest_training_image_floor"] > 0.5
    assert found["frechet_distance"] < 3 * found["frechet_distance_floor"]
    assert evaluate_pixels(255 - images[:500], images, 8)["frechet_distance"] > 30 * found["frechet_distance"]
    large = torch.randint(0, 256, (20, 3, 40, 50), dtype=torch.uint8)
    assert evaluate_pixels(large, large, 8)["features"] == "768 pixel values"
