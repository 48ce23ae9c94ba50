"""Built-in synthetic sets of images and volumes with exact targets: segmentation and regression without a download."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from ...core.errors import UserError
from ...core.rng import seed_for
from ...core.water_fat import MAPS
from .globules import SIDE, pockets
from .lattice import defects
from .micrographs import cells, grains, membranes, stain
from .shapes import BANDS, bands, contours, shapes
from .solids import BRAIN_CLASSES, lesions, liver, tubules
from .water_fat import fat_fraction_of, undersampled, water_fat

SMALLEST = 64
"""Least height and width of an image in pixels, where the objects of every set fit."""
SMALLEST_SOLID = 16
"""Least side of a volume in voxels."""


class Phantom(NamedTuple):
    """A synthetic image with its target; volumes have (D, H, W) in place of (H, W)."""

    image: np.ndarray
    """(C, H, W) uint8, uint16 or int16, or float32 of signals with a sign."""
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
    draw: Callable[[np.random.Generator, Any], tuple[np.ndarray, np.ndarray]]
    """From a generator and a size, of as many sides as `size`, to an image and its target."""
    cases: int = 40
    """Number of cases by default; `generate` has no limit."""
    size: tuple[int, ...] = (256, 256)
    """Height and width in pixels, or depth, height and width in voxels."""

    @property
    def smallest(self) -> tuple[int, ...]:
        """The least size of a case."""
        return (SMALLEST if len(self.size) == 2 else SMALLEST_SOLID,) * len(self.size)

    def generate(self, index: int, size: tuple[int, ...] | None = None, seed: int = 0) -> Phantom:
        """Return case `index`, from 0 on, of a size (default: the set's own).

        It is a function of the name of the set, the seed, the index and the size. Raise UserError if a side has fewer
        than 64 pixels, or 16 voxels, or if the number of sides is not that of the set.
        """
        size = tuple(size or self.size)
        if len(size) != len(self.size) or min(size) < self.smallest[0]:
            least, got = ("x".join(map(str, sides)) for sides in (self.smallest, size))
            unit = "pixels" if len(self.size) == 2 else "voxels"
            raise UserError(
                f"{self.name}: built-in cases have at least {least} {unit} (got {got}); choose a larger size"
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
    PhantomSet(
        "tubules",
        "volumes of branching tubules, as the kidney of the 3D U-Net (Çiçek 2016)",
        "classes",
        ("background", "wall", "inside"),
        tubules,
        size=(64, 64, 64),
    ),
    PhantomSet(
        "lesions", "brains in four channels with tumors, as BRATS", "classes", BRAIN_CLASSES, lesions, size=(64, 64, 64)
    ),
    PhantomSet(
        "liver", "abdomens in tomography, as SLIVER07", "classes", ("outside", "liver"), liver, size=(64, 64, 64)
    ),
    PhantomSet(
        "globules",
        "proteins with a pocket that geometry alone does not find",
        "classes",
        ("elsewhere", "pocket"),
        pockets,
        size=(SIDE, SIDE, SIDE),
    ),
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
