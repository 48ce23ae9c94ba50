"""The parameters of training augmentation as a condition, which keeps augmentation out of the samples."""

from typing import Literal

from pydantic import Field

from ..models.conditioning import AugmentationEmbedding
from ..models.config import UNetConfig
from .base import ConditionConfig


class AugmentationConfig(ConditionConfig):
    """The parameters of training augmentation as a condition (Karras et al. 2022, appendix F.2)."""

    type: Literal["augmentation"] = "augmentation"
    width: int = Field(ge=1, le=1000)
    """Number of augmentation parameters; set by data.augmentation."""

    @property
    def summary(self) -> str:
        return f"{self.width} parameters"

    def build_embedding(self, name: str, unet: UNetConfig) -> AugmentationEmbedding:
        return AugmentationEmbedding(unet.vector_dim, self.width)
