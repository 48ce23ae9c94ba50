"""Predictions of images as files: PNG of classes and objects, arrays of numbers."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..core.errors import UserError
from ..core.storage import atomic_write
from ..data.labels import COLOR, Labels
from ..data.pair_files import read_image
from ..data.pairs import Source
from .painting import COLORS, overlay_palette, palette_of, save_numbers, save_overlay
from .predict import ImagePredictor, Prediction
from .predicted_arrays import Extras, PredictedArrays, gather_arrays

MAX_VALUE = 65_535
"""Of a PNG."""
SUFFIXES = {"probabilities": ".probabilities.npy", "numbers": ".npy", "std": ".std.npy"}
"""Of the files of arrays, by their names."""


def save_image(predictor: ImagePredictor, sources: tuple[Source, ...], path: Path, extras: Extras = Extras()) -> None:
    """Write the prediction of the image in some files, see `save_prediction`. Raise UserError if it cannot be read."""
    image = predictor.own.application.input_of(read_image(sources, predictor.own.data.channels))
    watch = member_writer(path.parent / "members" / path.name, predictor.labels) if extras.members else None
    save_prediction(predictor, image, predictor.strips(image, watch), path, extras)


def save_prediction(
    predictor: ImagePredictor,
    image: Tensor,
    strips: Iterable[tuple[slice, Prediction]],
    path: Path,
    extras: Extras = Extras(),
) -> None:
    """Write the prediction of an image to PATH.png or PATH.npy, what follows from it, and what else is requested.

    Classes are written with the values of the training's targets, instances with a number for each. Several members
    add PATH.std.npy, (H, W) or (C, H, W) fp32. Raise UserError for more than 65,535 objects.
    """
    found = _gathered(predictor, image, strips, path, extras.probabilities)
    if (labels := predictor.labels) is None:
        assert found.mean is not None
        return _save_derived(predictor, torch.from_numpy(found.mean), path, extras)
    shown, palette = found.classes, overlay_palette(palette_of(labels))
    file, folder = f"{path.name}.png", path.parent
    if labels.instances or extras.objects:
        objects = predictor.objects(found.classes, found.second)
        save_objects(folder / file if labels.instances else folder / "objects" / file, objects)
        shown, palette = torch.from_numpy(objects), COLORS
    if not labels.instances:
        save_labels(folder / file, found.classes, labels)
    if extras.overlays:
        save_overlay(folder / "overlays" / file, image, shown, palette)


def _save_derived(predictor: ImagePredictor, numbers: Tensor, path: Path, extras: Extras) -> None:
    """Write what follows from numbers (K, H, W) to PATH.NAME.npy, and with overlays each as a PNG, too."""
    for name, values in predictor.own.application.derived(numbers).items():
        file = f"{path.name}.{name}"
        with atomic_write(path.with_name(f"{file}.npy")) as partial, open(partial, "wb") as opened:
            np.save(opened, values.numpy())
        if extras.overlays:
            save_numbers(path.parent / "overlays" / f"{file}.png", values.reshape(-1, *values.shape[-2:]))


def member_writer(folder: Path, labels: Labels | None) -> Callable[[Tensor], None]:
    """Return what writes members (K, H, W), one a call, to FOLDER/00.png or .npy, ..."""
    numbers = count()

    def write(member: Tensor) -> None:
        path = folder / f"{next(numbers):02d}"
        if labels:
            return save_labels(path.with_suffix(".png"), member.argmax(0), labels)
        with atomic_write(path.with_suffix(".npy")) as file, open(file, "wb") as opened:
            np.save(opened, member.numpy())

    return write


def _gathered(
    predictor: ImagePredictor,
    image: Tensor,
    strips: Iterable[tuple[slice, Prediction]],
    path: Path,
    probabilities: bool,
) -> PredictedArrays:
    """Return the arrays of a prediction, those of numbers in their files."""
    with ExitStack() as files:

        def new_array(name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
            file = files.enter_context(atomic_write(path.with_name(f"{path.name}{SUFFIXES[name]}")))
            values = np.lib.format.open_memmap(file, "w+", dtype, shape)
            files.callback(values.flush)
            return values

        return gather_arrays(predictor, tuple(image.shape[1:]), strips, probabilities, new_array)


def save_labels(path: Path, classes: Tensor, labels: Labels) -> None:
    """Write classes (H, W) as a PNG with the values, or colors, of the training's targets."""
    colors = any(code >= COLOR for code in labels.codes)
    values = np.asarray(palette_of(labels) if colors else labels.codes)
    _save_values(path, values.astype(_depth(values.max()))[classes.numpy()])


def save_objects(path: Path, objects: np.ndarray) -> None:
    """Write objects (H, W), numbered from 1, as a PNG. Raise UserError for more than 65,535."""
    if (number := objects.max(initial=0)) > MAX_VALUE:
        raise UserError(f"{path}: {number:,} objects do not fit into 16 bits; predict parts of the image")
    _save_values(path, objects.astype(_depth(number)))


def _depth(greatest: int) -> type:
    return np.uint8 if greatest < 256 else np.uint16


def _save_values(path: Path, values: np.ndarray) -> None:
    with atomic_write(path) as file:
        Image.fromarray(values).save(file, format="PNG")
