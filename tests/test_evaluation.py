import pytest
import torch
from sklearn.datasets import load_digits

from diffunet.evaluation import closest_pairs, evaluate_digits, evaluate_pixels


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
    assert copied["memorised"] == 1
    assert copied["memorised_floor"] < 0.1
    assert copied["frechet_distance_floor"] == pytest.approx(51, abs=8)           # 200 are few
    assert evaluate_digits(images, labels.tolist())["frechet_distance_floor"] == pytest.approx(18, abs=2.5)
    wrong = evaluate_digits(images[:200], ((labels[:200] + 1) % 10).tolist())
    assert wrong["label_agreement"] == 0
    noise = evaluate_digits(torch.randint(0, 256, (200, 1, 8, 8), dtype=torch.uint8), [0] * 200)
    assert noise["frechet_distance"] > 500


def test_pixels_of_any_pictures():
    images, _ = real_digits()
    found = evaluate_pixels(images[:500], images, 8)
    assert found["memorised"] == 1
    assert found["memorised_floor"] < 0.1
    assert found["frechet_distance"] < 3 * found["frechet_distance_floor"]
    assert evaluate_pixels(255 - images[:500], images, 8)["frechet_distance"] > 30 * found["frechet_distance"]
    large = torch.randint(0, 256, (20, 3, 40, 50), dtype=torch.uint8)
    assert evaluate_pixels(large, large, 8)["features"].startswith("768 pixel values")


def test_the_closest_pairs_are_shown_nearest_first():
    images, _ = real_digits()
    drawn = images[[100, 5, 700]].clone()
    drawn[0] = 255 - drawn[0]
    drawn[2, 0, 0, 0] = 3
    pairs = closest_pairs(drawn, images, 2)
    assert torch.equal(pairs, torch.stack([drawn[1], images[5], drawn[2], images[700]]))
