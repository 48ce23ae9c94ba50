"""The arrays of a prediction, filled strip by strip, so that memory holds little more than the classes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .predict import ImagePredictor, Prediction

NewArray = Callable[[str, tuple[int, ...], type], np.ndarray]
"""From a name (probabilities, numbers or std), a shape and a type to an array, in a file or in memory."""


@dataclass(frozen=True)
class Extras:
    """Which files are written beside a prediction."""

    probabilities: bool = False
    """NAME.probabilities.npy, (K, H, W) fp16."""
    overlays: bool = False
    """overlays/NAME.png, the classes or objects on the image."""
    objects: bool = False
    """objects/NAME.png, a number for each object."""
    members: bool = False
    """members/NAME/00.png or .npy, ..., the predictions behind a mean."""


@dataclass(frozen=True)
class PredictedArrays:
    """The whole prediction of an image or volume of the sides S."""

    classes: Tensor
    """(*S) uint8 or int16; empty for numbers."""
    second: Tensor
    """(*S) fp16: the probability of the second class; empty for numbers."""
    mean: np.ndarray | None
    """(K, *S): probabilities, fp16, if requested, or numbers, fp32."""
    std: np.ndarray | None
    """(*S) fp32 of classes, their mean, or (C, *S) of numbers: the deviation between several members."""


def gather_arrays(
    predictor: ImagePredictor,
    size: tuple[int, ...],
    strips: Iterable[tuple[slice, Prediction]],
    probabilities: bool,
    new_array: NewArray,
) -> PredictedArrays:
    """Return the arrays of a prediction that comes in strips. probabilities: also those of all classes."""
    labels, channels = predictor.labels, (predictor.channels,)
    classes = torch.empty(size if labels else 0, dtype=torch.uint8 if predictor.channels <= 256 else torch.int16)
    second = torch.empty(size if labels else 0, dtype=torch.float16)
    mean = std = None
    if probabilities or not labels:
        name, dtype = ("probabilities", np.float16) if labels else ("numbers", np.float32)
        mean = new_array(name, channels + size, dtype)
    if predictor.several:
        std = new_array("std", size if labels else channels + size, np.float32)
    for rows, part in strips:
        if labels:
            classes[rows], second[rows] = part.classes.to(classes.dtype), part.mean[1].half()
        if mean is not None:
            mean[:, rows] = part.mean.numpy()
        if std is not None:
            std[rows if labels else (slice(None), rows)] = (part.std.mean(0) if labels else part.std).numpy()
    return PredictedArrays(classes, second, mean, std)
