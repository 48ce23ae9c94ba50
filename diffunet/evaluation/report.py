"""Evaluation records: metrics of samples against real images, each with its error and its floor, reproducible.

The floor is the same metric for as many real images (at most half of them) against the rest.
"""

import hashlib
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..conditions.label import LabelConfig
from ..core.errors import UserError
from ..core.progress import no_progress
from ..core.rng import fixed_subset
from ..core.storage import atomic_write, cache_folder, load_tensors, save_tensors
from ..data.dataset import ImageDataset
from . import metrics
from .features import INCEPTION_SHA, FeatureExtractor, PixelFeatures, extract

MAX_REAL = 50_000
"""Real images, at most, for the Fréchet distance and memorization."""
MAX_PAIRWISE = 5_000
"""Images, at most, on either side of metrics that compare all pairs."""
MIN_SAMPLES = 3
"""Samples needed for a variance and its error; twice as many real images, for their halves."""
N_SIGMA = 3.0
"""Standard errors by which the memorization of samples must exceed that of held-out images for a verdict."""
CLOSEST_PAIRS, MAX_SEARCHED = 12, 10_000
"""Pairs of a sample and a real image, and the number of real images, at most, among which they are searched."""


@dataclass(frozen=True)
class Evaluation:
    """A record, and the images that it compares."""

    record: dict[str, Any]
    samples: Tensor
    """(N, C, H, W) integers."""
    real: ImageDataset
    features: FeatureExtractor

    @classmethod
    def of(
        cls,
        source: dict[str, Any],
        samples: Tensor,
        conditions: Mapping[str, list],
        real: ImageDataset,
        features: FeatureExtractor,
        progress: Callable = no_progress,
    ) -> "Evaluation":
        """Evaluate samples, and add their `source` and the program's version to the record."""
        found = evaluate_images(samples, conditions, real, features, progress)
        return cls({"samples": source, **found, "diffunet": program_version()}, samples, real, features)

    def closest(self) -> dict[str, Tensor]:
        """Return `closest_pairs` in the pixels and, if they come from a network, in the features."""
        images = self.real.images[list(range(min(len(self.real), MAX_SEARCHED)))]
        extractors = {"pixels": PixelFeatures(self.real.config.bit_depth)}
        extractors |= {"features": self.features} if self.features.weights else {}
        return {name: closest_pairs(self.samples, images, f(self.samples), f(images)) for name, f in extractors.items()}


def evaluate_images(
    samples: Tensor,
    conditions: Mapping[str, list],
    real: ImageDataset,
    features: FeatureExtractor,
    progress: Callable = no_progress,
) -> dict[str, Any]:
    """Return the record of samples, integers (N, C, H, W), against real images.

    `conditions` has the class (or another word) of each sample, by condition. Raise UserError for too few images.
    """
    check_enough(len(samples), len(real))
    parts = [_subset(part.indices, MAX_REAL).sort().values.tolist() for part in real.split_held_out()]
    digest = _sha256(real, parts)
    trained, held_out = _real_features(real, parts, digest, features, progress)
    sampled, all_real = features(samples), torch.cat([trained, held_out])
    source = {"path": real.config.path, "split": real.config.split}
    record = {
        "features": {
            "name": features.name,
            "dimensions": sampled.shape[1],
            "resize": features.resize,
            "weights_sha256": features.weights,
        },
        "real": {**source, "num_images": len(all_real), "held_out": len(held_out), "sha256": digest},
        "metrics": compare(sampled, all_real, frechet_name(features, len(samples), len(all_real))),
        "memorization": {"features": memorization_record(sampled, trained, held_out)},
    }
    if features.weights:
        pixels = PixelFeatures(real.config.bit_depth)
        real_pixels = (extract(pixels, real.images, part) for part in parts)
        record["memorization"]["pixels"] = memorization_record(pixels(samples), *real_pixels)
    for name, condition in real.conditions.items():
        classes = conditions.get(name, [None])
        is_label = isinstance(condition, LabelConfig) and len(condition.class_names) > 0
        if is_label and condition.class_names == features.class_names and None not in classes:
            record["class_accuracy"] = _class_accuracy(samples, torch.tensor(classes), real, name, features)
    return record


def check_enough(num_samples: int, num_real: int) -> None:
    """Raise UserError if there are too few images to compare."""
    if num_samples < MIN_SAMPLES or num_real < 2 * MIN_SAMPLES:
        found = f"got {num_samples} samples and {num_real} real images"
        raise UserError(f"too few images to compare ({found}); at least {MIN_SAMPLES} and {2 * MIN_SAMPLES} are needed")


def frechet_name(features: FeatureExtractor, num_samples: int, num_real: int) -> str:
    """Return the name of the Fréchet distance: FID only with the weights that define it, and with its counts.

    It decreases with the number of images, so "FID-50k" is that of 50,000 images and of no fewer.
    """
    if not (features.weights or "").startswith(INCEPTION_SHA):
        return "frechet_distance"
    against = "" if num_real >= MAX_REAL else f" against {num_real / 1000:g}k"
    return f"FID-{num_samples / 1000:g}k{against}"


def compare(samples: Tensor, real: Tensor, frechet: str = "frechet_distance") -> dict[str, dict[str, float]]:
    """Return the value, error and floor of every metric of two sets of features (N, D), (M, D)."""
    some_samples, some_real = samples[:MAX_PAIRWISE], _subset(real, MAX_PAIRWISE)
    real_gaussian = metrics.Gaussian(real)

    def to_real(some: Tensor, _: Tensor) -> float:
        return metrics.frechet_between(metrics.Gaussian(some), real_gaussian)

    found = {
        frechet: {
            "value": to_real(samples, real),
            "error": float(metrics.jackknife_error(to_real, samples, real)),
            "floor": metrics.real_vs_real(metrics.frechet_distance, real, len(samples)),
        },
        "kernel_distance": {
            "value": metrics.kernel_distance(some_samples, some_real),
            "error": float(metrics.jackknife_error(metrics.kernel_distance, some_samples, some_real)),
            "floor": metrics.real_vs_real(metrics.kernel_distance, some_real, len(some_samples)),
        },
    }
    values = metrics.prdc(some_samples, some_real)
    errors = metrics.jackknife_error(lambda a, b: list(metrics.prdc(a, b).values()), some_samples, some_real)
    floors = metrics.prdc(*next(metrics.splits(some_real, len(some_samples), 1)))
    for (name, value), error in zip(values.items(), errors, strict=True):
        found[name] = {"value": value, "error": float(error), "floor": floors[name]}
    return found


def memorization_record(samples: Tensor, trained: Tensor, held_out: Tensor) -> dict[str, Any]:
    """Return the share of samples nearer to a training image than 95 % of those are to each other, and a verdict.

    The floor is the share of held-out images; a share far above it is memorization.
    """
    near = metrics.copy_threshold(trained)
    share, error = metrics.memorization(samples, trained, near)
    found = {"value": share, "error": error, "near": near, "median_distance": _median_distance(samples, trained)}
    floor, floor_error = metrics.memorization(held_out, trained, near) if len(held_out) else (0.05, 0.0)
    found |= {"floor": floor, "floor_error": floor_error}
    if len(held_out):
        found["floor_median_distance"] = _median_distance(held_out, trained)
    return found | {"verdict": share - floor > N_SIGMA * (error**2 + floor_error**2) ** 0.5}


def _median_distance(a: Tensor, b: Tensor) -> float:
    return float(metrics.nearest_distances(a, b).median())


def _class_accuracy(
    samples: Tensor, labels: Tensor, real: ImageDataset, name: str, features: FeatureExtractor
) -> dict[str, float]:
    """Return the share of samples classified as their condition `name`; floor: the same of held-out images."""
    found = {"value": float((features.predict(samples) == labels).double().mean())}
    found["error"] = (found["value"] * (1 - found["value"]) / len(samples)) ** 0.5
    _, held_out = real.split_held_out()
    if len(held_out):
        batch = held_out.__getitems__(list(range(len(held_out))))
        found["floor"] = float((features.predict(batch["image"]) == batch[name]).double().mean())
    return found


def closest_pairs(
    samples: Tensor, real: Tensor, sampled: Tensor, real_features: Tensor, number: int = CLOSEST_PAIRS
) -> Tensor:
    """Return the samples nearest to a real image in their features, nearest first, each followed by that image.

    samples (N, C, H, W), real (M, C, H, W), sampled (N, D), real_features (M, D) -> (2 * number, C, H, W).
    """
    distances, indices = metrics.nearest_neighbors(sampled, real_features)
    order = distances.argsort()[:number]
    return torch.stack([samples[order], real[indices[order]]], dim=1).flatten(0, 1)


def format_record(record: dict[str, Any]) -> str:
    """Return the record of `Evaluation.of` as a table, with one more for `record["conditional"]`."""
    source, real, features = record["samples"], record["real"], record["features"]
    sampling = "" if "folder" in source else f" ({source['sampler']}, {source['steps']} steps, seed {source['seed']})"
    rows = {name.replace("_", " "): row for name, row in record["metrics"].items()}
    rows |= {f"memorization, in {name}": row for name, row in record["memorization"].items()}
    if "class_accuracy" in record:
        rows["class accuracy"] = record["class_accuracy"]
    lines = [
        f"{source['num_images']:,} samples{sampling} against {real['num_images']:,} real images of {real['path']}",
        f"features: {features['name']} ({features['dimensions']} dimensions)",
        "",
        *_table(rows, "floor"),
    ]
    if conditional := record.get("conditional"):
        rows = {name.replace("_", " "): row for name, row in conditional["metrics"].items()}
        counts = f"{conditional['examples']} held-out examples, {conditional['samples_per_example']} samples of each"
        lines += ["", f"conditions of {counts}", *_table(rows, "reference")]
    if any(row["verdict"] for row in record["memorization"].values()):
        lines.append("MEMORIZED: more samples than held-out images are near copies of training images")
    return "\n".join(lines)


def _table(rows: dict[str, dict[str, Any]], reference: str) -> list[str]:
    """Return a header and a line for each metric, with its error and the value under the key `reference`."""
    lines = [f"{'':26}{'samples':>22}{reference:>14}"]
    for name, row in rows.items():
        found = f"{row[reference]:.4g}" if reference in row else ""
        lines.append(f"{name:26}{row['value']:>10.4g} ± {row['error']:<9.2g}{found:>14}")
    return lines


def program_version() -> dict[str, str | None]:
    """Return the version of this program and, in a checkout, its commit."""
    found: dict[str, str | None] = {"version": None, "commit": None}
    with suppress(PackageNotFoundError):
        found["version"] = version("diffunet")
    root = Path(__file__).parents[2]
    describe = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with suppress(OSError, subprocess.SubprocessError):
        if (root / ".git").exists():
            result = subprocess.run(describe, capture_output=True, text=True, timeout=10)
            found["commit"] = result.stdout.strip() or None
    return found


# ── real images ───────────────────────────────────────────────────────────────────────────────────


def _subset(rows: Tensor, limit: int) -> Tensor:
    """Return at most `limit` of the rows, always the same."""
    return rows if len(rows) <= limit else rows[fixed_subset(len(rows), limit)]


def _sha256(real: ImageDataset, parts: list[list[int]]) -> str:
    """Return the SHA-256 of the pixels of all parts."""
    digest = hashlib.sha256()
    for part in parts:
        for first in range(0, len(part), 1024):
            pixels = real.images[part[first : first + 1024]]
            digest.update(f"{tuple(pixels.shape)}".encode() + pixels.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _real_features(
    real: ImageDataset, parts: list[list[int]], digest: str, features: FeatureExtractor, progress: Callable
) -> list[Tensor]:
    """Return the features of each part. Those of a network are cached, by the hashes of images and weights."""
    if not features.weights:
        return [extract(features, real.images, part) for part in parts]
    key = "|".join(map(str, (digest, *map(len, parts), features.name, features.resize, features.weights)))
    file = cache_folder("features") / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
    if not file.exists():
        found = [extract(features, real.images, part, progress) for part in parts]
        with atomic_write(file) as partial:
            save_tensors(partial, dict(zip(("trained", "held_out"), found, strict=True)))
    cached = load_tensors(file)
    return [cached["trained"], cached["held_out"]]
