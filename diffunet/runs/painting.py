"""Predictions drawn: classes as colors, numbers as gray, errors in red, beside or on the image."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.storage import atomic_write
from ..data.cases import Case
from ..data.labels import COLOR, UNKNOWN, Labels
from .figures import save_comparison, to_pil

Color = tuple[int, int, int]
SHOWN_SIDE = 256
"""Pixels, at most, of each side that a comparison shows: the center of a larger image."""
GAP = 2
"""Pixels between planes of a volume."""
DARKEST, BRIGHTEST = 0.01, 0.99
"""Quantiles of an image that are drawn black and white."""
COLORS = (
    (0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115),
    (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
)  # fmt: skip
"""Of classes without a color of their own: black, then those of Okabe & Ito 2008, for all kinds of color vision."""
WRONG, HIDDEN = (220, 40, 40), (128, 128, 128)
"""Color of wrong places, and of places without a label."""


def palette_of(labels: Labels) -> list[Color]:
    """Return the color of each class: its own, black and white for two classes, or one of COLORS."""
    if all(code >= COLOR for code in labels.codes):
        return [((code >> 16) & 255, (code >> 8) & 255, code & 255) for code in labels.codes]
    if len(labels.codes) == 2:
        return [(0, 0, 0), (255, 255, 255)]
    return [COLORS[index % len(COLORS)] for index in range(len(labels.codes))]


def paint_classes(classes: Tensor, palette: Sequence[Color]) -> Tensor:
    """Return (3, H, W) uint8 of classes (H, W); places without a label are gray."""
    colors = torch.tensor([*palette, HIDDEN], dtype=torch.uint8)
    return colors[classes.long()].permute(2, 0, 1)  # UNKNOWN is -1, the last


def paint_numbers(values: Tensor, like: Tensor | None = None) -> Tensor:
    """Return (3, H, W) uint8 of (C, H, W) numbers, black and white at quantiles of `like`.

    Without it, or where it is unknown everywhere, at those of the numbers themselves; unknown numbers are gray.
    """
    values = (values[:3] if values.shape[0] >= 3 else values[:1].expand(3, -1, -1)).float()
    like = values if like is None or like.isnan().all() else (like[:3] if like.shape[0] >= 3 else like[:1]).float()
    known = like[~like.isnan()]
    known = known if known.numel() < 2**20 else known[:: known.numel() // 2**20 + 1]
    low, high = (torch.quantile(known, q) if known.numel() else torch.tensor(0.0) for q in (DARKEST, BRIGHTEST))
    return (((values - low) / (high - low).clamp(min=1e-12)).clamp(0, 1).nan_to_num(0.5) * 255).round().to(torch.uint8)


def paint_errors(image: Tensor, wrong: Tensor) -> Tensor:
    """Return the image, (C, H, W), darkened, with the places (H, W) that are wrong in red."""
    red = torch.tensor(WRONG, dtype=torch.uint8)[:, None, None]
    return torch.where(wrong, red, paint_numbers(image) // 2)


def overlay_palette(palette: Sequence[Color]) -> Sequence[Color]:
    """Return the colors of classes on an image: of two, the second is orange, as white would be lost on gray."""
    return COLORS[:2] if len(palette) == 2 else palette


def overlay(image: Tensor, labels: Tensor, palette: Sequence[Color]) -> Tensor:
    """Return the image, (C, H, W), with labels (H, W) from 1 on as half-transparent colors, (3, H, W) uint8.

    Label n has color n of the palette, which begins anew after its last.
    """
    recurring = torch.where(labels > 0, (labels - 1) % (len(palette) - 1) + 1, 0)
    gray = paint_numbers(image)
    mixed = (gray.int() + paint_classes(recurring, palette).int()) // 2
    return torch.where(labels > 0, mixed.to(torch.uint8), gray)


def save_predictions(folder: Path, step: int, predicted: Sequence[tuple[Case, Tensor]], labels: Labels | None) -> None:
    """Write step_*.png: image, target, prediction (K, H, W) and error of some cases, one below the other."""
    save_comparison(folder / f"step_{step:08d}.png", comparison_rows(predicted, labels))


def comparison_rows(predicted: Sequence[tuple[Case, Tensor]], labels: Labels | None) -> list[tuple[str, Tensor, int]]:
    """Return the rows image, target, prediction and error of `save_comparison`, without those of unknown targets.

    Column i is case i, or of volumes three columns are its planes across z, y and x. A prediction is (K, *S): of
    classes, scores of which the greatest counts.
    """
    rows: dict[str, list[Tensor]] = {"image": [], "target": [], "prediction": [], "error": []}
    side = [min(SHOWN_SIDE, *(case.size[axis] for case, _ in predicted)) for axis in (-2, -1)]
    for case, output in predicted:
        if len(case.size) == 2:
            views = [_center(case.size, side)]
        else:
            views = planes_of(case.size, case.target if labels else None, case.spacing)
        shown = case.image if len(case.size) == 2 else channels_shown(case.image)
        for view in views:
            image = view(shown)
            rows["image"].append(paint_numbers(image, shown))
            if labels:
                classes, target, palette = view(output.argmax(0)), view(case.target), palette_of(labels)
                rows["target"].append(paint_classes(target, palette))
                rows["prediction"].append(paint_classes(classes, palette))
                rows["error"].append(paint_errors(image, (classes != target) & (target != UNKNOWN)))
            else:
                found, target = view(output), view(case.target)
                rows["target"].append(paint_numbers(target, case.target))
                rows["prediction"].append(paint_numbers(found, case.target))
                rows["error"].append(paint_numbers((found - target).abs(), case.target - case.target.nanmean()))
    if not labels and all(case.target.isnan().all() for case, _ in predicted):
        rows = {name: rows[name] for name in ("image", "prediction")}
    return [(name, _stacked(parts), 8) for name, parts in rows.items()]


View = Callable[[Tensor], Tensor]
"""From an image or volume (..., *S) to what is drawn of it, (..., H, W)."""


def _center(size: Sequence[int], side: Sequence[int]) -> View:
    """Return the view of the center of an image."""
    top, left = ((whole - shown) // 2 for whole, shown in zip(size, side, strict=True))
    return lambda values: values[..., top : top + side[0], left : left + side[1]]


def planes_of(size: Sequence[int], classes: Tensor | None, spacing: Sequence[float] | None) -> list[View]:
    """Return the views of three planes across z, y and x, through the middle of all classes but the first.

    classes: (D, H, W); None: through the middle of the volume. With a spacing, voxels are drawn in their proportions,
    and y and z rise upwards, as the directions to the front and up that they then have.
    """
    inside = None if classes is None else (classes > 0).nonzero().double()
    center = inside.mean(0) if inside is not None and len(inside) else torch.tensor([(n - 1) / 2 for n in size])
    places = [int(place) for place in center.round()]

    def plane(axis: int) -> View:
        others = [other for other in range(3) if other != axis]
        factors = [1.0, 1.0] if spacing is None else [spacing[other] / min(spacing) for other in others]

        def view(values: Tensor) -> Tensor:
            values = values.select(values.ndim - 3 + axis, places[axis])
            for number, factor in enumerate(factors):
                shown = max(round(values.shape[number - 2] * factor), 1)
                index = (torch.arange(shown) / factor).long().clamp(max=values.shape[number - 2] - 1)
                values = values.index_select(values.ndim + number - 2, index)
            return values if spacing is None else values.flip(-2)

        return view

    return [plane(axis) for axis in range(3)]


def channels_shown(values: Tensor) -> Tensor:
    """Return the channels of a volume (C, D, H, W) that are drawn: three as color, else the first, as a modality."""
    return values if len(values) == 3 else values[:1]


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """Return images (C, H, W) as (N, C, H, W), smaller ones on black."""
    height, width = (max(part.shape[axis] for part in parts) for axis in (-2, -1))
    return torch.stack([F.pad(part, _margins(part, height, width)) for part in parts])


def _margins(part: Tensor, height: int, width: int) -> list[int]:
    spare = width - part.shape[-1], height - part.shape[-2]
    return [side for extra in spare for side in (extra // 2, extra - extra // 2)]


def save_overlay(path: Path, image: Tensor, labels: Tensor, palette: Sequence[Color]) -> None:
    """Write the image with its classes or objects on it as one PNG."""
    with atomic_write(path) as file:
        to_pil(overlay(image, labels, palette), 8).save(file, format="PNG")


def save_numbers(path: Path, values: Tensor) -> None:
    """Write numbers (C, H, W) as one PNG, black and white at their quantiles."""
    with atomic_write(path) as file:
        to_pil(paint_numbers(values), 8).save(file, format="PNG")


def save_volume_overlay(
    path: Path, values: Tensor, labels: Tensor, palette: Sequence[Color], spacing: Sequence[float] | None
) -> None:
    """Write three planes of a volume, (C, D, H, W), with its classes or objects, (D, H, W), as one PNG."""
    views = planes_of(labels.shape, labels, spacing)
    shown = channels_shown(values)
    drawn = _stacked([overlay(view(shown), view(labels), palette) for view in views])
    factor = max(1, SHOWN_SIDE // max(drawn.shape[-2:]))
    enlarged = drawn.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    beside = F.pad(enlarged, (0, GAP, 0, 0), value=255)  # a white line between planes
    with atomic_write(path) as file:
        to_pil(torch.cat(list(beside), dim=-1)[..., :-GAP], 8).save(file, format="PNG")
