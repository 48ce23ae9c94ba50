"""A run that compresses images: its configuration, and the quality of its reconstructions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.progress import no_progress
from ..data.dataset import DataConfig, ImageDataset
from ..data.pixels import denormalize, normalize
from ..models.autoencoder import Autoencoder, AutoencoderConfig
from ..objectives.autoencoding import AutoencodingConfig
from ..training.config import TrainConfig
from .config import RunConfig

BATCH = 32
"""Images encoded and decoded at once."""
COLLAPSED = 0.05
"""Nats per position below which a channel of the latents carries nothing: its distribution is the prior's."""


class AutoencoderRunConfig(RunConfig):
    """Everything that determines a run of an autoencoder."""

    task: ClassVar[str] = "autoencoding"

    objective: AutoencodingConfig = AutoencodingConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()

    def resolve(self, images: ImageDataset) -> Self:
        """Return the config completed from the data. Raise UserError where the sides do not divide."""
        if self.data.augmentation:
            raise UserError("data.augmentation: distorts images, which an autoencoder would learn; use 0")
        check_divides(self.autoencoder.factor, images.config.size, "autoencoder.channels")
        return self.model_copy(update={"data": images.config})

    def build(self) -> Autoencoder:
        """Return the autoencoder with fresh weights."""
        return self.autoencoder.build(self.data.channels or 1)


def check_divides(factor: int, size: tuple[int, int], place: str) -> None:
    """Raise UserError unless images of a size consist of whole blocks of `factor` pixels."""
    if any(side % factor for side in size):
        near = [max(factor, round(side / factor) * factor) for side in size]
        raise UserError(
            f"{place}: latents have 1/{factor} of the side, which does not divide {size[0]}×{size[1]}; "
            f"use --data.resolution {near[0] if near[0] == near[1] else near}"
        )


@dataclass(frozen=True)
class Reconstruction:
    """Some images after encoding to the mean and decoding, with their latents."""

    pixels: Tensor
    """(N, C, H, W), in the bit depth of the images."""
    mean: Tensor
    """(N, C', h, w)"""
    log_variance: Tensor | None
    """(N, C', h, w)"""

    def channels(self) -> dict[str, list[float]]:
        """Return numbers of each channel of the latents.

        mean, std: over images and positions, of a sample; kl: the divergence from the prior in nats per position;
        below COLLAPSED the channel carries nothing (posterior collapse).
        """
        mean, axes = self.mean.double(), (0, 2, 3)
        variance = mean.var(axes)
        found = {"mean": mean.mean(axes).tolist()}
        if self.log_variance is None:
            return found | {"std": variance.sqrt().tolist()}
        log_variance = self.log_variance.double()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean(axes)
        std = (variance + log_variance.exp().mean(axes)).sqrt()
        return found | {"std": std.tolist(), "kl": divergence.tolist()}


@torch.no_grad()
def reconstruct(
    autoencoder: Autoencoder, pixels: Tensor, bit_depth: int, progress: Callable = no_progress
) -> Reconstruction:
    """Return images (N, C, H, W) after compression. Raise UserError if the network's output is not finite."""
    device = next(autoencoder.parameters()).device
    parts: list[tuple[Any, ...]] = []
    for chunk in progress(pixels.split(BATCH)):
        mean, log_variance = autoencoder.encode(normalize(chunk.to(device), bit_depth))
        images = denormalize(autoencoder.decode(mean), bit_depth)
        parts.append((images.cpu(), mean.cpu(), None if log_variance is None else log_variance.cpu()))
    images, means, log_variances = zip(*parts, strict=True)
    return Reconstruction(
        torch.cat(images), torch.cat(means), None if log_variances[0] is None else torch.cat(log_variances)
    )
