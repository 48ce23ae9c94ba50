"""The section `data` of a generator: the images and their format."""

from typing import Annotated, Literal

from pydantic import Field, Strict

from ..core.settings import Settings
from .arrays import MAX_CHANNELS

Side = Annotated[int, Field(strict=True, ge=1, le=65_536)]


class DataConfig(Settings):
    """The images and their format."""

    path: str = "digits"
    """An image folder, a parquet file or folder, a dataset id on the hub, or digits (built in, from scikit-learn)."""
    split: str = "train"
    """Split of the dataset."""
    image_column: str | None = None
    """Column of the images; null: the only column of images."""
    resolution: Side | Annotated[tuple[Side, Side], Strict(False)] | None = None
    """Size in pixels, or [height, width]: images are scaled to cover it and cropped. null: the size of all images."""
    channels: int | None = Field(None, ge=1, le=MAX_CHANNELS)
    """1 gray, 3 color, 4 with transparency, others as in the files; null: as in the files."""
    bit_depth: Literal[8, 16, 32] | None = None
    """Bits per channel, 32 for float; null: the least of the files."""
    value_range: Annotated[tuple[float, float], Strict(False)] | None = None
    """Values of the files that become the least and the greatest pixel; null: those of float images, as found."""
    random_flip: bool = False
    """Mirror each image left to right with probability 1/2."""
    augmentation: float = Field(0.0, ge=0, le=1)
    """Probability of each transformation of EDM's augmentation, a condition of the network; 0.12 helps small sets."""
    held_out: float = Field(0.05, ge=0, lt=1)
    """Fraction of the images, at most 1,000, kept from training to measure overfitting and memorization."""
    memory_budget: float = Field(2.0, ge=0)
    """GiB of decoded images up to which all are decoded once and kept; larger sets are decoded as needed."""
    workers: int = Field(2, ge=0, le=1000)
    """Processes that decode, for sets larger than memory_budget."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of a resolved `resolution`."""
        return self.resolution if isinstance(self.resolution, tuple) else (self.resolution,) * 2
