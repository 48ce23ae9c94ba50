"""A U-Net with what it is told; and guidance, a model around a model."""

from typing import Annotated, Literal

import torch
from pydantic import Field, Strict
from torch import Tensor, nn

from .conditioning import AugmentationEmbedding, Conditioning, LabelEmbedding, TimeEmbedding
from ..core.settings import Settings
from ..core.errors import did_you_mean
from .unet import UNet, UNetConfig


class ConditionsConfig(Settings):
    """What the network is told besides x_t."""

    classes: Annotated[int, Field(ge=0, le=100_000)] | Literal["auto"] = 0
    """Classes of the label condition; 0: no labels; auto: as many as the data have."""
    class_names: Annotated[tuple[str, ...], Strict(False)] = ()
    """Names of the classes, read from the data."""
    augmentation: Annotated[int, Field(ge=0, le=1000)] = 0
    """Numbers that say how a training picture was distorted; settled by data.augmentation."""
    time_freq_shift: Literal[0, 1] = 0
    """1: the slowest of the time's sinusoids is exactly 1/10000, as in DDPM 2020; 0: a step short of it."""


class Denoiser(nn.Module):
    """`model(x_t, t, label=y)`: the papers' eps_theta(x_t, t, c), whatever it was trained to predict.

    `time` embeds t; each further embedding embeds the condition of its name: called as
    `embedding(value, told)`, it answers with a `Conditioning`, also where the value is withheld.
    """

    def __init__(self, unet: UNet, time: nn.Module, **embeddings: nn.Module):
        super().__init__()
        self.unet = unet
        self.time = time
        self.embeddings = nn.ModuleDict(embeddings)

    @classmethod
    def from_config(cls, unet: UNetConfig, conditions: ConditionsConfig) -> "Denoiser":
        """The denoiser of a settled configuration, with DDPM's width of the time's sinusoids.

        ValueError for a network without levels, or without a vector, which could not be told the time.
        """
        if not unet.levels:
            raise ValueError("levels: there are none; a settled configuration names them")
        if not unet.vector_dim:
            raise ValueError(f"vector_dim is 0, so it cannot be told the time; try {4 * unet.levels[0].channels}")
        embeddings = {}
        if conditions.classes:
            embeddings["label"] = LabelEmbedding(unet.vector_dim, conditions.classes)
        if conditions.augmentation:
            embeddings["augmentation"] = AugmentationEmbedding(unet.vector_dim, conditions.augmentation)
        time = TimeEmbedding(unet.vector_dim, unet.levels[0].channels, conditions.time_freq_shift)
        return cls(UNet(unet), time, **embeddings)

    def forward(
        self, x_t: Tensor, t: Tensor, told: Tensor | dict[str, Tensor] | None = None, **conditions: Tensor
    ) -> Tensor:
        """x_t: (B, C, *S). t: (B,) or one number, in [0, num_train_timesteps). Returns the shape of x_t.

        A condition left out is not told to anyone; where told, (B,) bool, is False, no condition is, or
        with a dict of such masks, the condition of that name is not.
        TypeError for a condition without an embedding.
        """
        told = told if isinstance(told, dict) else dict.fromkeys(self.embeddings, told)
        for name in (*conditions, *told):
            if name not in self.embeddings:
                raise TypeError(f"no embedding for condition {name}{did_you_mean(name, self.embeddings)}")
        cond: Conditioning = self.time(t)
        for name, embedding in self.embeddings.items():
            cond = cond + embedding(conditions.get(name), told.get(name))
        return self.unet(x_t, cond)


class Guided(nn.Module):
    """Guidance: away from a worse model, `guide`, in the scale of diffusers:

        guide + guidance_scale * (model - guide)

    Without a guide it is the model itself told no condition: classifier-free guidance (Ho & Salimans 2022,
    equation 6). With one, such as an early state of the same training, it is autoguidance (Karras et al.
    2024). 1 is the model itself, 0 the guide. Outside `interval`, the lowest and highest t at which to
    guide, the model is used alone (Kynkäänniemi et al. 2024): guidance harms at the highest noise and does
    nothing at the lowest.
    """

    def __init__(
        self,
        model: nn.Module,
        guidance_scale: float,
        interval: tuple[float, float] = (float("-inf"), float("inf")),
        guide: nn.Module | None = None,
    ):
        super().__init__()
        self.model = model
        self.guidance_scale = guidance_scale
        self.interval = interval
        self.guide = guide

    def forward(self, x_t: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        """t: one number for the whole batch, as when sampling."""
        answer = self.model(x_t, t, **conditions)
        lowest, highest = self.interval
        if self.guidance_scale == 1 or not lowest <= t <= highest:
            return answer
        worse = self.model(x_t, t) if self.guide is None else self.guide(x_t, t, **conditions)
        return torch.lerp(worse, answer, self.guidance_scale)
