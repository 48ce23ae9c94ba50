"""The objects of label images: how many, how large, how different from their surroundings, and what field they need.

Objects are instances, or else the connected parts of all classes but the first. All sizes are in pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from torch import Tensor

from ..data.cases import Case
from ..data.labels import UNKNOWN
from .instances import segments_of
from .scores import has_borders

BINS = 10
"""Bins of the histograms that are compared."""
LOW_CONTRAST = 0.1
"""Contrast below which gray values do not separate a region from the rest (Loos et al. 2024)."""
THIN = 8
"""Widths of an object, at most, that count of its length, so that roads and vessels do not count as long as they are;
objects up to about five times as long as wide count whole."""
SMALL_FIELD = 54
"""Receptive field that suffices for objects of high contrast, the smallest that Loos et al. 2024 measured."""


@dataclass(frozen=True)
class ClassObjects:
    """The objects of one class in all cases."""

    name: str
    share: float
    """Of the places with a label."""
    counts: np.ndarray
    """Objects of each case that has the class."""
    sides: np.ndarray
    """Longer side of the bounding box of each object."""
    widths: np.ndarray
    """Width of each object, see `widths_of`."""
    contrasts: np.ndarray
    """Contrast in each case that has the class and others, see `contrast_of`."""

    @property
    def contrast(self) -> float:
        """Mean over the cases; NaN without any."""
        return float(self.contrasts.mean()) if len(self.contrasts) else math.nan

    @property
    def has_low_contrast(self) -> bool:
        """Whether the contrast is low in at least half of the cases."""
        return bool((self.contrasts < LOW_CONTRAST).mean() >= 0.5) if len(self.contrasts) else False

    @property
    def extent(self) -> float:
        """The longer side, or that of `THIN` widths, whichever is smaller, which 95 % of the objects do not exceed."""
        return float(np.quantile(np.minimum(self.sides, THIN * self.widths), 0.95))


def objects_by_class(cases: Sequence[Case], names: Sequence[str]) -> list[ClassObjects]:
    """Return the objects of each class but the first that the cases have. names: of all classes."""
    known = sum(int((case.target != UNKNOWN).sum()) for case in cases)
    return [
        found
        for index, name in list(enumerate(names))[1:]
        if (found := _objects_of_class(cases, index, name, known)) is not None
    ]


def _objects_of_class(cases: Sequence[Case], index: int, name: str, known: int) -> ClassObjects | None:
    counts, sides, widths, contrasts, places = [], [], [], [], 0
    for case in cases:
        target = case.target.numpy()
        region = target == index
        if not region.any():
            continue
        segments = segments_of(region) if case.instances is None else compact(case.instances.numpy())
        measured = box_sides(segments)
        counts.append(len(measured))
        sides.append(measured)
        widths.append(widths_of(segments))
        contrasts.append(contrast_of(case.image, region, (target != index) & (target != UNKNOWN)))
        places += int(region.sum())
    if not counts:
        return None
    defined = np.array(contrasts)
    found = np.array(counts), np.concatenate(sides), np.concatenate(widths), defined[~np.isnan(defined)]
    return ClassObjects(name, places / known, *found)


@dataclass(frozen=True)
class Need:
    """The receptive field that objects need, along an axis, and why."""

    field: int
    reason: str


def needed_field(cases: Sequence[Case], classes: Sequence[ClassObjects], names: Sequence[str]) -> Need:
    """Return the receptive field that the objects need (after Loos et al. 2024).

    Of an object of high contrast a small field suffices. Of low contrast only the contour counts, and a field shows it
    from everywhere inside if it is as large as the object. Here it is as large as 95 % of them; the paper's tool has
    their mean times 0.1 / contrast, which grows without bounds. Of borders between parts the smaller counts of the
    parts and of `THIN` widths of the border. No field is larger than the images.

    names: of all classes. Without classes, as of targets that are numbers, it is 0.
    """
    if not classes:
        why = "the measured cases have no object" if names else "no rule is known for targets that are numbers"
        return Need(0, why)
    truths = [case.target.numpy() for case in cases]
    low = [each for each in classes if each.has_low_contrast]
    if len(names) == 2 and cases[0].instances is None and has_borders(truths):
        width = float(np.mean([widths_of((truth == 0).astype(int)).mean() for truth in truths]))
        size = min(classes[0].extent, THIN * width)
        why = f"class {names[0]} is a border {width:.0f} wide, and shows with its surroundings in {math.ceil(size)}"
    elif low:
        widest = max(low, key=lambda each: each.extent)
        size = widest.extent
        why = f"class {widest.name} has a low contrast, so that contours count, and 95 % fit into {math.ceil(size)}"
    else:
        size, why = 0, f"the contrast is high, at least {LOW_CONTRAST}"
    most = int(np.median([max(case.size) for case in cases]))
    field = min(max(SMALL_FIELD, math.ceil(size)), most)
    suffices = "suffice" if field == SMALL_FIELD else "are needed"
    return Need(field, f"{field} pixels {suffices}: {why}" + ("; the images have no more" if field < size else ""))


def compact(instances: np.ndarray) -> np.ndarray:
    """Return instances with the numbers 1, 2, ... without gaps; 0 stays the background."""
    values, places = np.unique(instances, return_inverse=True)
    return places.reshape(instances.shape) + int(0 not in values)


def box_sides(segments: np.ndarray) -> np.ndarray:
    """Return the longer side of the bounding box of each segment 1, 2, ... (Loos et al. 2024, of contours)."""
    from scipy.ndimage import find_objects

    return np.array([max(side.stop - side.start for side in box) for box in find_objects(segments)], float)


def widths_of(segments: np.ndarray) -> np.ndarray:
    """Return the width of each segment 1, 2, ..., (*S): four times the mean distance of its places to its
    edge; that is the width of a long band, and two thirds of the diameter of a disk.
    """
    from scipy.ndimage import distance_transform_edt, maximum_filter, mean, minimum_filter

    segments = np.pad(segments, 1)
    inside = (maximum_filter(segments, 3) == minimum_filter(segments, 3)) & (segments > 0)
    depth = np.asarray(distance_transform_edt(inside)) + 0.5
    return 4 * np.asarray(mean(depth, segments, np.arange(1, segments.max(initial=0) + 1)), float)


def contrast_of(image: Tensor, region: np.ndarray, rest: np.ndarray) -> float:
    """Return the contrast of a region (*S) with the rest, in the channel of an image (C, *S) where it is greatest.

    It is mean |h_in - h_out| over the bins of the two normalized histograms (Loos et al. 2024, recommender tool), from
    0 to 2 / BINS; NaN without either. His bins divide 0 to 256, ours the values of the channel, so that dark images and
    those of more bits are treated alike.
    """
    if not region.any() or not rest.any():
        return float("nan")
    found = []
    for channel in image.double().numpy():
        ends = float(channel.min()), float(channel.max())
        inside, outside = (np.histogram(channel[where], BINS, ends)[0] / where.sum() for where in (region, rest))
        found.append(float(np.abs(inside - outside).mean()))
    return max(found)


def touching_share(instances: Sequence[np.ndarray]) -> float:
    """Return the share of all instances, (*S) each, that have a place next to another one, also by a corner."""
    total = touching = 0
    for each in instances:
        found = np.zeros(0, each.dtype)
        steps = [step for step in product((-1, 0, 1), repeat=each.ndim) if step > (0,) * each.ndim]  # each pair once
        for step in steps:
            first = each[tuple(slice(max(0, -n), side - max(0, n)) for n, side in zip(step, each.shape, strict=True))]
            second = each[tuple(slice(max(0, n), side - max(0, -n)) for n, side in zip(step, each.shape, strict=True))]
            met = (first != second) & (first > 0) & (second > 0)
            found = np.concatenate([found, first[met], second[met]])
        touching += len(np.unique(found))
        total += len(np.unique(each[each > 0]))
    return touching / total if total else 0.0


def windows_with(mask: np.ndarray, size: Sequence[int]) -> float:
    """Return the share of all windows of a size in a mask (*S) that have a true place."""
    inside = mask.astype(np.int64)
    for axis, (side, whole) in enumerate(zip(size, mask.shape, strict=True)):
        side = min(side, whole)
        total = np.insert(inside.cumsum(axis), 0, 0, axis)  # sums over windows along this axis are differences
        inside = np.take(total, range(side, whole + 1), axis) - np.take(total, range(whole + 1 - side), axis)
    return float((inside > 0).mean())
