"""Predict images with runs: files in, files of the same names and sizes out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..core.errors import UserError, did_you_mean, printable
from ..core.runtime import default_device
from ..core.storage import atomic_write
from ..data.labels import COLOR, Labels, labels_of
from ..data.paired import read_image
from ..data.pairs import Source, group_channels, image_files, natural, number_of_pages
from ..evaluation.instances import segments_of
from ..models.averaging import Averaged, Ensemble, Probabilities, mean_and_std
from ..models.posterior import TargetDenoiser
from ..models.tiling import valid_tile_sizes
from .painting import palette_of, save_overlay
from .prediction import PredictConfig, PredictionConfig, load_predictor
from .run import Run

STACK = {".tif", ".tiff"}
MAX_VALUE = 65_535
"""Of a PNG."""


@dataclass(frozen=True)
class Prediction:
    """The prediction of one image."""

    mean: Tensor
    """(K, H, W) fp32: probabilities of the classes, or numbers in the units of the targets."""
    std: Tensor
    """(K, H, W): the deviation between the members of an ensemble; 0 of one member."""

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

    @torch.no_grad()
    def __call__(self, image: Tensor, watch: Callable[[Tensor], None] | None = None) -> Prediction:
        """Return the prediction of an image, (C, H, W), in the units of its file.

        `watch` gets each prediction behind the mean, (K, H, W).
        """
        if len(image) != (expected := self.own.data.channels):
            raise UserError(f"the image has {len(image)} channels, and the run was trained on {expected}")
        members = self.model.members(image[None].to(self.device))
        mean, std = mean_and_std(_watched((member.float() for member in members), watch))
        return Prediction(mean[0].cpu(), std[0].cpu())


def _watched(members: Iterator[Tensor], watch: Callable[[Tensor], None] | None) -> Iterator[Tensor]:
    for member in members:
        if watch:
            watch(member[0].cpu())
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


def predict_files(
    predictor: ImagePredictor,
    inputs: dict[str, tuple[Source, ...]],
    folder: Path,
    probabilities: bool = False,
    overlays: bool = False,
    members: bool = False,
    progress: Callable = lambda items: items,
) -> int:
    """Write the prediction of each image to FOLDER/NAME.png or .npy, and return how many could not be read.

    Classes are written with the values of the training's targets, instances with a number for each connected part.
    `probabilities` adds NAME.probabilities.npy, (K, H, W) fp16; an ensemble adds NAME.std.npy, (H, W) or (C, H, W)
    fp32, and with `members` members/NAME/00.png or .npy, ... An unreadable image is reported and left out.
    """
    skipped, labels = 0, predictor.labels
    for name, sources in progress(inputs.items()):
        try:
            image = read_image(sources, predictor.own.data.channels)
            prediction = predictor(image, _member_writer(folder / "members" / name, labels) if members else None)
        except (UserError, ValueError) as mistake:
            print(f"skipped {name}: {mistake}")
            skipped += 1
            continue
        if labels is None:
            _save_array(folder / f"{name}.npy", prediction.mean.numpy())
        else:
            save_labels(folder / f"{name}.png", prediction.classes, labels)
        if labels and overlays:
            save_overlay(folder / "overlays" / f"{name}.png", image, prediction.classes, labels)
        if labels and probabilities:
            _save_array(folder / f"{name}.probabilities.npy", prediction.mean.numpy().astype(np.float16))
        if prediction.std.any():
            std = prediction.std.mean(0) if labels else prediction.std
            _save_array(folder / f"{name}.std.npy", std.numpy())
    return skipped


def _member_writer(folder: Path, labels: Labels | None) -> Callable[[Tensor], None]:
    """Return what writes members (K, H, W), one call each, to FOLDER/00.png or .npy, ..."""
    numbers = count()

    def write(member: Tensor) -> None:
        path = folder / f"{next(numbers):02d}.npy"
        if labels is None:
            _save_array(path, member.numpy())
        else:
            save_labels(path.with_suffix(".png"), member.argmax(0), labels)

    return write


def save_labels(path: Path, classes: Tensor, labels: Labels) -> None:
    """Write classes (H, W) as a PNG with the values, or colors, of the training's targets; instances numbered from 1.

    Raise UserError for more than 65,535 instances.
    """
    if labels.instances:
        values = segments_of(classes)
    elif any(code >= COLOR for code in labels.codes):
        values = np.asarray(palette_of(labels))[classes.numpy()]
    else:
        values = np.asarray(labels.codes)[classes.numpy()]
    if values.max() > MAX_VALUE:
        raise UserError(f"{path}: {values.max():,} objects do not fit into 16 bits; predict parts of the image")
    with atomic_write(path) as file:
        Image.fromarray(values.astype(np.uint8 if values.max() < 256 else np.uint16)).save(file, format="PNG")


def _save_array(path: Path, values: np.ndarray) -> None:
    with atomic_write(path) as file, open(file, "wb") as opened:
        np.save(opened, values)
