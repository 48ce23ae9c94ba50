"""The base class of training objectives: add noise, predict a target, weight the squared error.

    objective.loss(model, image, **conditions)                    # training
    objective.sampler("dpm++", steps=25)                          # sampling/loop.py

The model is any callable `model(x_t, t, **conditions)`. Noise levels of different objectives are compared on one axis,
their quantile u in training: 0 is the cleanest, 1 the noisiest.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ..core.errors import UserError, did_you_mean
from ..core.rng import BatchRNG
from ..core.settings import Settings

NOISE_BINS = 4
"""Number of equal ranges of u by which losses are also reported."""
CLIP_TO_DATA_RANGE = {"thresholding": True, "sample_max_value": 1.0}
"""Arguments of diffusers' schedulers that clip estimates of the clean image to [-1, 1]."""


class ObjectiveConfig(Settings):
    """Settings of every objective."""

    type: Any
    condition_dropout: float = Field(0.1, ge=0, lt=1)
    """Probability of dropping all conditions of an example in training, for guidance (Ho & Salimans 2022)."""


@dataclass(frozen=True)
class NoisyBatch:
    """The input of the network for one batch, and its regression target."""

    x_t: Tensor
    """(B, C, *S), noisy images, scaled as the network sees them."""
    t: Tensor
    """(B,), the time that the network sees."""
    target: Tensor
    """(B, C, *S)"""
    weight: Tensor | float = 1.0
    """(B,), weight of the squared error."""


class Objective(ABC):
    """A noise process and a prediction target, with the weighted mean squared error as loss."""

    samplers: ClassVar[Mapping[str, tuple[str, dict[str, Any]]]]
    """The samplers of this process by name: class in `diffusers`, and arguments in addition to the process's own."""

    def __init__(self, config: ObjectiveConfig, dropout: Mapping[str, float] = {}):
        """dropout: probability of dropping a condition alone, in addition to `config.condition_dropout`, by name."""
        self.config = config
        self.dropout = {name: probability for name, probability in dropout.items() if probability}

    @abstractmethod
    def add_noise(self, image: Tensor, noise: Tensor, u: Tensor) -> NoisyBatch:
        """Return the batch for images (B, C, *S) in [-1, 1], standard normal noise, and u, (B,) in [0, 1)."""

    @abstractmethod
    def timestep_at(self, u: float) -> float:
        """Return the t that the network sees at the noise quantile u."""

    @abstractmethod
    def sampler(self, name: str, steps: int) -> Any:
        """Return a diffusers scheduler whose timesteps are set for `steps` network calls.

        Raise UserError for an unknown name, or a number of steps or a target with which the sampler is inaccurate.
        """

    def loss(
        self, model: Callable[..., Tensor], image: Tensor, rng: BatchRNG = BatchRNG(), **conditions: Tensor
    ) -> dict[str, Tensor]:
        """Return the losses of a batch of images (B, C, *S) in [-1, 1], each (B,) in fp32.

        `loss` is the one to minimize. `loss_noise0-25`, ... are unweighted, and NaN for examples of other noise bins.
        With dropout of conditions, the model also gets `keep_masks`: one (B,) bool mask per condition.
        """
        u, noise = rng.uniform_like(image), rng.normal_like(image)
        keep_masks = self._keep_masks(image, rng, conditions) if conditions else {}
        noisy = self.add_noise(image, noise, u)
        error = self.error(model, noisy, **({"keep_masks": keep_masks} if keep_masks else {}), **conditions)
        bins = {f"loss_{name}": error.detach().where(inside, torch.nan) for name, inside in noise_bins(u).items()}
        return {"loss": error * noisy.weight, **bins}

    def _keep_masks(self, image: Tensor, rng: BatchRNG, conditions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return which conditions are kept: one draw for all of them, then one for each with a dropout of its own.

        A condition that the batch lacks is drawn for as well, so that the masks of the others depend on the settings
        alone, not on the batch.
        """
        keep_masks = {}
        if self.config.condition_dropout:
            keep_masks = dict.fromkeys(conditions, rng.uniform_like(image) >= self.config.condition_dropout)
        for name, probability in self.dropout.items():
            keep = rng.uniform_like(image) >= probability
            if name in conditions:
                keep_masks[name] = keep_masks[name] & keep if name in keep_masks else keep
        return keep_masks

    def error(self, model: Callable[..., Tensor], noisy: NoisyBatch, **conditions: Any) -> Tensor:
        """Return the mean squared error of each example, unweighted, (B,) in fp32."""
        prediction = model(noisy.x_t, noisy.t, **conditions).float()
        return (prediction - noisy.target).square().flatten(1).mean(1)

    def scheduler_args(self, name: str) -> tuple[str, dict[str, Any]]:
        """Return the diffusers class of a sampler and its arguments. Raise UserError for an unknown name."""
        if name not in self.samplers:
            known = ", ".join(self.samplers)
            raise UserError(f"sampler: {name} is not one of {known}{did_you_mean(name, self.samplers)}")
        return self.samplers[name]


def noise_bins(u: Tensor) -> dict[str, Tensor]:
    """Return which of u (B,) are in each of the NOISE_BINS ranges: `{"noise0-25": (B,) bool, ...}`, in percent."""
    edges = pairwise(100 * index // NOISE_BINS for index in range(NOISE_BINS + 1))
    return {f"noise{low}-{high}": (low <= 100 * u) & (100 * u < high) for low, high in edges}
