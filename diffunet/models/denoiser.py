"""A U-Net with embeddings of the time and of named conditions."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, Protocol

from torch import Tensor, nn

from ..core.errors import did_you_mean
from ..core.settings import Settings
from .conditioning import Conditioning, TimeEmbedding
from .config import UNetConfig
from .layers import unshuffle
from .tiling import Tiled
from .unet import UNet


class Embeddable(Protocol):
    """The configuration of a condition, such as `conditions.label.LabelConfig`."""

    def build_embedding(self, name: str, unet: UNetConfig) -> nn.Module:
        """Return `embedding(value, keep_mask=None) -> Conditioning` with fresh weights. ValueError if incomplete."""
        ...


class TimeConfig(Settings):
    """The sinusoidal embedding of the time."""

    freq_shift: Literal[0, 1] = 0
    """1: the lowest frequency is exactly 1/10000, as in DDPM 2020; 0: one step above it."""


class Denoiser(nn.Module):
    """`model(x_t, t, label=y)`: the papers' eps_theta(x_t, t, c), whatever the target it is trained for.

    `time` embeds t, and every other embedding the condition of its name: `embedding(value, keep_mask)` returns a
    `Conditioning`, also for a condition that is absent (value None) or dropped for some examples.

    plane_side: side of the positions of a plane for each of x_t, as for latents beside images; they become channels.
    """

    def __init__(self, unet: UNet, time: nn.Module, plane_side: int = 1, **embeddings: nn.Module):
        super().__init__()
        self.plane_side = plane_side
        self.unet = unet
        self.time = time
        self.embeddings = nn.ModuleDict(embeddings)

    @classmethod
    def from_config(
        cls,
        unet: UNetConfig,
        conditions: Mapping[str, Embeddable] = {},
        time: TimeConfig = TimeConfig(),
        plane_side: int = 1,
    ) -> "Denoiser":
        """Return a denoiser with fresh weights; the time has as many sinusoids as the finest level has channels.

        Raise ValueError for a network without levels or without a vector, or for an incomplete condition.
        """
        if not unet.levels:
            raise ValueError("unet.levels: empty; give at least one level")
        if not unet.vector_dim:
            raise ValueError(f"unet.vector_dim: 0, so the time has no input; try {4 * unet.levels[0].channels}")
        embeddings = {name: config.build_embedding(name, unet) for name, config in conditions.items()}
        sinusoids = TimeEmbedding(unet.vector_dim, unet.levels[0].channels, time.freq_shift)
        return cls(UNet(unet), sinusoids, plane_side, **embeddings)

    def tiled(self, tile: int) -> "Denoiser":
        """Return the same denoiser for images of any size, in tiles of the network's input with this side."""
        tiles = Tiled(self.unet, tile)
        return Denoiser(tiles, self.time, self.plane_side, **self.embeddings)  # pyright: ignore[reportArgumentType]

    def forward(
        self, x_t: Tensor, t: Tensor, keep_masks: Mapping[str, Tensor] | None = None, **conditions: Tensor
    ) -> Tensor:
        """Return the prediction, in the shape of x_t, (B, C, *S).

        t: (B,) or one number, in [0, num_train_timesteps). A condition left out is absent for the whole batch.
        keep_masks: (B,) bool per condition name; False drops that condition for that example.
        Raise TypeError for a condition without an embedding.
        """
        keep_masks = keep_masks or {}
        for name in (*conditions, *keep_masks):
            if name not in self.embeddings:
                raise TypeError(f"no embedding for condition {name}{did_you_mean(name, self.embeddings)}")
        cond: Conditioning = self.time(t)
        for name, embedding in self.embeddings.items():
            cond = cond + embedding(conditions.get(name), keep_masks.get(name))
        if cond.planes is not None and self.plane_side > 1:
            planes = cond.planes.expand(-1, -1, *(side * self.plane_side for side in x_t.shape[2:]))
            cond = replace(cond, planes=unshuffle(planes, self.plane_side))
        return self.unet(x_t, cond)
