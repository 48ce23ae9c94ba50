"""Distances between two sets of features, each (N, D); what the features are is somebody else's business."""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Gaussian:
    """The Gaussian fitted to features (N, D), in fp64."""

    def __init__(self, features: Tensor):
        features = features.double()
        self.mean, self.cov = features.mean(0), torch.cov(features.T)

    @cached_property
    def root(self) -> Tensor:
        """The symmetric square root of the covariance."""
        values, vectors = torch.linalg.eigh(self.cov)
        return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def frechet_between(a: Gaussian, b: Gaussian) -> float:
    """The Fréchet distance of two Gaussians (Heusel et al. 2017, equation 6)."""
    shared = torch.linalg.eigvalsh(b.root @ a.cov @ b.root).clamp(min=0).sqrt().sum()
    return float((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * shared)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """The Fréchet distance of the Gaussians fitted to two sets."""
    return frechet_between(Gaussian(a), Gaussian(b))


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Squared maximum mean discrepancy, unbiased, with the kernel (x·y / D + 1)³ (Bińkowski et al. 2018).

    Unlike the Fréchet distance it is right at small counts: its mean over sets from one source is 0.
    """
    a, b = a.double(), b.double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def among(x: Tensor) -> Tensor:
        values = kernel(x, x)
        return (values.sum() - values.trace()) / (len(x) * (len(x) - 1))

    return float(among(a) + among(b) - 2 * kernel(a, b).mean())


def prdc(drawn: Tensor, real: Tensor, k: int = 5) -> dict[str, float]:
    """How the sets cover each other, by balls that reach to the k-th nearest neighbour in one's own set.

    precision: drawn pictures in a ball of a real one; recall: real ones in a ball of a drawn one
    (Kynkäänniemi et al. 2019). density: real balls around a drawn picture, over k; coverage: real balls
    that hold a drawn one (Naeem et al. 2020, less upset by outliers). All are 0 to 1 but the density.
    """
    k = min(k, len(drawn) - 1, len(real) - 1)
    reach_real, reach_drawn = _knn_radius(real, k), _knn_radius(drawn, k)
    inside_real, inside_drawn, near_real = [], torch.zeros(len(real), dtype=torch.bool), []
    nearest = torch.full((len(real),), torch.inf)
    for chunk, reach in zip(drawn.split(256), reach_drawn.split(256), strict=True):
        distance = torch.cdist(chunk, real)                                       # (chunk, real)
        inside_real.append((distance <= reach_real).any(dim=1))
        near_real.append((distance <= reach_real).sum(dim=1))
        inside_drawn |= (distance <= reach[:, None]).any(dim=0)
        nearest = torch.minimum(nearest, distance.min(dim=0).values)
    return {
        "precision": float(torch.cat(inside_real).double().mean()),
        "recall": float(inside_drawn.double().mean()),
        "density": float(torch.cat(near_real).double().mean() / k),
        "coverage": float((nearest <= reach_real).double().mean()),
    }


def _knn_radius(features: Tensor, k: int) -> Tensor:
    """The distance from each row to its k-th nearest other one."""
    chunks = [torch.cdist(chunk, features).kthvalue(k + 1, dim=1).values for chunk in features.split(256)]
    return torch.cat(chunks)


def nearest_distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distance from each row of a to its nearest row of b, (N,)."""
    return torch.cat([torch.cdist(chunk, b).min(dim=1).values for chunk in a.split(256)])


def copy_threshold(trained: Tensor, share: float = 0.05, sample: int = 2000) -> float:
    """The distance within which only `share` of the training pictures have another one; of a sample of them."""
    some = trained[torch.randperm(len(trained), generator=torch.Generator().manual_seed(0))[:sample]]
    to_another = [torch.cdist(chunk, trained).kthvalue(2, dim=1).values for chunk in some.split(256)]
    return float(torch.cat(to_another).quantile(share))


def memorization(pictures: Tensor, trained: Tensor, near: float) -> tuple[float, float]:
    """The share of pictures that lie within `near` of a training picture, and its standard error.

    1 for copies; for new pictures from the same source about the `share` of `copy_threshold`.
    """
    share = float((nearest_distances(pictures, trained) < near).double().mean())
    number = len(pictures) + 4                                 # Agresti & Coull: no error of 0 at a share of 0 or 1
    adjusted = (share * len(pictures) + 2) / number
    return share, float(np.sqrt(adjusted * (1 - adjusted) / number))


def jackknife_error(metric: Callable[[Tensor, Tensor], Any], drawn: Tensor, real: Tensor, groups: int = 10) -> Any:
    """The standard error of a metric for the drawn pictures' being these: the jackknife over groups of them.

    Of several metrics, where it gives an array.
    """
    order = torch.randperm(len(drawn), generator=torch.Generator().manual_seed(0))
    parts = order.tensor_split(min(groups, len(drawn)))
    without = [metric(drawn[torch.cat(parts[:left] + parts[left + 1 :])], real) for left in range(len(parts))]
    return np.sqrt((len(parts) - 1) * np.var(without, axis=0))


def splits(real: Tensor, count: int, number: int) -> Iterator[tuple[Tensor, Tensor]]:
    """`count` real pictures (at most half of them) and the others, drawn anew `number` times, always the same."""
    generator = torch.Generator().manual_seed(0)
    count = min(count, len(real) // 2)
    for _ in range(number):
        order = torch.randperm(len(real), generator=generator)
        yield real[order[:count]], real[order[count:]]


def real_vs_real(metric: Callable[[Tensor, Tensor], float], real: Tensor, count: int, number: int = 5) -> float:
    """What a metric says of `count` real pictures against the others, averaged over some splits."""
    return float(np.mean([metric(some, others) for some, others in splits(real, count, number)]))
