"""The prediction of an image that a visitor sends: the same files as those of `diffunet predict`."""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import UserError, printable
from ..data.decoding import UNREADABLE, reason_of
from ..data.pair_files import read_image
from ..models.tiling import Tiled
from ..runs.predict import ImagePredictor, Prediction
from ..runs.predicted_arrays import Extras
from ..runs.predicted_files import inputs_of
from ..runs.predicted_images import save_prediction
from ..runs.prediction import PredictConfig
from .predict_form import PredictForm
from .prediction_view import view_of
from .streaming import Finished, Frame, Switch, stream
from .studio import Results, Studio
from .uploads import check_prediction_size, checked_upload

NO_IMAGE = torch.empty(0, 1, 1, 1)
"""Of a frame: a prediction is shown when it is complete."""


@dataclass(frozen=True)
class Predicted(Results):
    """A prediction as the page shows it, and its files."""

    shown: str
    """HTML."""
    summary: str


@dataclass(frozen=True)
class Upload:
    """An image that was sent."""

    file: str
    """Its name."""
    name: str
    """That of its prediction."""
    image: Tensor
    """(C, H, W), in the units of the file."""


def predict(
    studio: Studio, form: PredictForm, config: PredictConfig, file: str | Path | None, switch: Switch
) -> Iterator[Frame | Finished[Predicted | None]]:
    """Yield a frame after each tile, and at last the prediction; None if stopped.

    Raise UserError for a file that cannot be predicted, and for a run without weights.
    """
    upload = read_upload(form, file)
    predictor = ImagePredictor([form.run], config)

    def work(progress: Any, watch: Any) -> Iterator[Prediction]:
        def counted(tiles: Iterable) -> Iterator:
            for tile in progress(tiles):
                yield tile
                watch(NO_IMAGE)

        for part in predictor.model.modules():
            if isinstance(part, Tiled):
                part.progress = counted
        try:
            yield predictor(upload.image)
        except ValueError as mistake:
            raise UserError(f"image: {printable(upload.file, 60)}: {mistake}") from None

    def finish(predictions: Iterable[Prediction]) -> Predicted | None:
        return next((save(studio, form, config, predictor, upload, each) for each in predictions), None)

    yield from stream(work, finish, switch)


def read_upload(form: PredictForm, file: str | Path | None) -> Upload:
    """Return an image as `diffunet predict` reads it. Raise UserError if it is too large, or not one image."""
    path, size = checked_upload("image", file)
    own, place = form.own, f"image: {printable(path.name, 60)}"
    if own.unet.dims == 3:
        raise UserError(f"{place}: the run predicts volumes; use diffunet predict {form.run.folder} FILE")
    check_prediction_size(place, size, own.unet.out_channels)
    try:
        found = inputs_of([str(path)], own.data.channels)
        if len(found) > 1:
            raise UserError(f"{place} has {len(found):,} pages; upload one, or use diffunet predict")
        ((name, sources),) = found.items()
        try:
            return Upload(path.name, name, own.application.input_of(read_image(sources, own.data.channels)))
        except UserError as mistake:
            raise UserError(f"{place}: {str(mistake).removeprefix(f'{sources[0]}: ')}") from None
    except UserError:
        raise
    except UNREADABLE as error:
        raise UserError(f"{place} cannot be read ({reason_of(error)}); upload an image") from None


def save(
    studio: Studio,
    form: PredictForm,
    config: PredictConfig,
    predictor: ImagePredictor,
    upload: Upload,
    prediction: Prediction,
) -> Predicted:
    """Write the files of a prediction as an archive, and return it."""
    overlays = ["--overlays"] * (predictor.labels is not None)
    image = upload.file if not upload.file.startswith("-") else f"./{upload.file}"
    with studio.home(f"{form.run.folder.resolve().name}_{upload.name}") as folder:
        extras = Extras(overlays=bool(overlays))
        save_prediction(predictor, upload.image, [(slice(None), prediction)], folder / upload.name, extras)
        shown = view_of(upload.image, prediction, predictor.labels, folder, upload.name)
        archive = Path(shutil.make_archive(str(folder), "zip", folder))
        command = form.command(config, [image, "--output", folder.name, *overlays])
    height, width = prediction.mean.shape[1:]
    return Predicted(command, archive, shown, f"{upload.file}, {height}×{width} pixels")
