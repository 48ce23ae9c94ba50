"""Built-in synthetic sets of images with exact targets, for segmentation and regression with nothing downloaded."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from ..core.errors import UserError
from ..core.rng import seed_for
from ..core.water_fat import MAPS
from .lattice import defects
from .micrographs import cells, grains, membranes, stain
from .shapes import BANDS, bands, contours, shapes
from .water_fat import fat_fraction_of, undersampled, water_fat

SMALLEST = 64
"""Least height and width of a case in pixels, where the objects of every set fit."""


class Phantom(NamedTuple):
    """A synthetic image with its target."""

    image: np.ndarray
    """(C, H, W) uint8 or uint16, or float32 of signals with a sign."""
    target: np.ndarray
    """Classes (H, W) uint8, numbers of instances (H, W) uint16 with 0 outside, or values (C, H, W) float32,
    NaN where unknown."""
    names: tuple[str, ...]
    """Of the classes, or of the channels of the values; of instances: what is outside and what an instance is."""


@dataclass(frozen=True)
class PhantomSet:
    """A built-in set of synthetic cases."""

    name: str
    description: str
    kind: Literal["classes", "instances", "values"]
    names: tuple[str, ...]
    draw: Callable[[np.random.Generator, tuple[int, int]], tuple[np.ndarray, np.ndarray]]
    """From a generator and a size to an image and its target."""
    cases: int = 40
    """Number of cases by default; `generate` has no limit."""
    size: tuple[int, int] = (256, 256)
    """Height and width in pixels."""

    def generate(self, index: int, size: tuple[int, int] | None = None, seed: int = 0) -> Phantom:
        """Return case `index`, from 0 on, of a size (default: the set's own).

        It is a function of the name of the set, the seed, the index and the size. Raise UserError if a side has fewer
        than 64 pixels.
        """
        size = size or self.size
        if min(size) < SMALLEST:
            raise UserError(
                f"{self.name}: built-in cases have at least {SMALLEST}x{SMALLEST} pixels (got {size[0]}x{size[1]}); "
                "choose a larger size"
            )
        rng = np.random.default_rng(seed_for(zlib.crc32(self.name.encode()), seed, index))
        return Phantom(*self.draw(rng, size), self.names)


_SETS = (
    PhantomSet("membranes", "tissue in electron microscopy, as ISBI 2012", "classes", ("membrane", "cell"), membranes),
    PhantomSet("cells", "touching fluorescent nuclei, one number each", "instances", ("background", "nucleus"), cells),
    PhantomSet("shapes", "large filled shapes (Loos 2024)", "classes", ("outside", "inside"), shapes),
    PhantomSet("contours", "large shapes, contours only (Loos 2024)", "classes", ("outside", "inside"), contours),
    PhantomSet("stain", "phase contrast to the intensity of a nuclear stain", "values", ("stain",), stain),
    PhantomSet("grains", "a polycrystal with faint boundaries", "classes", ("boundary", "grain"), grains),
    PhantomSet("defects", "vacancies of a crystal lattice", "classes", ("background", "vacancy"), defects),
    PhantomSet("bands", "a sharp panchromatic image and four coarse bands to four sharp ones", "values", BANDS, bands),
    *(
        PhantomSet(
            f"water-fat-{number}",
            f"gradient echoes: {number}, to the fraction of fat",
            "values",
            ("fat_fraction",),
            draw,
        )
        for number, draw in ((number, fat_fraction_of(number)) for number in range(1, 6))
    ),
    PhantomSet("water-fat-maps", "five gradient echoes to water, fat, field and R2*", "values", MAPS, water_fat),
    PhantomSet("undersampled", "lines of k-space to a complex image", "values", ("real", "imag"), undersampled),
)
PHANTOMS = {each.name: each for each in _SETS}
"""The built-in sets by name."""
