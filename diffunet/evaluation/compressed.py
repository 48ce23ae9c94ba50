"""Images after compression beside the originals."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..data.pixels import normalize, to_unit
from . import metrics
from .features import FeatureExtractor
from .fidelity import psnr, ssim

BATCH = 32
"""Images whose perceptual distance is computed at once."""


def compressed_scores(
    images: Tensor,
    after: Tensor,
    trained: Tensor,
    bit_depth: int,
    features: FeatureExtractor,
    distance: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> dict[str, dict[str, float]]:
    """Return `psnr` in dB, `ssim`, `lpips` if there is a distance, and `kernel_distance`, each with its error.

    images, after: (N, C, H, W), the originals and what became of them. The kernel distance (KID, Bińkowski et al. 2018)
    is that of `after` to other images, `trained`, in the features; its floor is that of the originals to these.
    """
    unit, unit_after = to_unit(images, bit_depth), to_unit(after, bit_depth)
    values = {"psnr": psnr(unit_after, unit), "ssim": ssim(unit_after, unit)}
    if distance is not None:
        pairs = zip(after.split(BATCH), images.split(BATCH), strict=True)
        with torch.no_grad():
            parts = [distance(*(normalize(each, bit_depth) for each in pair)) for pair in pairs]
        values["lpips"] = torch.cat(parts)
    number = len(images)
    scores = {
        name: {"value": float(each.mean()), "error": float(each.std() / number**0.5)} for name, each in values.items()
    }
    found, original, real = (features(each) for each in (after, images, trained))
    scores["kernel_distance"] = {
        "value": metrics.kernel_distance(found, real),
        "error": float(metrics.jackknife_error(metrics.kernel_distance, found, real)),
        "floor": metrics.kernel_distance(original, real),
    }
    return scores


def format_compressed(record: dict[str, Any]) -> str:
    """Return the scores of compressed images, and the numbers of each channel of their latents, as tables."""
    lines = [f"{record['num_images']:,} held-out images of {record['path']}, {record['compression']:.3g} times fewer"]
    lines[0] += f" numbers; features: {record['features']['name']}"
    lines += ["", f"{'':26}{'after':>22}{'original':>14}"]
    for name, row in record["scores"].items():
        floor = f"{row['floor']:.4g}" if "floor" in row else ""
        lines.append(f"{name.replace('_', ' '):26}{row['value']:>10.4g} ± {row['error']:<9.2g}{floor:>14}")
    channels = record["latents"]
    lines += ["", "latents   " + "".join(f"{name:>12}" for name in channels)]
    for number, row in enumerate(zip(*channels.values(), strict=True)):
        lines.append(f"channel {number:<2}" + "".join(f"{value:>12.4g}" for value in row))
    if collapsed := record["collapsed"]:
        lines.append(f"COLLAPSED: channels {', '.join(map(str, collapsed))} carry nothing; lower objective.kl")
    return "\n".join(lines)
