"""How good pictures are, in numbers that anyone can compute again."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .metrics import (
    error_of,
    floor_of,
    frechet_distance,
    kernel_distance,
    memorised,
    nearest_distances,
    neighbourhoods,
    splits,
)

DIGIT_LEVELS = 16
"""Digits are compared on scikit-learn's scale, 0 to 16."""
COPY = 5.0
"""A drawn digit nearer than this to a real one, on that scale, counts as a copy."""


def compare(drawn: Tensor, real: Tensor) -> dict[str, float]:
    """Every metric of two sets of features (N, D), with its standard error and its floor.

    The floor is what it says of as many real pictures (at most half of them) against the others.
    """
    found = {"num_images": len(drawn), "num_real": len(real)}
    for metric in (frechet_distance, kernel_distance):
        found[metric.__name__] = metric(drawn, real)
        found[f"{metric.__name__}_error"] = error_of(metric, drawn, real)
        found[f"{metric.__name__}_floor"] = floor_of(metric, real, len(drawn))
    of_real = neighbourhoods(*next(splits(real, len(drawn), 1)))
    for name, value in neighbourhoods(drawn, real).items():
        found |= {name: value, f"{name}_floor": of_real[name]}
    memory = {"memorised": memorised(drawn, real), "memorised_floor": floor_of(memorised, real, len(drawn))}
    return found | memory


def evaluate_pixels(drawn: Tensor, real: Tensor, bit_depth: int) -> dict[str, Any]:
    """Compares pictures, integers (N, C, H, W), with real ones in their pixels, 0 to 1 per channel.

    Larger pictures are first averaged down to at most 16 pixels a side.
    """
    drawn, real = (_small(pictures, 2**bit_depth - 1) for pictures in (drawn, real))
    return {"features": f"{drawn.shape[1]} pixel values, averaged down to 16 a side"} | compare(drawn, real)


def closest_pairs(drawn: Tensor, real: Tensor, number: int) -> Tensor:
    """The drawn pictures nearest to a real one, nearest first, each before that one: (2 * number, C, H, W)."""
    a, b = _small(drawn, 1), _small(real, 1)
    near = [torch.cdist(chunk, b).min(dim=1) for chunk in a.split(256)]
    order = torch.cat([found.values for found in near]).argsort()[:number]
    pairs = torch.stack([drawn[order], real[torch.cat([found.indices for found in near])[order]]], dim=1)
    return pairs.flatten(0, 1)


def _small(pictures: Tensor, scale: int) -> Tensor:
    """(N, features) in fp32."""
    size = [min(side, 16) for side in pictures.shape[-2:]]
    chunks = [F.adaptive_avg_pool2d(chunk.float() / scale, size) for chunk in pictures.split(1024)]
    return torch.cat(chunks).flatten(1)


def evaluate_digits(drawn: Tensor, labels: list[int]) -> dict[str, Any]:
    """Compares 8-bit digits (N, 1, 8, 8) with scikit-learn's 1,797 on its scale of 0 to 16.

    A support vector machine trained on the real digits names the drawn ones.
    """
    from sklearn.datasets import load_digits
    from sklearn.svm import SVC

    real, names = load_digits(return_X_y=True)
    pixels = (drawn.flatten(1).float() * (DIGIT_LEVELS / 255)).round()
    real_pixels = torch.from_numpy(real).float()
    named = SVC(gamma=0.001, C=10).fit(real, names).predict(pixels.numpy())
    return {
        "features": "64 pixel values, 0 to 16",
        **compare(pixels, real_pixels),
        "label_agreement": float(np.mean(named == np.array(labels))),
        "copies": _copies(pixels, real_pixels),
        "copies_floor": floor_of(_copies, real_pixels, len(pixels)),
    }


def _copies(a: Tensor, b: Tensor) -> float:
    return float((nearest_distances(a, b) < COPY).float().mean())
