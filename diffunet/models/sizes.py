"""Networks by size: compact ones for short trainings, and the proportions of published ones for long trainings."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from .config import LevelConfig, UNetConfig

FINEST, COARSEST = 64, 8
"""Pixels of the shorter side at the finest level of a compact network, at most, beyond which blocks of pixels are
unshuffled; and at its coarsest, at most. Smaller images have two levels."""
GROWTH = (1, 2, 3, 4)
"""Channels of the levels of a compact network as multiples of its width; further levels have as many as the last."""
ATTENDED = 16
"""Pixels of the shorter side up to which a compact network has attention, at most at two levels."""


def compact(width: int, side: int) -> dict[str, Any]:
    """Return settings of a network for short trainings, for images whose shorter side has `side` pixels.

    width: channels of its finest level. With one block and one skip per level, and resampling without weights, it sees
    more images in the same time than published ones.
    """
    unshuffle = 1
    while side / unshuffle > FINEST:
        unshuffle *= 2
    sides = [-(-side // unshuffle)]
    while sides[-1] > COARSEST or (len(sides) == 1 and side >= 4):
        sides.append(-(-sides[-1] // 2))
    levels = tuple(
        LevelConfig(
            channels=width * GROWTH[min(depth, len(GROWTH) - 1)],
            blocks=1,
            attention=position <= ATTENDED and position in sides[-2:],
        )
        for depth, position in enumerate(sides)
    )
    groups = {"norm_groups": 8, "head_channels": width, "heads": None}
    return {"levels": levels, "unshuffle": unshuffle, "skips": "level", "resampling": "average", **groups}


def published(side: int) -> dict[str, Any]:
    """Return settings in the proportions of DDPM and ADM, for images whose shorter side has `side` pixels.

    The coarsest has 4 to 8 pixels; attention where there are 16 or 8; 64 channels up to 16 pixels, else 128.
    """
    sides = [side]
    while sides[-1] >= (8 if side <= 32 else 16):
        sides.append(-(-sides[-1] // 2))
    base = 64 if side <= 16 else 128
    widths = [1, 2, 2, 2] if len(sides) <= 4 else [1, 1, 2, 2, 4, 4]
    levels = tuple(
        LevelConfig(channels=base * widths[min(depth, len(widths) - 1)], attention=6 <= position <= 16)
        for depth, position in enumerate(sides)
    )
    return {"levels": levels, "head_channels": 64, "heads": None}


@dataclass(frozen=True)
class Size:
    """A network among which `unet.levels: auto` chooses."""

    name: str
    images: int
    """Images in training, with repetition, from which on it is better than a smaller one (benchmarks/sizes.py)."""
    settings: Callable[[int], dict[str, Any]]
    """From the pixels of the shorter side to settings of a network."""

    def of(self, unet: UNetConfig, side: int) -> UNetConfig:
        """Return `unet` in this size, for images whose shorter side has `side` pixels; its other settings stay."""
        settings = self.settings(-(-side // unet.unshuffle))
        return unet.model_copy(update=settings | {"unshuffle": unet.unshuffle * settings.get("unshuffle", 1)})


SIZES = (
    Size("width 16", 0, partial(compact, 16)),
    Size("width 32", 100_000, partial(compact, 32)),
    Size("width 64", 400_000, partial(compact, 64)),
    Size("width 96", 1_000_000, partial(compact, 96)),
    Size("the proportions of DDPM", 4_000_000, published),
)
"""Smallest first. The number of images grows about as the operations per image do, as it does in trainings of the best
size for their compute (Hoffmann et al. 2022)."""


def size_for(images: int) -> Size:
    """Return the size for a training that sees this many images, with repetition."""
    return [size for size in SIZES if size.images <= images][-1]
