"""How good pictures are, as a record that anyone can make again: every figure with its error and its floor.

The floor is what a metric says of as many real pictures (at most half of them) against the others.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.dataset import ImageDataset
from .features import INCEPTION_SHA, FeatureExtractor, PixelFeatures, features_of
from .metrics import (
    Gaussian,
    jackknife_error,
    real_vs_real,
    frechet_between,
    frechet_distance,
    kernel_distance,
    memorization,
    nearest_distances,
    copy_threshold,
    prdc,
    splits,
)
from ..core.errors import UserError
from ..core.progress import no_progress
from ..core.storage import load_tensors, save_tensors, atomic_write

MOST_REAL = 50_000
"""Real pictures that the Fréchet distance and the search for copies look at."""
MOST_PAIRED = 5_000
"""ImageDataset on either side where a metric compares each with each."""
FEWEST = 3
"""SampleBatch pictures from which a spread, and its error, can be told; of real ones twice as many, for their halves."""
N_SIGMA = 3.0
"""Standard errors by which drawn pictures must be nearer to training pictures than others are, to say memorization."""


def evaluate_pictures(
    drawn: Tensor, labels: list[int | None], real: ImageDataset, features: FeatureExtractor, progress: Callable = no_progress
) -> dict[str, Any]:
    """The record of drawn pictures, integers (N, C, H, W) with the classes that were asked for, against real ones."""
    check_enough(len(drawn), len(real))
    parts = _parts(real)
    digest = _digest(real, parts)
    trained, held_out = _reference(real, parts, digest, features, progress)
    seen = features(drawn)
    whole = torch.cat([trained, held_out])
    record = {
        "features": {
            "name": features.name,
            "dimensions": seen.shape[1],
            "resize": features.resize,
            "weights_sha256": features.weights,
        },
        "real": {"num_images": len(whole), "held_out": len(held_out), "sha256": digest},
        "metrics": compare(seen, whole, frechet_name(features, len(drawn), len(whole))),
        "memorization": {"features": memory(seen, trained, held_out)},
    }
    if features.weights:
        small = PixelFeatures(real.config.bit_depth)
        record["memorization"]["pixels"] = memory(small(drawn), *(features_of(small, real.images, p) for p in parts))
    if real.class_names and features.class_names == real.class_names and None not in labels:
        record["class_accuracy"] = _faithfulness(drawn, labels, real, features)
    return record


def check_enough(num_drawn: int, num_real: int) -> None:
    """UserError where there are too few to compare."""
    if num_drawn < FEWEST or num_real < 2 * FEWEST:
        few = f"{num_drawn} drawn and {num_real} real pictures"
        raise UserError(f"{few}: too few to compare; at least {FEWEST} and {2 * FEWEST}")


def frechet_name(features: FeatureExtractor, num_drawn: int, num_real: int) -> str:
    """What the Fréchet distance may be called: FID only in the features that define it, and with its counts.

    It falls with the number of pictures, so "FID-50k" is that of 50,000 and of nothing less.
    """
    if not (features.weights or "").startswith(INCEPTION_SHA):
        return "frechet_distance"

    def thousands(count: int) -> str:
        return f"{count / 1000:g}k"

    against = "" if num_real >= MOST_REAL else f" against {thousands(num_real)}"
    return f"FID-{thousands(num_drawn)}{against}"


def compare(drawn: Tensor, real: Tensor, frechet: str = "frechet_distance") -> dict[str, dict[str, float]]:
    """Every metric of two sets of features (N, D)."""
    some_drawn, some_real = drawn[:MOST_PAIRED], _some(real, MOST_PAIRED)
    of_real = Gaussian(real)

    def to_real(some: Tensor, _: Tensor) -> float:
        return frechet_between(Gaussian(some), of_real)

    found = {
        frechet: {
            "value": to_real(drawn, real),
            "error": float(jackknife_error(to_real, drawn, real)),
            "floor": real_vs_real(frechet_distance, real, len(drawn)),
        },
        "kernel_distance": {
            "value": kernel_distance(some_drawn, some_real),
            "error": float(jackknife_error(kernel_distance, some_drawn, some_real)),
            "floor": real_vs_real(kernel_distance, some_real, len(some_drawn)),
        },
    }
    values = prdc(some_drawn, some_real)
    errors = jackknife_error(lambda a, b: list(prdc(a, b).values()), some_drawn, some_real)
    floors = prdc(*next(splits(some_real, len(some_drawn), 1)))
    for (name, value), error in zip(values.items(), errors, strict=True):
        found[name] = {"value": value, "error": float(error), "floor": floors[name]}
    return found


def memory(drawn: Tensor, trained: Tensor, held_out: Tensor) -> dict[str, Any]:
    """How many drawn pictures are nearer to a training picture than 95 % of those are to each other.

    Beside it the same of real pictures that were not trained on; far more than that is memorising.
    """
    near = copy_threshold(trained)
    share, error = memorization(drawn, trained, near)
    found = {"value": share, "error": error, "near": near, "median_distance": _median(drawn, trained)}
    usual, usual_error = memorization(held_out, trained, near) if len(held_out) else (0.05, 0.0)
    found |= {"floor": usual, "floor_error": usual_error}
    if len(held_out):
        found["floor_median_distance"] = _median(held_out, trained)
    return found | {"verdict": share - usual > N_SIGMA * (error**2 + usual_error**2) ** 0.5}


def _median(a: Tensor, b: Tensor) -> float:
    return float(nearest_distances(a, b).median())


def _faithfulness(drawn: Tensor, labels: list[int], real: ImageDataset, features: FeatureExtractor) -> dict[str, float]:
    """The share of drawn pictures that are named as was asked; floor: of real pictures kept from training."""
    _, kept = real.split_held_out()
    found = {"value": float((features.named(drawn) == torch.tensor(labels)).double().mean())}
    found["error"] = (found["value"] * (1 - found["value"]) / len(drawn)) ** 0.5
    if len(kept):
        batch = kept.__getitems__(list(range(len(kept))))
        found["floor"] = float((features.named(batch["image"]) == batch["label"]).double().mean())
    return found


def closest_pairs(drawn: Tensor, real: Tensor, seen: Tensor, seen_real: Tensor, number: int) -> Tensor:
    """The drawn pictures nearest to a real one in their features, nearest first, each before that one.

    (2 * number, C, H, W).
    """
    near = [torch.cdist(chunk, seen_real).min(dim=1) for chunk in seen.split(256)]
    order = torch.cat([found.values for found in near]).argsort()[:number]
    pairs = torch.stack([drawn[order], real[torch.cat([found.indices for found in near])[order].tolist()]], dim=1)
    return pairs.flatten(0, 1)


# ── the real pictures ─────────────────────────────────────────────────────────────────────────────


def _some(rows: Tensor, most: int) -> Tensor:
    """At most so many of them, always the same."""
    if len(rows) <= most:
        return rows
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:most]]


def _parts(real: ImageDataset) -> list[list[int]]:
    """Where the pictures trained on stand, and those held out: at most MOST_REAL of each."""
    places = (torch.arange(len(p)) if p.places is None else p.places for p in real.split_held_out())
    return [_some(place, MOST_REAL).sort().values.tolist() for place in places]


def _digest(real: ImageDataset, parts: list[list[int]]) -> str:
    """The SHA-256 of all their pixels."""
    digest = hashlib.sha256()
    for part in parts:
        for first in range(0, len(part), 1024):
            pixels = real.images[part[first : first + 1024]]
            digest.update(f"{tuple(pixels.shape)}".encode() + pixels.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _reference(
    real: ImageDataset, parts: list[list[int]], digest: str, features: FeatureExtractor, progress: Callable
) -> list[Tensor]:
    """Features of each part. What a network made of them is kept in a cache, by what it follows from."""
    if not features.weights:
        return [features_of(features, real.images, part) for part in parts]
    told = "|".join(map(str, (digest, *map(len, parts), features.name, features.resize, features.weights)))
    file = cache_folder() / f"features-{hashlib.sha256(told.encode()).hexdigest()[:32]}.safetensors"
    if not file.exists():
        found = [features_of(features, real.images, part, progress) for part in parts]
        with atomic_write(file) as partial:
            save_tensors(partial, dict(zip(("trained", "held_out"), found, strict=True)))
    kept = load_tensors(file)
    return [kept["trained"], kept["held_out"]]


def cache_folder() -> Path:
    """Where features of real pictures are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffunet"
