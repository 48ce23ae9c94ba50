"""What every training objective is: a question put to the network, and how far its answer is off.

    objective.loss(model, image, **conditions)                    # to train: diffusion.py, edm.py, flow.py
    objective.sampler("dpm++", steps=25)                          # to draw: sampling.py

It meets a network only as `model(x_t, t, **conditions)`. Noise levels are compared between objectives
on one axis: u from 0, the cleanest, to 1, the noisiest, in the shares in which they are trained.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from .schedulers import from_diffusers
from ..core.rng import BatchRNG
from ..core.settings import Settings
from ..core.errors import UserError, did_you_mean

NOISE_BINS = 4
"""Losses are also reported for this many equal ranges of u."""


class ObjectiveConfig(Settings):
    """What all objectives share."""

    condition_dropout: float = Field(0.1, ge=0, lt=1)
    """Probability of withholding all conditions of an example, for guidance (Ho & Salimans 2022)."""


@dataclass(frozen=True)
class NoisyBatch:
    """What the network is asked about a batch, and the right answer."""

    x_t: Tensor
    """(B, C, *S), as the network sees it."""
    t: Tensor
    """(B,)"""
    target: Tensor
    """(B, C, *S)"""
    weight: Tensor | float = 1.0
    """(B,), of the squared error."""


class Objective(ABC):
    """A kind of noise and what is learnt of it: mean squared error of the answers to its questions."""

    samplers: ClassVar[Mapping[str, tuple[str, dict]]]
    """The samplers that undo this noise, by name: the scheduler of `diffusers` and what to set there."""

    def __init__(self, config: ObjectiveConfig):
        self.config = config

    @abstractmethod
    def add_noise(self, image: Tensor, noise: Tensor, u: Tensor) -> NoisyBatch:
        """What to ask of images (B, C, *S) in [-1, 1] with that standard normal noise at u, (B,) in [0, 1)."""

    @abstractmethod
    def time(self, u: float) -> float:
        """The t that the network is told at u."""

    @abstractmethod
    def sampler(self, name: str, steps: int) -> Any:
        """The sampler `name`, a scheduler of diffusers ready for `steps` network calls.

        UserError for a name or a number of steps with which it would be wrong.
        """

    def loss(
        self, model: Callable, image: Tensor, rng: BatchRNG = BatchRNG(), **conditions: Tensor
    ) -> dict[str, Tensor]:
        """Losses of a batch of images (B, C, *S) in [-1, 1], each (B,) in fp32.

        `loss` is to be minimised. The others are its unweighted parts by u, NaN for examples outside.
        """
        u, noise = rng.uniform_like(image), rng.normal_like(image)
        if conditions and self.config.condition_dropout:
            conditions["told"] = rng.uniform_like(image) >= self.config.condition_dropout
        asked = self.add_noise(image, noise, u)
        error = self.error(model, asked, **conditions)
        bands = {f"loss_{name}": error.detach().where(inside, torch.nan) for name, inside in noise_bins(u).items()}
        return {"loss": error * asked.weight, **bands}

    def error(self, model: Callable, asked: NoisyBatch, **conditions: Tensor) -> Tensor:
        """The mean squared error of each answer, (B,) in fp32."""
        answer = model(asked.x_t, asked.t, **conditions).float()
        return (answer - asked.target).square().flatten(1).mean(1)

    def scheduler_class(self, name: str) -> tuple[type, dict]:
        """The class in diffusers of the sampler `name`, and what to set there. UserError for an unknown name."""
        if name not in self.samplers:
            known = ", ".join(self.samplers)
            raise UserError(f"sampler: {name} is not one of {known}{did_you_mean(name, self.samplers)}")
        class_name, options = self.samplers[name]
        return from_diffusers(class_name), options


def noise_bins(u: Tensor) -> dict[str, Tensor]:
    """Which of u are in each range: `{"noise0-25": (B,) bool, ...}`, in percent."""
    edges = [(100 * band // NOISE_BINS, 100 * (band + 1) // NOISE_BINS) for band in range(NOISE_BINS)]
    return {f"noise{low}-{high}": (low <= 100 * u) & (100 * u < high) for low, high in edges}


CLIP_TO_DATA_RANGE = {"thresholding": True, "sample_max_value": 1.0}
"""For samplers: estimates of the clean image are clipped to [-1, 1]."""
