"""Files that a browser sends: measured before they are decoded."""

import math
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ..core.errors import UserError, printable
from ..data.arrays import NPY, TIFF
from ..data.decoding import UNREADABLE, inspect, reason_of

MAX_BYTES = 20 * 2**20
"""Maximum size of a file."""
MAX_PIXELS = 2**24
"""Maximum number of pixels of an image."""
MAX_SAMPLE_PIXELS = 2**20
"""Maximum number of pixels of a sample, which is larger than its source where the run enlarges."""
MAX_NUMBERS = 2**26
"""Maximum number of probabilities or numbers of a prediction, over all classes or channels."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""What Pillow may open; beside these, arrays: .npy, and TIFF that Pillow does not read."""


def checked_upload(name: str, file: str | Path | None) -> tuple[Path, tuple[int, int]]:
    """Return the path of an uploaded image and the (height, width) of the stored file.

    Raise UserError if it is missing, too large or not an image.

    name: of the input, for the message. Only the header is read: neither the suffix nor the type that the browser
    gives is trusted.
    """
    if file is None:
        raise UserError(f"{name}: no file; upload an image")
    path = Path(file)
    place = f"{name}: {printable(path.name, 60)}"
    if (size := path.stat().st_size) > MAX_BYTES:
        raise UserError(f"{place} is too large (got {size / 2**20:.0f} MB); use at most {MAX_BYTES >> 20} MB")
    try:
        height, width = _size_of(path)
    except UNREADABLE as error:
        raise UserError(f"{place} cannot be read ({reason_of(error)}); upload an image") from None
    if height * width > MAX_PIXELS:
        raise UserError(f"{place} has too many pixels (got {height}×{width}); use at most {MAX_PIXELS:,} in all")
    return path, (height, width)


def check_sample_size(name: str, size: tuple[int, int]) -> None:
    """Raise UserError if an upload makes samples of too many pixels, (height, width)."""
    if math.prod(size) > MAX_SAMPLE_PIXELS:
        found = f"gives images of {size[0]}×{size[1]}"
        raise UserError(f"{name}: {found}, more than the page makes; use a smaller one, or sample.py")


def check_prediction_size(place: str, size: tuple[int, int], channels: int) -> None:
    """Raise UserError if the prediction of an upload, (height, width), has too many numbers in all its channels."""
    if math.prod(size) * channels > MAX_NUMBERS:
        found = f"{size[0]}×{size[1]} pixels with {channels} classes or channels are more than the page predicts"
        raise UserError(f"{place}: {found}; use a smaller one, or diffunet predict")


def _size_of(path: Path) -> tuple[int, int]:
    """Return (height, width) from the header. Pillow's EXIF, which `inspect` reads, would decode a PNG."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.height, image.width
    except UnidentifiedImageError:
        with path.open("rb") as file:
            if not file.read(len(NPY)).startswith((NPY, *TIFF)):
                raise
        return inspect({"path": str(path), "bytes": None}).size
