"""Predictions of volumes as files on the grid of what was predicted: the same voxels at the same places."""

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from ..core.errors import UserError
from ..data.labels import COLOR, Labels
from ..data.pairs import Source
from ..data.volume_pairs import at_spacing, read_volumes
from ..data.volumes.files import write_volume, written_suffix
from ..data.volumes.grids import Volume
from ..data.volumes.resampling import resample_back
from .painting import COLORS, overlay_palette, palette_of, save_volume_overlay
from .predict import ImagePredictor, Prediction
from .predicted_arrays import Extras, gather_arrays

PLANES = 16
"""Planes that are resampled together to the grid of the file."""


def save_volume(predictor: ImagePredictor, sources: tuple[Source, ...], path: Path, extras: Extras = Extras()) -> None:
    """Write the prediction of a volume to PATH on its grid, and what else is requested.

    The suffix is that of its file, or .nii.gz for MetaImage. Classes have the values of the training's targets,
    instances a number for each; numbers are fp32, (C, D, H, W). Raise UserError if the volume cannot be read, or
    belongs to another kind of training.
    """
    volume, like = read_volumes(sources, predictor.own.data.channels), Path(sources[0].path)
    suffix, labels, size = written_suffix(like), predictor.labels, tuple(volume.values.shape[1:])
    watch = _member_writer(predictor, volume, path.parent / "members" / path.name, like) if extras.members else None

    def write(file: Path, values: np.ndarray) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_volume(file.with_name(file.name + suffix), values, like)

    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent, prefix=".partial.") as scratch:

        def new_array(name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
            return np.lib.format.open_memmap(Path(scratch) / f"{name}.npy", "w+", dtype, shape)

        strips = on_grid(predictor, volume, new_array, watch)
        found = gather_arrays(predictor, size, strips, extras.probabilities, new_array)
        if found.mean is not None:
            write(path.with_name(f"{path.name}.probabilities") if labels else path, found.mean)
        if found.std is not None:
            write(path.with_name(f"{path.name}.std"), found.std)
    if labels is None:
        return
    shown, palette = found.classes, overlay_palette(palette_of(labels))
    if labels.instances or extras.objects:
        objects = predictor.objects(found.classes, found.second)
        write(path if labels.instances else path.parent / "objects" / path.name, objects.astype(np.int32))
        shown, palette = torch.from_numpy(objects), COLORS
    if not labels.instances:
        write(path, values_of(found.classes, labels))
    if extras.overlays:
        spacing = None if volume.grid is None else volume.grid.spacing
        file = path.parent / "overlays" / f"{path.name}.png"
        save_volume_overlay(file, volume.values, shown, palette, spacing)


def values_of(classes: Tensor, labels: Labels) -> np.ndarray:
    """Return the value in files of each class. Raise UserError for classes that are colors."""
    if max(labels.codes) >= COLOR:
        raise UserError("predict: the classes of the training are colors, which volumes do not have")
    return np.asarray(labels.codes, np.int32)[classes.numpy()]


def on_grid(
    predictor: ImagePredictor,
    volume: Volume,
    new_array: Callable[[str, tuple[int, ...], type], np.ndarray],
    watch: Callable[[Tensor], None] | None = None,
) -> Iterator[tuple[slice, Prediction]]:
    """Yield the prediction of a volume on its own grid, some planes after the other.

    It is made at the spacing of the training, and kept in `new_array`s until it is complete. `watch` gets each
    prediction behind the mean, at that spacing.
    """
    image = at_spacing(volume, predictor.own.data.spacing, nearest=False).values
    shape = tuple(volume.values.shape[1:])
    if image.shape == volume.values.shape:
        yield from predictor.strips(image, watch)
        return
    kept = [
        new_array(f"resampled_{name}", (predictor.channels, *image.shape[1:]), np.float32) for name in ("mean", "std")
    ]
    for planes, part in predictor.strips(image, watch):
        kept[0][:, planes], kept[1][:, planes] = part.mean.numpy(), part.std.numpy()
    mean, std = map(torch.from_numpy, kept)
    for start in range(0, shape[0], PLANES):
        planes = slice(start, min(start + PLANES, shape[0]))
        yield planes, Prediction(*(resample_back(values, shape, planes) for values in (mean, std)))


def predict_volume(predictor: ImagePredictor, volume: Volume) -> Prediction:
    """Return the prediction of a volume on its own grid."""
    parts = [part for _, part in on_grid(predictor, volume, lambda name, shape, dtype: np.empty(shape, dtype))]
    return Prediction(torch.cat([part.mean for part in parts], 1), torch.cat([part.std for part in parts], 1))


def _member_writer(predictor: ImagePredictor, volume: Volume, folder: Path, like: Path) -> Callable[[Tensor], None]:
    """Return what writes members, one a call, to FOLDER/00.nii.gz, ... on the grid of the volume."""
    numbers, shape = count(), tuple(volume.values.shape[1:])

    def write(member: Tensor) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        member = member if tuple(member.shape[1:]) == shape else resample_back(member, shape)
        values = member.numpy() if predictor.labels is None else values_of(member.argmax(0), predictor.labels)
        write_volume(folder / f"{next(numbers):02d}{written_suffix(like)}", values, like)

    return write
