"""How good pictures are, in numbers that anyone can compute again."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

DIGIT_LEVELS = 16
"""Digits are compared on scikit-learn's scale, 0 to 16."""
COPY = 5.0
"""A drawn digit nearer than this to a real one, on that scale, counts as a copy."""


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of the Gaussians fitted to two sets of features (N, D) (Heusel et al. 2017, equation 6)."""

    def moments(features: Tensor) -> tuple[Tensor, Tensor]:
        return features.mean(0), torch.cov(features.T)

    (mean_a, cov_a), (mean_b, cov_b) = moments(a.double()), moments(b.double())
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    shared = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * shared)


def nearest_distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distance from each row of a, (N, D), to its nearest row of b, (N,)."""
    return torch.cat([torch.cdist(chunk, b).min(dim=1).values for chunk in a.split(256)])


def floor_of(metric: Callable[[Tensor, Tensor], float], real: Tensor, splits: int = 5) -> float:
    """What a metric says of two random halves of the real features, averaged over some splits."""
    generator = torch.Generator().manual_seed(0)
    halves = [real[torch.randperm(len(real), generator=generator)].chunk(2) for _ in range(splits)]
    return float(np.mean([metric(one, other) for one, other in halves]))


def evaluate_pixels(drawn: Tensor, real: Tensor, bit_depth: int) -> dict[str, Any]:
    """Compares pictures, integers (N, C, H, W), with real ones in their pixels, 0 to 1 per channel.

    Larger pictures are first averaged down to at most 16 pixels a side.
    """
    drawn, real = (_small(pictures, 2**bit_depth - 1) for pictures in (drawn, real))
    return {
        "num_images": len(drawn),
        "num_real": len(real),
        "features": f"{drawn.shape[1]} pixel values",
        "frechet_distance": frechet_distance(drawn, real),
        "frechet_distance_floor": floor_of(frechet_distance, real, splits=1),
        "nearest_training_image": _median_nearest(drawn, real),
        "nearest_training_image_floor": floor_of(_median_nearest, real, splits=1),
    }


def _small(pictures: Tensor, scale: int) -> Tensor:
    """(N, features) in fp32."""
    size = [min(side, 16) for side in pictures.shape[-2:]]
    chunks = [F.adaptive_avg_pool2d(chunk.float() / scale, size) for chunk in pictures.split(1024)]
    return torch.cat(chunks).flatten(1)


def _median_nearest(a: Tensor, b: Tensor) -> float:
    return float(nearest_distances(a, b).median())


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
        "num_images": len(pixels),
        "num_real": len(real),
        "features": "64 pixel values, 0 to 16",
        "label_agreement": float(np.mean(named == np.array(labels))),
        "copies": _copies(pixels, real_pixels),
        "copies_floor": floor_of(_copies, real_pixels),
        "frechet_distance": frechet_distance(pixels, real_pixels),
        "frechet_distance_floor": floor_of(frechet_distance, real_pixels),
    }


def _copies(a: Tensor, b: Tensor) -> float:
    return float((nearest_distances(a, b) < COPY).float().mean())
