"""All types of conditions, as one tagged union."""

from typing import Annotated

from pydantic import Field

from .augmentation import AugmentationConfig
from .image import ImageConfig
from .label import LabelConfig
from .text import TextConfig
from .vector import VectorConfig

Condition = Annotated[
    LabelConfig | TextConfig | ImageConfig | VectorConfig | AugmentationConfig, Field(discriminator="type")
]
"""The configuration of a condition; its `type` decides which keys there are."""
