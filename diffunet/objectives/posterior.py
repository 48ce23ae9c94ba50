"""Diffusion of the target under its image: samples of p(target | image) instead of one prediction.

    objective.loss(model, image, target)                          # {"loss": (B,), ...}

The model is any callable `model(x_t, t, image=image)`, and x_0 is the target, in units in which its standard deviation
is SPREAD. Any noise process serves: its noise is added to the target, and the image stays clean (Saharia et al. 2022,
"Palette"). Losses are means of one example over its known places, as those of `supervised.py`.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from ..core.rng import BatchRNG
from ..core.settings import Settings
from .base import Objective, noise_bins
from .consistency import SOURCES
from .ddpm import DDPMConfig
from .edm import EDMConfig
from .flow import FlowConfig
from .segmentation import UNKNOWN
from .supervised import mean_where

SPREAD = 0.5
"""Standard deviation of x_0, which is EDM's sigma_data; classes are -SPREAD and SPREAD."""


class PosteriorConfig(Settings):
    """Samples of the targets that an image may have, by diffusion."""

    type: Literal["posterior"] = "posterior"
    targets: Literal["classes", "numbers"] | None = None
    """What is sampled at each place: a class, or numbers; null: those of a built-in set."""
    noise: Annotated[DDPMConfig | EDMConfig | FlowConfig, Field(discriminator="type")] = FlowConfig(condition_dropout=0)
    """The noise process and its prediction target."""

    @field_validator("noise")
    @classmethod
    def _the_image_is_never_dropped(cls, noise: DDPMConfig | EDMConfig | FlowConfig):
        if noise.condition_dropout and "condition_dropout" in noise.model_fields_set:
            raise ValueError(f"condition_dropout is {noise.condition_dropout}, but the image is never dropped; use 0")
        return noise.model_copy(update={"condition_dropout": 0.0})

    def build_process(self) -> Objective:
        """Return the noise process."""
        return SOURCES[self.noise.type](self.noise)


class Posterior:
    """The error of the noise process's prediction at the places whose target is known."""

    def __init__(self, config: PosteriorConfig, mean: Sequence[float], std: Sequence[float]):
        """mean, std: of each class, as 0 or 1, or of each channel of the numbers."""
        self.config, self.process = config, config.build_process()
        self.mean, self.std = tuple(mean), tuple(std)

    def clean(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return x_0 (B, K, *S) of a target, 0 where it is unknown, and where it is known, bool of that shape.

        target: classes (B, *S), UNKNOWN without a label, or numbers (B, K, *S), NaN where unknown.
        """
        if self.config.targets == "classes":
            known = (target != UNKNOWN)[:, None].expand(-1, len(self.mean), *target.shape[1:])
            target = torch.movedim(F.one_hot(target.clamp(min=0).long(), len(self.mean)), -1, 1).float()
        else:
            known = ~target.isnan()
        mean, std = (
            torch.tensor(values, device=target.device).reshape(-1, *[1] * (target.ndim - 2))
            for values in (self.mean, self.std)
        )
        return (SPREAD * (target - mean) / std).masked_fill(~known, 0.0), known

    def loss(
        self,
        model: Callable[..., Tensor],
        image: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        rng: BatchRNG = BatchRNG(),
    ) -> dict[str, Tensor]:
        """Return the losses of a batch, (B,) each in fp32: `loss`, and `loss_noise0-25`, ... as `Objective.loss` does.

        image: (B, C, *S); target: see `clean`; weight: (B, *S), of each place, or None. An example without a known
        place has the loss 0.
        """
        clean, known = self.clean(target)
        u, noise = rng.uniform_like(clean), rng.normal_like(clean)
        noisy = self.process.add_noise(clean, noise, u)
        squares = (model(noisy.x_t, noisy.t, image=image).float() - noisy.target).square()
        error = mean_where(squares if weight is None else squares * weight[:, None], known)
        bins = {f"loss_{name}": error.detach().where(inside, torch.nan) for name, inside in noise_bins(u).items()}
        return {"loss": error * noisy.weight, **bins}
