"""How good pictures are, in numbers that anyone can compute again."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

DIGIT_LEVELS = 16
"""Digits are compared on scikit-learn's scale, 0 to 16."""


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
    return torch.cat([torch.cdist(chunk, b).min(dim=1).values for chunk in a.float().split(256)])


def evaluate_pixels(drawn: Tensor, real: Tensor, bit_depth: int, seed: int = 0) -> dict[str, Any]:
    """Compares pictures, integers (N, C, H, W), with real ones in their pixels, 0 to 1 per channel.

    The floor is what two random halves of the real pictures show of each other.
    """
    scale = 2**bit_depth - 1
    drawn, real = drawn.flatten(1).double() / scale, real.flatten(1).double() / scale
    shuffled = real[torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))]
    one, other = shuffled.chunk(2)
    return {
        "num_images": len(drawn),
        "num_real": len(real),
        "frechet_distance_pixels": frechet_distance(drawn, real),
        "frechet_distance_pixels_floor": frechet_distance(one, other),
        "nearest_training_image": float(nearest_distances(drawn, real.float()).median()),
        "nearest_training_image_floor": float(nearest_distances(one, other.float()).median()),
    }


def evaluate_digits(drawn: Tensor, labels: list[int], seed: int = 0) -> dict[str, Any]:
    """Compares 8-bit digits (N, 1, 8, 8) with scikit-learn's 1,797 on its scale of 0 to 16.

    A support vector machine trained on the real digits names the drawn ones; a drawn digit nearer than 5
    to a real one counts as a copy.
    """
    from sklearn.datasets import load_digits
    from sklearn.svm import SVC

    real, names = load_digits(return_X_y=True)
    pixels = (drawn.flatten(1).double() * (DIGIT_LEVELS / 255)).round()
    real_pixels = torch.from_numpy(real)
    one, other = real_pixels[torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))].chunk(2)
    named = SVC(gamma=0.001, C=10).fit(real, names).predict(pixels.numpy())
    return {
        "num_images": len(pixels),
        "label_agreement": float(np.mean(named == np.array(labels))),
        "copies": float((nearest_distances(pixels, real_pixels.float()) < 5).float().mean()),
        "copies_floor": float((nearest_distances(one, other.float()) < 5).float().mean()),
        "frechet_distance_pixels": frechet_distance(pixels, real_pixels),
        "frechet_distance_pixels_floor": frechet_distance(one, other),
    }
