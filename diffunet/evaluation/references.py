"""Simple predictions that a network has to surpass: a constant, a threshold, the image itself."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..data.cases import Case
from ..data.labels import UNKNOWN
from ..data.pansharpening import brovey

Reference = Callable[[Tensor], Tensor]
"""From an image (C, H, W) to probabilities (K, H, W), or to numbers (C', H, W)."""
FITTED = 50
"""Cases, at most, on which references are fitted, evenly spaced."""
SMOOTHING = 1.0
"""Standard deviation in pixels of the Gaussian before the threshold."""
KEPT = 2**22
"""Pixels, at most, among which the threshold is chosen."""


def class_references(cases: Sequence[Case], num_classes: int) -> dict[str, Reference]:
    """Return references for classes, fitted on cases.

    constant: the share of each class everywhere, so the most frequent one is predicted. threshold, of two classes in
    images of one channel: one threshold on the smoothed image, with the least share of wrong pixels.
    """
    truths = [case.target.long() for case in cases]
    counts = sum(torch.bincount(t[t != UNKNOWN], minlength=num_classes) for t in truths)
    shares = torch.as_tensor(counts, dtype=torch.float64)
    shares = (shares / shares.sum().clamp(min=1)).float()
    found: dict[str, Reference] = {"constant": lambda image: _everywhere(shares, image)}
    if num_classes == 2 and all(len(case.image) == 1 for case in cases):
        known = [(truth != UNKNOWN).numpy() for truth in truths]
        values = np.concatenate([_smoothed(case.image)[keep] for case, keep in zip(cases, known, strict=True)])
        second = np.concatenate([truth.numpy()[keep] == 1 for truth, keep in zip(truths, known, strict=True)])
        step = len(values) // KEPT + 1
        threshold, bright = best_threshold(values[::step], second[::step])

        def thresholded(image: Tensor) -> Tensor:
            above = torch.from_numpy((_smoothed(image) > threshold) == bright)
            return torch.stack([~above, above]).float()

        found["threshold"] = thresholded
    return found


def number_references(cases: Sequence[Case]) -> dict[str, Reference]:
    """Return references for numbers, fitted on cases.

    constant: the mean of each channel. identity, if image and target have as many channels: the image. bicubic and
    brovey, if the image has one more, which is then taken for the sharp one of `pansharpening`: its coarse bands, and
    those times the sharp image over their mean. All but the constant are rescaled by least squares.
    """
    truths = [case.target.double().flatten(1) for case in cases]
    mean = torch.cat(truths, dim=1).nanmean(1).nan_to_num(0).float()
    found: dict[str, Reference] = {"constant": lambda image: _everywhere(mean, image)}
    extra = {len(case.image) - len(case.target) for case in cases}
    if extra == {0}:
        found["identity"] = _rescaled(lambda image: image, cases)
    if extra == {1}:
        found["bicubic"] = _rescaled(lambda image: image[1:], cases)
        found["brovey"] = _rescaled(brovey, cases)
    return found


def _rescaled(reference: Reference, cases: Sequence[Case]) -> Reference:
    """Return a reference of which each channel is multiplied by a factor, plus an offset, by least squares."""
    x = torch.cat([reference(case.image).double().flatten(1) for case in cases], 1)
    y = torch.cat([case.target.double().flatten(1) for case in cases], 1)
    x = x.masked_fill(y.isnan(), torch.nan)
    mean_x, mean_y = x.nanmean(1, keepdim=True), y.nanmean(1, keepdim=True)
    covariance, variance = ((x - mean_x) * (y - mean_y)).nanmean(1), (x - mean_x).square().nanmean(1)
    factor = (covariance / variance.clamp(min=1e-300)).nan_to_num(0)
    offset = (mean_y[:, 0] - factor * mean_x[:, 0]).nan_to_num(0)

    def rescaled(image: Tensor) -> Tensor:
        return (reference(image).double() * factor[:, None, None] + offset[:, None, None]).float()

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


def _smoothed(image: Tensor) -> np.ndarray:
    """Return an image of one channel (1, H, W), smoothed, (H, W) fp64."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(image[0].double().numpy(), SMOOTHING)


def _everywhere(values: Tensor, image: Tensor) -> Tensor:
    """Return (K, H, W) of the values (K,), as large as the image (C, H, W)."""
    return values[:, None, None].expand(-1, *image.shape[-2:])
