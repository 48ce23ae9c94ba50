"""The built-in digits: 1,797 handwritten digits of 8×8 pixels, with captions of what is measured on them.

A caption such as "a bold seven leaning right" has the class, the weight and the slant of a digit. Weight and slant are
measured, so they can be measured on samples as well. They compare a digit with those of its own class: moments see that
the shape of a seven leans right and that of a six left, whoever wrote them. So every combination of words has examples
(10 to 32), and the class alone gives neither weight nor slant away.
"""

import functools
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .sources import Table

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WEIGHTS = ("thin", "regular", "bold")
"""The third of a class with the least ink, the middle third, and the one with the most."""
SLANTS = ("leaning left", "upright", "leaning right")
"""The third of a class with the least slant, the middle third, and the one with the most."""


def caption_of(digit: int, weight: str, slant: str) -> str:
    """Return the caption of a digit: "a bold seven leaning right", "an upright two" (regular is omitted)."""
    words = [weight, "upright", CLASSES[digit]] if slant == "upright" else [weight, CLASSES[digit], slant]
    caption = " ".join(word for word in words if word != "regular")
    return f"{'an' if caption.startswith(('upright', 'eight')) else 'a'} {caption}"


CAPTIONS = {caption_of(*words): words for words in product(range(len(CLASSES)), WEIGHTS, SLANTS)}
"""The class, weight and slant of each of the 90 captions."""


@functools.cache
def load_digits() -> tuple[Tensor, Tensor]:
    """Return the levels of all pixels, 0 to 16, uint8 (N, 8, 8), and the classes, int64 (N,).

    From scikit-learn (UCI, Alpaydin & Kaynak 1998).
    """
    # The file that sklearn.datasets.load_digits reads, without two seconds of imports.
    file = Path(find_spec("sklearn").origin).parent / "datasets" / "data" / "digits.csv.gz"
    rows = torch.from_numpy(np.loadtxt(file, delimiter=","))
    return rows[:, :64].reshape(-1, 8, 8).to(torch.uint8), rows[:, 64].long()


def digit_images() -> Tensor:
    """Return all digits as 8-bit images, uint8 (N, 1, 8, 8)."""
    levels, _ = load_digits()
    return (levels * (255 / 16)).round().to(torch.uint8)[:, None]


def measure(images: Tensor) -> dict[str, Tensor]:
    """Return the ink and the slant of bright digits on black, (N, 1, H, W) in [0, 1], each (N,) in fp64.

    Ink is the mean of all pixels. Slant is the shear mu_11 / mu_02 of the central moments with y upwards: how many
    pixels a stroke moves to the right for each pixel that it rises; 0 for a blank image.
    """
    weight = images[:, 0].double()
    height, width = weight.shape[1:]
    weight = weight / weight.sum((1, 2), keepdim=True).clamp(min=1e-12)
    y = torch.arange(height - 1, -1, -1.0, dtype=torch.float64, device=images.device)[:, None]
    x = torch.arange(width, dtype=torch.float64, device=images.device)
    x, y = (axis - (weight * axis).sum((1, 2), keepdim=True) for axis in (x, y))
    slant = (weight * x * y).sum((1, 2)) / (weight * y**2).sum((1, 2)).clamp(min=1e-12)
    return {"ink": images.double().mean((1, 2, 3)), "slant": slant}


@functools.cache
def _measured() -> dict[str, Tensor]:
    return measure(digit_images() / 255)


@functools.cache
def _thresholds(name: str) -> Tensor:
    """Return the terciles of a measured quantity within each class, (10, 2)."""
    _, classes = load_digits()
    thirds = torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)
    within = [_measured()[name][classes == digit].quantile(thirds) for digit in range(len(CLASSES))]
    return torch.stack(within) + 1e-9  # equal to some digits' values, whose rounding must not decide


def words_of(ink: Tensor, slant: Tensor, classes: Tensor) -> list[tuple[str, str]]:
    """Return the weight and the slant in words of digits with this ink and slant, compared with real ones of a class.

    ink, slant: (N,), from `measure`. classes: (N,) integers; of a sample the requested ones.
    """
    weights, slants = (
        (values[:, None].cpu() > _thresholds(name)[classes.cpu()]).sum(1).tolist()
        for name, values in (("ink", ink), ("slant", slant))
    )
    return [(WEIGHTS[weight], SLANTS[lean]) for weight, lean in zip(weights, slants, strict=True)]


@functools.cache
def digit_table() -> Table:
    """Return the columns `label`, `caption`, `ink` and `slant` of all digits."""
    _, classes = load_digits()
    words = words_of(**_measured(), classes=classes)
    captions = [caption_of(digit, *pair) for digit, pair in zip(classes.tolist(), words, strict=True)]
    numbers = {name: values.tolist() for name, values in _measured().items()}
    return Table("digits", {"label": classes.tolist(), "caption": captions, **numbers})
