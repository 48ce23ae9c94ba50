"""Predictions as files: images or volumes in, files of the same names and sizes out."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from ..core.errors import UserError, did_you_mean, printable
from ..core.progress import no_progress
from ..core.shared_work import UNFINISHED, SharedWork
from ..core.storage import atomic_write, load_json, sha256_of_tensors
from ..data.complex_pairs import SUFFIXES as MOLECULES
from ..data.complex_pairs import is_molecule
from ..data.pairs import STACK, Source, group_channels, image_files, natural, number_of_pages
from ..data.volumes.files import FORMATS, stem_of
from .predict import ImagePredictor
from .predicted_arrays import Extras
from .predicted_images import save_image
from .predicted_molecules import save_pockets
from .predicted_volumes import save_volume

SOLIDS = *FORMATS, *MOLECULES, *(f"{suffix}.gz" for suffix in MOLECULES)
"""Suffixes of the files of volumes and molecules in a folder."""


def inputs_of(words: Sequence[str], channels: int | None, dims: int = 2) -> dict[str, tuple[Source, ...]]:
    """Return the images, or with three axes volumes, of files and folders by the names of their predictions.

    A folder has images, or files NAME_0000, NAME_0001, ... for the channels of one image. Each page of a stack is an
    image; together they are one volume. Raise UserError for a word that is neither, an empty folder, or two images of
    one name.
    """
    found: dict[str, tuple[Source, ...]] = {}
    for word in words:
        path = Path(word)
        if path.is_dir():
            files = image_files(
                path, (*FORMATS, *MOLECULES, *(f"{end}.gz" for end in MOLECULES)) if dims == 3 else None
            )
            if not files:
                raise UserError(f"{printable(word)}: contains no {'volumes' if dims == 3 else 'images'}")
            several = (channels or 1) > 1 and any(stem_of(file).endswith("_0001") for file in files)
            named = group_channels(files) if several else {stem_of(file): (Source(str(file)),) for file in files}
        elif path.is_file():
            named = {stem_of(path): (Source(str(path)),)}
        else:
            near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
            raise UserError(f"{printable(word)}: no such file or folder{near}")
        for name, sources in named.items():
            for label, pages in _pages(name, sources) if dims == 2 else [(name, sources)]:
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
    extras: Extras = Extras(),
    progress: Callable = no_progress,
) -> int | None:
    """Write the predictions of images that are missing, and return how many images cannot be read, once all is there.

    Those are reported and left out. Several processes may do so at the same time, in the same folder; all but the last
    to finish return None. Raise UserError if the folder holds the beginning of other predictions.
    """
    names = {f"{index:06d}.json": name for index, name in enumerate(inputs)}
    work = SharedWork(folder / UNFINISHED, job_of(predictor, inputs, extras), list(names))
    for part in progress(work.claim()):
        name, skipped = names[part.name], False
        try:
            _saver_of(predictor, inputs[name])(predictor, inputs[name], folder / name, extras)
        except (UserError, ValueError) as mistake:
            print(f"skipped {name}: {mistake}")
            skipped = True
        with atomic_write(part) as partial:
            partial.write_text(json.dumps({"skipped": skipped}), encoding="utf-8")
    with work.closing() as last:
        return sum(load_json(part)["skipped"] for part in work.parts) if last else None


def job_of(predictor: ImagePredictor, inputs: dict[str, tuple[Source, ...]], extras: Extras) -> str:
    """Return what distinguishes predictions from others: weights, settings and images."""
    settings = predictor.settings.model_dump(mode="json"), asdict(extras)
    return json.dumps([sha256_of_tensors(predictor.model.state_dict()), settings, str(inputs)])


def _saver_of(predictor: ImagePredictor, sources: tuple[Source, ...]) -> Callable:
    """Return the function that writes the prediction of what is in the files."""
    if predictor.own.unet.dims == 2:
        return save_image
    return save_pockets if is_molecule(Path(sources[0].path)) else save_volume
