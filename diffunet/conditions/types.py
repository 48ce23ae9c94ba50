"""All types of conditions, as one tagged union."""

from typing import Annotated

from pydantic import Field

from .augmentation import AugmentationConfig
from .label import LabelConfig

Condition = Annotated[LabelConfig | AugmentationConfig, Field(discriminator="type")]
"""The configuration of a condition; its `type` decides which keys there are."""
