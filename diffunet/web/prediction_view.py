"""A prediction as HTML: classes on the image, a legend, objects, numbers with their range, the deviation."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.labels import Labels, written
from ..runs.figures import to_pil
from ..runs.painting import (
    BRIGHTEST,
    COLORS,
    DARKEST,
    overlay_palette,
    paint_classes,
    paint_numbers,
    palette_of,
)
from ..runs.predict import Prediction
from .html import figure, layers, legend, png_of, table

SHOWN_SIDE = 768
"""Pixels, at most, of the longer side of what is shown; the files have all of them."""
DRAWN = f"black and white at the quantiles {DARKEST} and {BRIGHTEST}"


def view_of(image: Tensor, prediction: Prediction, labels: Labels | None, folder: Path, name: str) -> str:
    """Return a prediction of an image (C, H, W), whose files NAME.png or NAME.npy, ... are in a folder."""
    parts = class_parts(image, prediction, labels) if labels else number_parts(image, prediction)
    if labels and labels.instances:
        parts.append(objects_part(folder / f"{name}.png"))
    if (deviation := folder / f"{name}.std.npy").exists():
        parts.append(deviation_part(deviation))
    return f'<div class="prediction">{"".join(parts)}</div>'


def class_parts(image: Tensor, prediction: Prediction, labels: Labels) -> list[str]:
    """Return the classes on the image, alone, and the legend, all in the same colors."""
    classes = prediction.classes
    palette = overlay_palette(palette_of(labels))
    color = paint_classes(classes, palette)
    transparent = torch.cat([color, 255 * (classes > 0).to(torch.uint8)[None]])  # as in `overlay`
    rows = [(color, label, share) for color, (label, share) in zip(palette, shares_of(classes, labels), strict=True)]
    return [
        layers(_png(paint_numbers(image)), _png(transparent, Image.Resampling.NEAREST), "Classes on the image"),
        figure(_png(color, Image.Resampling.NEAREST), "Classes"),
        legend(rows),
    ]


def shares_of(classes: Tensor, labels: Labels) -> list[tuple[str, float]]:
    """Return the name of each class, and the share of the places (H, W) that have it."""
    counts = torch.bincount(classes.flatten(), minlength=len(labels.codes))
    names = labels.names or [written(code) for code in labels.codes]
    return [(name, int(count) / classes.numel()) for name, count in zip(names, counts, strict=True)]


def objects_part(file: Path) -> str:
    """Return the objects of a file, each with a number of its own, in colors that repeat."""
    with Image.open(file) as opened:
        numbers = np.asarray(opened).astype(np.int64)
    found = len(np.unique(numbers[numbers > 0]))
    colors = np.where(numbers > 0, 1 + (numbers - 1) % (len(COLORS) - 1), 0)
    painted = paint_classes(torch.from_numpy(colors), COLORS)
    return figure(_png(painted, Image.Resampling.NEAREST), f"{found:,} object{'s' * (found != 1)}")


def number_parts(image: Tensor, prediction: Prediction) -> list[str]:
    """Return the image, the predicted numbers, and the range of each channel."""
    values = prediction.mean
    shown, channels = values[:1], ", channel 1" * (len(values) == 2)
    if len(values) >= 3:
        shown, channels = values[:3], ", channels 1 to 3 as red, green and blue"
    rows = [
        {"channel": f"{index}", "least": f"{each.min():.4g}", "mean": f"{each.mean():.4g}", "most": f"{each.max():.4g}"}
        for index, each in enumerate(values, start=1)
    ]
    return [
        figure(_png(paint_numbers(image)), "Image"),
        figure(_png(paint_numbers(shown)), f"Numbers{channels}, {_range(shown)}; {DRAWN}"),
        table(rows) if len(rows) > 1 else "",
    ]


def deviation_part(file: Path) -> str:
    """Return the deviation between the members of an average, (H, W) or (C, H, W) in a file."""
    values = torch.from_numpy(np.load(file))
    values = values.reshape(-1, *values.shape[-2:])
    return figure(_png(paint_numbers(values)), f"Deviation, {_range(values)}; {DRAWN}")


def _range(values: Tensor) -> str:
    return f"from {values.min():.3g} to {values.max():.3g}"


def _png(pixels: Tensor, resample: Image.Resampling = Image.Resampling.BOX) -> bytes:
    """Return pixels (C, H, W) uint8 as a PNG of at most SHOWN_SIDE."""
    shown = to_pil(pixels, 8)
    if max(shown.size) > SHOWN_SIDE:
        shown.thumbnail((SHOWN_SIDE, SHOWN_SIDE), resample)
    return png_of(shown)
