"""Predict images with runs: files in, files of the same names and sizes out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..core.errors import UserError, did_you_mean, printable
from ..core.progress import no_progress
from ..core.runtime import default_device
from ..core.storage import atomic_write
from ..data.labels import COLOR, Labels, labels_of
from ..data.paired import read_image
from ..data.pairs import Source, group_channels, image_files, natural, number_of_pages
from ..evaluation.instances import segments_of, watershed_segments
from ..models.averaging import Averaged, Ensemble, Probabilities, mean_and_std
from ..models.posterior import TargetDenoiser
from ..models.tiling import Box, valid_tile_sizes
from ..objectives.posterior import PosteriorConfig
from .painting import COLORS, overlay_palette, palette_of, save_overlay
from .prediction import PredictConfig, PredictionConfig, load_predictor
from .run import Run

STACK = {".tif", ".tiff"}
MAX_VALUE = 65_535
"""Of a PNG."""
STRIP_BYTES = 2**28
"""Memory of the predictions of one strip of an image, about; an image has one strip or several."""
COPIES = 6
"""Arrays as large as a prediction that are in memory at once: sums, members, their mean and deviation."""


@dataclass(frozen=True)
class Prediction:
    """The prediction of one image."""

    mean: Tensor
    """(K, H, W) fp32: probabilities of the classes, or numbers in the units of the targets."""
    std: Tensor
    """(K, H, W): the deviation between members, of an ensemble or views; 0 of one member."""

    @property
    def classes(self) -> Tensor:
        """The most probable class of each place, (H, W) int64."""
        return self.mean.argmax(0)


class ImagePredictor:
    """Predicts whole images of any size with one or several runs, tile by tile.

    Raise UserError for runs that do not belong together, and for a tile that the network cannot take.
    """

    def __init__(self, runs: Sequence[Run], config: PredictConfig | None = None):
        configs = [run.config(PredictionConfig) for run in runs]
        self.own, self.settings = configs[0], config or configs[0].predict
        for run, other in zip(runs, configs, strict=True):
            for key, kept in (("data", "class_names"), ("data", "channels"), ("objective", "type")):
                found, expected = (getattr(getattr(one, key), kept) for one in (other, self.own))
                if found != expected:
                    raise UserError(f"{run.folder}: {key}.{kept} is {found}, that of {runs[0].folder} {expected}")
        self.labels = labels_of(self.own.data) if self.own.kind == "segmentation" else None
        self.device = default_device()
        self.model = Ensemble([self._member(run, own) for run, own in zip(runs, configs, strict=True)]).to(self.device)

        self.samples = isinstance(self.own.objective, PosteriorConfig)
        """Whether members are samples of the target."""
        self.several = len(runs) > 1 or self.settings.average or (self.samples and self.settings.samples > 1)
        """Whether predictions have a deviation between members."""

    def _member(self, run: Run, own: PredictionConfig) -> nn.Module:
        predictor = load_predictor(run)
        tile = self._tile(own, predictor)
        model = predictor.tiled(tile)
        if isinstance(model, TargetDenoiser):
            return own.target_samples(model, self.settings)
        if self.labels:
            model = Probabilities(model)
        return Averaged(model, turned=tile[0] == tile[1]) if self.settings.average else Ensemble([model])

    def _tile(self, own: PredictionConfig, predictor) -> tuple[int, int]:
        """Return the tile of a network: what is configured, or its patch."""
        if not (side := self.settings.tile):
            return own.data.patch_size
        fitting = valid_tile_sizes(predictor.unet, 1, side + 2 * own.unet.max_stride)
        if side not in fitting:
            near = sorted(sorted(fitting, key=lambda other: abs(other - side))[:2])
            listed = " or ".join(map(str, near))
            raise UserError(f"--tile: some level would not halve {side} evenly; use {listed}")
        return side, side

    @property
    def channels(self) -> int:
        """Classes, or numbers of each place."""
        return self.own.unet.out_channels

    @torch.no_grad()
    def __call__(
        self, image: Tensor, box: Box | None = None, watch: Callable[[Tensor], None] | None = None
    ) -> Prediction:
        """Return the prediction of an image, (C, H, W), in the units of its file; of a box, what is inside it.

        `watch` gets each prediction behind the mean, (K, H, W).
        """
        if len(image) != (expected := self.own.data.channels):
            raise UserError(f"the image has {len(image)} channels, and the run was trained on {expected}")
        members = (member.float() for member in self.model.members(image[None], box))
        mean, std = mean_and_std(_watched(members, watch) if watch else members)
        return Prediction(mean[0], std[0])

    def objects(self, classes: Tensor, second: Tensor) -> np.ndarray:
        """Return the objects of a prediction, numbered from 1, (H, W): the parts of all classes but the first.

        classes: (H, W). second: the probability of the second class, (H, W), by which a watershed divides two classes.
        """
        if self.settings.watershed is None or self.channels > 2:
            return segments_of(classes)
        second = second.half().float()  # as kept for a whole image
        return watershed_segments(classes, -second, seed_below=-self.settings.watershed)

    def strips(
        self, image: Tensor, watch: Callable[[Tensor], None] | None = None
    ) -> Iterator[tuple[slice, Prediction]]:
        """Yield the prediction of an image strip by strip: rows, and what is predicted for them.

        The parts are those of the whole prediction, in bounded memory beside the image. There is one strip for samples,
        which are of whole images, and for `watch`, which gets each prediction behind the mean, (K, H, W).
        """
        height, width = image.shape[-2:]
        rows = height if self.samples or watch else max(STRIP_BYTES // (COPIES * 4 * self.channels * width), 1)
        for start in range(0, height, rows):
            stop = min(start + rows, height)
            yield slice(start, stop), self(image, [(start, stop), (0, width)], watch)


def _watched(members: Iterator[Tensor], watch: Callable[[Tensor], None]) -> Iterator[Tensor]:
    for member in members:
        watch(member[0])
        yield member


# ── files ─────────────────────────────────────────────────────────────────────────────────────────


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
