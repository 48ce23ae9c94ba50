"""Simple predictions that a network has to surpass: a constant, a threshold, the image itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..data.cases import Case
from ..data.labels import UNKNOWN
from ..data.linear import fit_linear
from ..data.pansharpening import brovey
from .instances import average_precision, watershed_segments


@dataclass(frozen=True)
class Reference:
    """A prediction without a network."""

    predict: Callable[[Tensor], Tensor]
    """From an image (C, *S) to probabilities (K, *S), or to numbers (C', *S)."""
    segment: Callable[[Tensor], np.ndarray] | None = None
    """From such a prediction to instances (*S); None: the connected parts of the second class."""


FITTED = 50
"""Cases, at most, on which references are fitted, evenly spaced."""
SMOOTHING = 1.0
"""Standard deviation in pixels of the Gaussian before the threshold."""
KEPT = 2**22
"""Pixels, at most, among which the threshold is chosen."""
DEPTHS = 1, 2, 3, 4, 6, 8, 12, 16, 24
"""Distances in pixels to the border of an object, among which that of its seeds is chosen."""


def class_references(cases: Sequence[Case], num_classes: int) -> dict[str, Reference]:
    """Return references for classes, fitted on cases.

    constant: the share of each class everywhere, so the most frequent one is predicted. threshold, of two classes in
    images of one channel: one threshold on the smoothed image, with the least share of wrong pixels. otsu and
    watershed, if cases have instances: a threshold for each image (Otsu 1979), and its parts divided where they are
    narrow, by a watershed on the distance to their border, with the seeds that give the highest average precision.
    """
    truths = [case.target.long() for case in cases]
    counts = sum(torch.bincount(t[t != UNKNOWN], minlength=num_classes) for t in truths)
    shares = torch.as_tensor(counts, dtype=torch.float64)
    shares = (shares / shares.sum().clamp(min=1)).float()
    found = {"constant": Reference(lambda image: _everywhere(shares, image))}
    if num_classes == 2 and all(len(case.image) == 1 for case in cases):
        known = [(truth != UNKNOWN).numpy() for truth in truths]
        values = np.concatenate([_smoothed(case.image)[keep] for case, keep in zip(cases, known, strict=True)])
        second = np.concatenate([truth.numpy()[keep] == 1 for truth, keep in zip(truths, known, strict=True)])
        step = len(values) // KEPT + 1
        threshold, bright = best_threshold(values[::step], second[::step])

        found["threshold"] = Reference(lambda image: _classes_of((_smoothed(image) > threshold) == bright))
        if all(case.instances is not None for case in cases):
            otsu = Reference(lambda image: _classes_of(_above_otsu(_smoothed(image)) == bright))
            found |= {"otsu": otsu, "watershed": _divided(otsu, cases)}
    return found


def _divided(reference: Reference, cases: Sequence[Case]) -> Reference:
    """Return a reference whose objects are divided where they are narrow."""
    from scipy.ndimage import distance_transform_edt

    def segment(depth: int, output: Tensor) -> np.ndarray:
        inside = (output[1] > 0.5).numpy()
        distance = distance_transform_edt(np.pad(inside, 1))[(slice(1, -1),) * inside.ndim]
        return watershed_segments(inside, -distance, seed_below=-depth)

    predicted = [(reference.predict(case.image), case.instances) for case in cases]
    precision = [
        np.nanmean([average_precision(segment(depth, one), true)["average_precision"] for one, true in predicted])
        for depth in DEPTHS
    ]
    return Reference(reference.predict, partial(segment, DEPTHS[int(np.argmax(precision))]))


def number_references(cases: Sequence[Case]) -> dict[str, Reference]:
    """Return references for numbers, fitted on cases.

    constant: the mean of each channel. linear: the best linear prediction from all channels at the same place.
    identity, if image and target have as many channels: the image. bicubic and brovey, if the image has one more, which
    is then taken for the sharp one of `pansharpening`: its coarse bands, and those times the sharp image over their
    mean. Identity, bicubic and brovey are rescaled by least squares, channel by channel.
    """
    truths = [case.target.double().flatten(1) for case in cases]
    mean = torch.cat(truths, dim=1).nanmean(1).nan_to_num(0).float()
    found = {"constant": Reference(lambda image: _everywhere(mean, image))}
    if all(len(case.image) for case in cases):
        found["linear"] = Reference(fit_linear(cases))
    extra = {len(case.image) - len(case.target) for case in cases}
    if extra == {0}:
        found["identity"] = Reference(_rescaled(lambda image: image, cases))
    if extra == {1}:
        found["bicubic"] = Reference(_rescaled(lambda image: image[1:], cases))
        found["brovey"] = Reference(_rescaled(brovey, cases))
    return found


def _rescaled(predict: Callable[[Tensor], Tensor], cases: Sequence[Case]) -> Callable[[Tensor], Tensor]:
    """Return a prediction of which each channel is multiplied by a factor, plus an offset, by least squares."""
    x = torch.cat([predict(case.image).double().flatten(1) for case in cases], 1)
    y = torch.cat([case.target.double().flatten(1) for case in cases], 1)
    x = x.masked_fill(y.isnan(), torch.nan)
    mean_x, mean_y = x.nanmean(1, keepdim=True), y.nanmean(1, keepdim=True)
    covariance, variance = ((x - mean_x) * (y - mean_y)).nanmean(1), (x - mean_x).square().nanmean(1)
    factor = (covariance / variance.clamp(min=1e-300)).nan_to_num(0)
    offset = (mean_y[:, 0] - factor * mean_x[:, 0]).nan_to_num(0)

    def rescaled(image: Tensor) -> Tensor:
        shape = -1, *[1] * (image.ndim - 1)
        return (predict(image).double() * factor.reshape(shape) + offset.reshape(shape)).float()

    return rescaled


def best_threshold(values: np.ndarray, second: np.ndarray) -> tuple[float, bool]:
    """Return the threshold with the fewest wrong values, and whether the values above it are the second class.

    values: (N,); second: (N,) bool, whether each is of the second class. The threshold lies between two values, or is
    infinite if one class everywhere is best.
    """
    order = np.argsort(values, kind="stable")
    values, second = np.asarray(values, np.float64)[order], second[order]
    # With the first n values below: wrong are those of the second class below, and of the first class above.
    below = np.concatenate([[0], np.cumsum(second)])
    number = np.arange(len(values) + 1)
    wrong = below + (len(values) - number) - (second.sum() - below)
    places = np.concatenate([[True], values[1:] > values[:-1], [True]]) if len(values) else np.array([True])
    wrong_if_bright = np.where(places, wrong, len(values) + 1)
    wrong_if_dark = np.where(places, len(values) - wrong, len(values) + 1)
    bright = bool(wrong_if_bright.min() <= wrong_if_dark.min())
    place = int((wrong_if_bright if bright else wrong_if_dark).argmin())
    if not 0 < place < len(values):
        return (-np.inf if place == 0 else np.inf), bright
    return float(values[place - 1] + values[place]) / 2, bright


def evenly_spaced(indices: Sequence[int], limit: int = FITTED) -> list[int]:
    """Return at most `limit` of the indices."""
    if not len(indices):
        return []
    places = np.linspace(0, len(indices) - 1, min(limit, len(indices))).astype(int)
    return [indices[place] for place in np.unique(places)]


def _classes_of(second: np.ndarray) -> Tensor:
    """Return probabilities (2, *S) of where the second class is, (*S) bool."""
    inside = torch.from_numpy(second)
    return torch.stack([~inside, inside]).float()


def _above_otsu(values: np.ndarray) -> np.ndarray:
    """Return which values are above the threshold of the greatest variance between both sides (Otsu 1979), bool."""
    from skimage.filters import threshold_otsu

    return values > threshold_otsu(values)


def _smoothed(image: Tensor) -> np.ndarray:
    """Return an image of one channel (1, *S), smoothed, (*S) fp64."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(image[0].double().numpy(), SMOOTHING)


def _everywhere(values: Tensor, image: Tensor) -> Tensor:
    """Return (K, *S) of the values (K,), as large as the image (C, *S)."""
    return values.reshape(-1, *[1] * (image.ndim - 1)).expand(-1, *image.shape[1:])
