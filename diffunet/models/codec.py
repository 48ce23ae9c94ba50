"""The latents of a frozen autoencoder, with mean 0 and spread 1 in each channel, for a network to generate."""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import ConfigDict, Field, Strict
from torch import Tensor, nn

from ..core.settings import Settings
from .autoencoder import Autoencoder

Numbers = Annotated[tuple[float, ...], Strict(False)]
BATCH = 16
"""Images decoded at once."""


class CodecConfig(Settings):
    """The autoencoder whose latents are generated instead of pixels (Rombach et al. 2022)."""

    model_config = ConfigDict(validate_by_name=True)

    pretrained: str | None = Field(None, validation_alias="from", serialization_alias="from")
    """A run of an autoencoder (configs/autoencoder.yaml), a folder of diffusers, or its id on the hub; null: pixels."""
    factor: int = Field(1, ge=1)
    """Side of the pixels of one position of a latent; filled in."""
    shift: Numbers = ()
    """Mean of each channel over the training set; measured."""
    scale: Numbers = ()
    """Standard deviation of each channel over the training set; measured."""


class Codec(nn.Module):
    """Between images in [-1, 1] and latents."""

    shift: Tensor
    scale: Tensor

    def __init__(self, autoencoder: Autoencoder, shift: Sequence[float], scale: Sequence[float]):
        """shift, scale: of each channel."""
        super().__init__()
        self.autoencoder = autoencoder
        self.register_buffer("shift", torch.tensor(shift).reshape(-1, 1, 1))
        self.register_buffer("scale", torch.tensor(scale).reshape(-1, 1, 1))

    @property
    def factor(self) -> int:
        """Side of the pixels that one position of a latent stands for."""
        return self.autoencoder.factor

    def shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """Return (channels, height, width) of the latents of images with this (height, width)."""
        height, width = (side // self.factor for side in size)
        return len(self.shift), height, width

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """Return the mean latents (B, C', h, w) of images (B, C, H, W)."""
        mean = [self.autoencoder.encode(chunk.to(self.shift))[0] for chunk in image.split(BATCH)]
        return (torch.cat(mean) - self.shift) / self.scale

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """Return the images (B, C, H, W), in about [-1, 1], of latents (B, C', h, w)."""
        chunks = (latent.to(self.shift) * self.scale + self.shift).split(BATCH)
        return torch.cat([self.autoencoder.decode(chunk) for chunk in chunks])
