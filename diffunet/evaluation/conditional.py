"""Metrics of samples under the conditions of held-out examples, each with its standard error and a reference.

N examples have one true image and k samples each. Errors are over examples, whose samples are averaged first.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.pixels import to_unit
from .features import FeatureExtractor
from .fidelity import psnr, ssim

RETRIEVED = (1, 5)
"""Ranks up to which the true image counts as found."""
MAX_PSNR = 100.0
"""Of an exact copy, in dB, so that means stay finite."""
Row = dict[str, float]
"""A metric in a record: its value, its standard error and its reference."""


@dataclass(frozen=True)
class Measurement:
    """Measurements of a degradation A, all in [-1, 1]: the sources, and A of the true images and of the samples."""

    sources: Tensor
    """(N, ...)"""
    truth: Tensor
    """(N, ...)"""
    samples: Tensor
    """(N, k, ...)"""


def evaluate_conditional(
    truth: Tensor,
    samples: Tensor,
    bit_depth: int,
    types: set[str],
    features: FeatureExtractor,
    measurements: Mapping[str, Measurement] = {},
) -> dict[str, Row]:
    """Return the metrics of samples (N, k, C, H, W) against the true images (N, C, H, W), integers of a bit depth.

    Coverage and diversity are reported for all conditions, fidelity if `types`, the types of the conditions, contain
    image, and retrieval if they contain image or text. `measurements` has the degraded images by condition.
    """
    if len(truth) < 2 or samples.shape[1] < 2:
        raise ValueError(f"two examples with two samples each are needed (got {len(truth)} with {samples.shape[1]})")
    real, sampled = to_unit(truth, bit_depth), to_unit(samples, bit_depth)
    record = {"truth_coverage": coverage(truth, samples), "diversity": diversity(real, sampled)}
    if "image" in types:
        record |= fidelity(real, sampled)
    if types & {"image", "text"}:
        found = features(samples.flatten(0, 1)).unflatten(0, samples.shape[:2])
        record |= retrieval(found, features(truth), RETRIEVED)
    for name, measured in measurements.items():
        record[f"agreement_{name}"] = agreement(measured, bit_depth)
    return record


def coverage(truth: Tensor, samples: Tensor) -> Row:
    """Return the share of true values strictly between the smallest and the largest of their k samples.

    truth (N, ...), samples (N, k, ...): pixels or features. If samples and truth come from one distribution, the rank
    of the truth is uniform over k + 1 places, of which k - 1 are inside: the reference is (k - 1) / (k + 1). A smaller
    value means samples that are biased or too similar, a larger one samples that are too diverse. Ties are broken
    uniformly at random, in expectation. Where all samples equal the truth, its rank contains no information, so such
    values are left out, which does not change the reference. The value is averaged per example, then over examples.
    """
    k = samples.shape[1]
    below = (samples < truth[:, None]).sum(1).flatten(1)
    equal = (samples == truth[:, None]).sum(1).flatten(1)
    last = below + equal  # the rank is uniform from `below` to `last`
    inside = (last.clamp(max=k - 1) - below.clamp(min=1) + 1).clamp(min=0).double() / (equal + 1)
    varied = equal < k
    shares = (inside * varied).sum(1) / varied.sum(1)
    return _row(shares[varied.any(1)], (k - 1) / (k + 1))


def diversity(truth: Tensor, samples: Tensor) -> Row:
    """Return the root mean squared difference between two samples of one example, averaged over pairs and examples.

    truth (N, ...), samples (N, k, ...). The reference is that between truth and samples: if they come from one
    distribution, the true image is as far from a sample as another sample is.
    """
    k, scale = samples.shape[1], samples[0, 0].numel() ** 0.5
    between, from_truth = [], []
    for turn, one in zip(samples.flatten(2), truth.flatten(1), strict=True):
        turn, one = turn.double(), one.double()
        between.append(torch.cdist(turn, turn).sum() / (k * (k - 1)) / scale)
        from_truth.append((turn - one).norm(dim=1).mean() / scale)
    return _row(torch.stack(between), float(torch.stack(from_truth).mean()))


def fidelity(truth: Tensor, samples: Tensor) -> dict[str, Row]:
    """Return PSNR (dB) and SSIM to the truth (N, C, H, W), of one sample (N, k, C, H, W) and of the mean of k.

    Values are from 0 to 1. The references are those of the mean of the other true images, which uses no condition.
    """
    n, k = samples.shape[:2]
    truth = truth.double()
    others = (truth.sum(0) - truth) / (n - 1)
    mean = samples.mean(1, dtype=torch.float64)
    rows = {}
    for name, metric in {"psnr": _finite_psnr, "ssim": ssim}.items():
        reference = float(metric(others, truth).mean())
        single = [metric(turn, one.expand_as(turn)).mean() for turn, one in zip(samples, truth, strict=True)]
        rows[name] = _row(torch.stack(single), reference)
        rows[f"{name}_mean_of_{k}"] = _row(metric(mean, truth), reference)
    return rows


def agreement(measured: Measurement, bit_depth: int) -> Row:
    """Return the mean of |A(sample) - source|, in steps of a bit depth; below 1/2, both round to the same integers.

    The reference is that of the true images, which is not 0 if the source is noisy or was made otherwise.
    """
    step = 2 / (2**bit_depth - 1)
    sources = measured.sources.double()
    differences = (measured.samples - sources[:, None]).abs().flatten(1).mean(1) / step
    return _row(differences, float((measured.truth - sources).abs().mean() / step))


def retrieval(samples: Tensor, real: Tensor, ranks: tuple[int, ...] = RETRIEVED) -> dict[str, Row]:
    """Return the share of samples with the true image among the nearest `ranks` of all N, by name `top_1`, ...

    samples: features (N, k, D), real: features (N, D) of the true images. Nearest by the cosine of features
    standardized by the mean and deviation of `real`; ties are broken uniformly at random, in expectation. The error is
    binomial over the N examples, and the reference is the share of random guesses.
    """
    mean, std = real.double().mean(0), real.double().std(0)
    std = torch.where(std > 0, std, 1.0)
    sampled, real = (F.normalize((x.double() - mean) / std, dim=-1) for x in (samples, real))
    cosines = (sampled @ real.T).round(decimals=12)  # (N, k, N); equal features remain ties
    n = len(real)
    own = cosines.diagonal(dim1=0, dim2=2).T[..., None]  # (N, k, 1)
    nearer, tied = (cosines > own).sum(2), (cosines == own).sum(2)
    rows = {}
    for rank in ranks:
        found = ((rank - nearer).double() / tied).clamp(0, 1).mean(1)
        share = float(found.mean())
        rows[f"top_{rank}"] = {"value": share, "error": wilson_error(share, n), "reference": min(rank / n, 1.0)}
    return rows


def obedience(samples: Mapping[str, tuple[int, int]], real: Mapping[str, tuple[int, int]]) -> dict[str, Row]:
    """Return the accuracy of each word: the share of images prompted with it on which its attribute is measured.

    Both map a word to (hits, number) of images, `real` for real images with that word, the reference. The error is
    binomial. Words without any sample are left out.
    """
    rows = {}
    for word, (hits, number) in samples.items():
        if number:
            rows[word] = {"value": hits / number, "error": wilson_error(hits / number, number)}
            if real.get(word, (0, 0))[1]:
                rows[word]["reference"] = real[word][0] / real[word][1]
    return rows


def wilson_error(share: float, number: int) -> float:
    """Return half the width of the interval of a binomial share at one standard error (Wilson 1927), never 0."""
    return (share * (1 - share) / number + 1 / (4 * number**2)) ** 0.5 / (1 + 1 / number)


def _finite_psnr(images: Tensor, reference: Tensor) -> Tensor:
    return psnr(images, reference).clamp(max=MAX_PSNR)


def _row(values: Tensor, reference: float) -> Row:
    """Return the mean of the values of all examples (N,), its standard error, and the reference."""
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else 0.0
    return {"value": float(values.mean()) if len(values) else reference, "error": error, "reference": reference}
