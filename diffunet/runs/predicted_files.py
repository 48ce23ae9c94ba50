"""Predictions as files: images or volumes in, files of the same names and sizes out."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..core.errors import UserError, did_you_mean, printable
from ..core.progress import no_progress
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
) -> int:
    """Write the prediction of each image, and return how many could not be read, which are reported and left out."""
    skipped = 0
    for name, sources in progress(inputs.items()):
        try:
            _saver_of(predictor, sources)(predictor, sources, folder / name, extras)
        except (UserError, ValueError) as mistake:
            print(f"skipped {name}: {mistake}")
            skipped += 1
    return skipped


def _saver_of(predictor: ImagePredictor, sources: tuple[Source, ...]) -> Callable:
    """Return the function that writes the prediction of what is in the files."""
    if predictor.own.unet.dims == 2:
        return save_image
    return save_pockets if is_molecule(Path(sources[0].path)) else save_volume
