"""Predictions as files: images in, files of the same names and sizes out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..core.errors import UserError, did_you_mean, printable
from ..core.progress import no_progress
from ..core.storage import atomic_write
from ..data.labels import COLOR, Labels
from ..data.paired import read_image
from ..data.pairs import Source, group_channels, image_files, natural, number_of_pages
from .painting import COLORS, overlay_palette, palette_of, save_overlay
from .predict import ImagePredictor, Prediction

STACK = {".tif", ".tiff"}
MAX_VALUE = 65_535
"""Of a PNG."""


def inputs_of(words: Sequence[str], channels: int | None) -> dict[str, tuple[Source, ...]]:
    """Return the images of files and folders by the names of their predictions.

    A folder has images, or files NAME_0000, NAME_0001, ... for the channels of one image. Each page of a stack is an
    image. Raise UserError for a word that is neither, an empty folder, or two images of one name.
    """
    found: dict[str, tuple[Source, ...]] = {}
    for word in words:
        path = Path(word)
        if path.is_dir():
            files = image_files(path)
            if not files:
                raise UserError(f"{printable(word)}: contains no images")
            several = (channels or 1) > 1 and any(file.stem.endswith("_0001") for file in files)
            named = group_channels(files) if several else {file.stem: (Source(str(file)),) for file in files}
        elif path.is_file():
            named = {path.stem: (Source(str(path)),)}
        else:
            near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
            raise UserError(f"{printable(word)}: no such file or folder{near}")
        for name, sources in named.items():
            for label, pages in _pages(name, sources):
                if label in found:
                    raise UserError(f"{printable(word)}: {label} is already the name of {found[label][0]}; rename one")
                found[label] = pages
    return dict(sorted(found.items(), key=lambda item: natural(item[0])))


def _pages(name: str, sources: tuple[Source, ...]) -> Iterator[tuple[str, tuple[Source, ...]]]:
    path = Path(sources[0].path)
    pages = number_of_pages(path) if path.suffix.lower() in STACK and len(sources) == 1 else 1
    for page in range(pages):
        yield (f"{name}_{page:04d}" if pages > 1 else name), (sources if pages == 1 else (Source(str(path), page),))


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


def predict_files(
    predictor: ImagePredictor,
    inputs: dict[str, tuple[Source, ...]],
    folder: Path,
    extras: Extras = Extras(),
    progress: Callable = no_progress,
) -> int:
    """Write the prediction of each image, and return how many could not be read, which are reported and left out."""
    skipped = 0
    for name, sources in progress(inputs.items()):
        try:
            image = read_image(sources, predictor.own.data.channels)
            watch = _member_writer(folder / "members" / name, predictor.labels) if extras.members else None
            save_prediction(predictor, image, predictor.strips(image, watch), folder / name, extras)
        except (UserError, ValueError) as mistake:
            print(f"skipped {name}: {mistake}")
            skipped += 1
    return skipped


def save_prediction(
    predictor: ImagePredictor,
    image: Tensor,
    strips: Iterable[tuple[slice, Prediction]],
    path: Path,
    extras: Extras = Extras(),
) -> None:
    """Write the prediction of an image to PATH.png or PATH.npy, and what else is requested.

    Classes are written with the values of the training's targets, instances with a number for each. Several members
    add PATH.std.npy, (H, W) or (C, H, W) fp32. Raise UserError for more than 65,535 objects.
    """
    classes, second = _save_arrays(predictor, image, strips, path, extras.probabilities)
    if (labels := predictor.labels) is None:
        return
    shown, palette = classes, overlay_palette(palette_of(labels))
    file, folder = f"{path.name}.png", path.parent
    if labels.instances or extras.objects:
        objects = predictor.objects(classes, second)
        save_objects(folder / file if labels.instances else folder / "objects" / file, objects)
        shown, palette = torch.from_numpy(objects), COLORS
    if not labels.instances:
        save_labels(folder / file, classes, labels)
    if extras.overlays:
        save_overlay(folder / "overlays" / file, image, shown, palette)


def _member_writer(folder: Path, labels: Labels | None) -> Callable[[Tensor], None]:
    """Return what writes members (K, H, W), one a call, to FOLDER/00.png or .npy, ..."""
    numbers = count()

    def write(member: Tensor) -> None:
        path = folder / f"{next(numbers):02d}"
        if labels:
            return save_labels(path.with_suffix(".png"), member.argmax(0), labels)
        with atomic_write(path.with_suffix(".npy")) as file, open(file, "wb") as opened:
            np.save(opened, member.numpy())

    return write


def _save_arrays(
    predictor: ImagePredictor,
    image: Tensor,
    strips: Iterable[tuple[slice, Prediction]],
    path: Path,
    probabilities: bool,
) -> tuple[Tensor, Tensor]:
    """Write the arrays of a prediction strip by strip.

    Return its classes, (H, W) uint8 or int16, and the probability of the second one, (H, W) fp16.
    """
    labels, size = predictor.labels, tuple(image.shape[-2:])
    channels = (predictor.channels,)
    classes = torch.empty(size if labels else 0, dtype=torch.uint8 if predictor.channels <= 256 else torch.int16)
    second = torch.empty(size if labels else 0, dtype=torch.float16)
    with ExitStack() as files:

        def array(suffix: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
            file = files.enter_context(atomic_write(path.with_name(f"{path.name}{suffix}.npy")))
            values = np.lib.format.open_memmap(file, "w+", dtype, shape)
            files.callback(values.flush)
            return values

        mean = std = None
        if probabilities or not labels:
            suffix, dtype = (".probabilities", np.float16) if labels else ("", np.float32)
            mean = array(suffix, channels + size, dtype)
        if predictor.several:
            std = array(".std", size if labels else channels + size, np.float32)
        for rows, part in strips:
            if labels:
                classes[rows], second[rows] = part.classes.to(classes.dtype), part.mean[1].half()
            if mean is not None:
                mean[:, rows] = part.mean.numpy()
            if std is not None:
                std[..., rows, :] = (part.std.mean(0) if labels else part.std).numpy()
    return classes, second


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
