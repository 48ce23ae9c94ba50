"""Distances between two sets of features, (N, D) and (M, D), whatever network made them."""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.rng import fixed_subset

CHUNK = 256
"""Rows of a distance matrix that are in memory together."""


class Gaussian:
    """The mean and covariance of features (N, D), in fp64."""

    def __init__(self, features: Tensor):
        features = features.double()
        self.mean, self.cov = features.mean(0), torch.cov(features.T)

    @cached_property
    def sqrt_cov(self) -> Tensor:
        """The symmetric square root of the covariance, (D, D)."""
        values, vectors = torch.linalg.eigh(self.cov)
        return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def frechet_between(a: Gaussian, b: Gaussian) -> float:
    """Return the Fréchet distance of two Gaussians (Heusel et al. 2017, equation 6)."""
    shared = torch.linalg.eigvalsh(b.sqrt_cov @ a.cov @ b.sqrt_cov).clamp(min=0).sqrt().sum()
    return float((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * shared)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Return the Fréchet distance of the Gaussians fitted to two sets."""
    return frechet_between(Gaussian(a), Gaussian(b))


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Return the unbiased squared MMD with the kernel (x·y / D + 1)³, which is KID (Bińkowski et al. 2018).

    Unlike the Fréchet distance it has no bias at small counts: over sets from one source its mean is 0.
    """
    a, b = a.double(), b.double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def among(x: Tensor) -> Tensor:
        values = kernel(x, x)
        return (values.sum() - values.trace()) / (len(x) * (len(x) - 1))

    return float(among(a) + among(b) - 2 * kernel(a, b).mean())


# ── nearest neighbors ─────────────────────────────────────────────────────────────────────────────


def pairwise_distances(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """Yield the Euclidean distances of CHUNK rows of a at a time to all rows of b, (<= CHUNK, M).

    `cdist` computes |x|² + |y|² - 2 x·y, which cancels in fp32 if all rows share an offset, so the median is subtracted
    first. Unlike the mean it is a value of b, so distances of integer features, and ties between them, stay exact.
    """
    center = b.median(0).values
    b = b - center
    for chunk in a.split(CHUNK):
        yield torch.cdist(chunk - center, b)


def nearest_neighbors(a: Tensor, b: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """Return the distance from each row of a to its k-th nearest row of b, and that row's index, (N,) each."""
    found = [d.min(dim=1) if k == 1 else d.kthvalue(k, dim=1) for d in pairwise_distances(a, b)]
    return torch.cat([near.values for near in found]), torch.cat([near.indices for near in found])


def prdc(samples: Tensor, real: Tensor, k: int = 5) -> dict[str, float]:
    """Return precision, recall, density and coverage, by balls up to the k-th nearest neighbor in the own set.

    precision: share of samples in a ball of a real image; recall: share of real images in a ball of a sample
    (Kynkäänniemi et al. 2019). density: balls of real images around a sample, over k; coverage: share of real
    images with a sample in their ball (Naeem et al. 2020, more robust). All but the density are in [0, 1].
    """
    k = min(k, len(samples) - 1, len(real) - 1)
    (real_radius, _), (sample_radius, _) = (nearest_neighbors(x, x, k + 1) for x in (real, samples))  # 1st: itself
    balls, (recalled, covered) = [], torch.zeros(2, len(real), dtype=torch.bool)
    for distance, radius in zip(pairwise_distances(samples, real), sample_radius.split(CHUNK), strict=True):
        in_real_ball = distance <= real_radius  # (chunk, M)
        balls.append(in_real_ball.sum(dim=1))
        recalled |= (distance <= radius[:, None]).any(dim=0)
        covered |= in_real_ball.any(dim=0)
    num_balls = torch.cat(balls)
    return {
        "precision": float((num_balls > 0).double().mean()),
        "recall": float(recalled.double().mean()),
        "density": float(num_balls.double().mean() / k),
        "coverage": float(covered.double().mean()),
    }


def nearest_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return the Euclidean distance from each row of a to its nearest row of b, (N,)."""
    return nearest_neighbors(a, b)[0]


def copy_threshold(trained: Tensor, share: float = 0.05, limit: int = 2000) -> float:
    """Return the distance within which only `share` of (at most `limit`) training images have another one."""
    subset = trained[fixed_subset(len(trained), limit)]
    return float(nearest_neighbors(subset, trained, k=2)[0].quantile(share))


def memorization(images: Tensor, trained: Tensor, threshold: float) -> tuple[float, float]:
    """Return the share of images nearer than `threshold` to a training image, and its standard error.

    It is 1 for copies, and about the `share` of `copy_threshold` for new images from the same source.
    """
    share = float((nearest_distances(images, trained) < threshold).double().mean())
    number = len(images) + 4  # Agresti & Coull: no error of 0 at a share of 0 or 1
    adjusted = (share * len(images) + 2) / number
    return share, float(np.sqrt(adjusted * (1 - adjusted) / number))


# ── errors and floors ─────────────────────────────────────────────────────────────────────────────


def jackknife_error(metric: Callable[[Tensor, Tensor], Any], samples: Tensor, real: Tensor, groups: int = 10) -> Any:
    """Return the standard error of a metric due to the choice of samples: the jackknife over groups of them.

    An array if the metric returns several values.
    """
    parts = fixed_subset(len(samples), len(samples)).tensor_split(min(groups, len(samples)))
    without = [metric(samples[torch.cat(parts[:left] + parts[left + 1 :])], real) for left in range(len(parts))]
    return np.sqrt((len(parts) - 1) * np.var(without, axis=0))


def splits(real: Tensor, count: int, number: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield `number` random splits into `count` real images (at most half of them) and the others, always the same."""
    generator = torch.Generator().manual_seed(0)
    count = min(count, len(real) // 2)
    for _ in range(number):
        order = torch.randperm(len(real), generator=generator)
        yield real[order[:count]], real[order[count:]]


def real_vs_real(metric: Callable[[Tensor, Tensor], float], real: Tensor, count: int, number: int = 5) -> float:
    """Return the mean of a metric over `number` splits of the real images, `count` of them against the others."""
    return float(np.mean([metric(some, others) for some, others in splits(real, count, number)]))
