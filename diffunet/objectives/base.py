"""The base class of training objectives: add noise, predict a target, weight the squared error.

    objective.loss(model, image, **conditions)                    # training
    objective.sampler("dpm++", steps=10)                          # sampling/loop.py

The model is any callable `model(x_t, t, **conditions)`. Every objective is the same two equations with other numbers:

    x_t        = alpha x_0 + sigma noise                          # levels(t)
    prediction =     a x_0 +     b noise                          # target(t)

so an estimate of x_0 follows from a prediction, and back. Noise levels of different objectives are compared on one
axis, their quantile u in training: 0 is the cleanest, 1 the noisiest.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor

from ..core.errors import UserError, did_you_mean
from ..core.rng import BatchRNG
from ..core.settings import Settings
from .solvers import METHODS, Method, Solver

NOISE_BINS = 4
"""Number of equal ranges of u by which losses are also reported."""
CLIP_TO_DATA_RANGE = {"thresholding": True, "sample_max_value": 1.0}
"""Arguments of diffusers' schedulers that clip estimates of the clean image to [-1, 1]."""
START = -4.0
"""log(alpha / sigma) at which solvers start for images of 8×8 pixels."""
USUAL_SIZE = (64, 64)
"""(height, width) assumed of images of which no size is given."""


class ObjectiveConfig(Settings):
    """Settings of every objective."""

    begins_from: ClassVar[Set[str]] = frozenset()
    """Types of other objectives, with whose networks a finetuning by this one can begin."""

    type: Any
    condition_dropout: float = Field(0.1, ge=0, lt=1)
    """Probability of dropping all conditions of an example in training, for guidance (Ho & Salimans 2022)."""

    @property
    def process(self) -> "ObjectiveConfig":
        """The settings that decide what the network sees and predicts: these, unless it tunes another objective's."""
        return self


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

    methods: ClassVar[Mapping[str, Method]] = METHODS
    """Samplers by name."""
    schedulers: ClassVar[Mapping[str, tuple[str, dict[str, Any]]]] = {}
    """Further samplers, of diffusers, by name: class, and arguments besides the process's own."""
    limit: float | None = 1.0
    """Samplers clip estimates of x_0 to [-limit, limit], the range of pixels; None: not at all, as for latents."""

    def __init__(self, config: ObjectiveConfig, dropout: Mapping[str, float] = {}):
        """dropout: probability of dropping a condition alone, in addition to `config.condition_dropout`, by name."""
        self.config = config
        self.dropout = {name: probability for name, probability in dropout.items() if probability}

    # ── the process ───────────────────────────────────────────────────────────────────────────────

    @abstractmethod
    def time_at(self, u: Tensor) -> Tensor:
        """Return the t that the network sees at noise quantiles u in [0, 1)."""

    @abstractmethod
    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma at the times t, in the shape of t."""

    @abstractmethod
    def target(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factors a of x_0 and b of the noise in the target at the times t, in the shape of t."""

    @abstractmethod
    def time_of(self, log_snr: Tensor) -> Tensor:
        """Return the times of noise levels given as log(alpha / sigma), in their shape; the inverse of `levels`."""

    def times(self, log_snr: Tensor) -> Tensor:
        """Return N times that the network was trained at, for N falling noise levels, given as log(alpha / sigma)."""
        return self.time_of(log_snr).float()

    @property
    @abstractmethod
    def cleanest(self) -> float:
        """log(alpha / sigma) at which solvers make their last call."""

    def weight(self, t: Tensor) -> Tensor | float:
        """Return the weight of the squared error at the times t."""
        return 1.0

    def add_noise(self, image: Tensor, noise: Tensor, u: Tensor) -> NoisyBatch:
        """Return the batch for images (B, C, *S) in [-1, 1], standard normal noise, and u, (B,) in [0, 1)."""
        return self.noisy(image, noise, self.time_at(u))

    def noisy(self, image: Tensor, noise: Tensor, t: Tensor) -> NoisyBatch:
        """Return the batch for images (B, C, *S) in [-1, 1], standard normal noise, and times (B,)."""
        alpha, sigma = expanded(image, self.levels(t))
        a, b = expanded(image, self.target(t))
        return NoisyBatch(alpha * image + sigma * noise, t, a * image + b * noise, self.weight(t))

    def clean(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the estimate of x_0, (B, C, *S), that a prediction implies; t is () or (B,)."""
        alpha, sigma = expanded(x_t, self.levels(t))
        a, b = expanded(x_t, self.target(t))
        return (b * x_t - sigma * prediction) / (alpha * b - sigma * a)

    def prediction(self, clean: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the prediction, (B, C, *S), that implies an estimate of x_0; the inverse of `clean`."""
        alpha, sigma = expanded(x_t, self.levels(t))
        a, b = expanded(x_t, self.target(t))
        return a * clean + b * (x_t - alpha * clean) / sigma

    # ── sampling ──────────────────────────────────────────────────────────────────────────────────

    @classmethod
    def samplers(cls) -> tuple[str, ...]:
        """Return the names of the samplers."""
        return (*cls.methods, *cls.schedulers)

    def sampler(self, name: str, steps: int, size: tuple[int, ...] = USUAL_SIZE) -> Any:
        """Return a solver or scheduler of diffusers whose timesteps are set for `steps` network calls.

        `size`, (height, width) of the images, decides at which noise a solver starts. Raise UserError for an unknown
        name, or a number of steps or a target with which the sampler is inaccurate.
        """
        if name not in self.samplers():
            known = ", ".join(self.samplers())
            raise UserError(f"sampler: {name} is not one of {known}{did_you_mean(name, self.samplers())}")
        self.check_steps(steps)
        if name in self.schedulers:
            class_name, options = self.schedulers[name]
            clipping = CLIP_TO_DATA_RANGE if self.limit is None else {}
            options = {key: value for key, value in options.items() if key not in clipping}
            return self.scheduler(class_name, options, steps, size)
        return Solver(self, self.falling_times(steps, self.start(size)), self.methods[name], limit=self.limit)

    def check_steps(self, steps: int) -> None:
        """Raise UserError for a number of network calls that the process does not have."""
        if steps < 1:
            raise UserError(f"steps: at least 1 (got {steps})")

    def start(self, size: tuple[int, ...]) -> float:
        """Return log(alpha / sigma) at which solvers start for images of this size.

        Brightness and other large-scale parts of an image grow with its side, and so must the noise that hides them
        (Hoogeboom et al. 2023, "Simple diffusion", section 3.1); more noise than that would cost calls.
        """
        return START - math.log(math.prod(size) ** (1 / len(size)) / 8)

    def falling_times(self, steps: int, start: float) -> Tensor:
        """Return the times (steps,) of a solver: even in log-SNR from `start` to the cleanest, or a bit beyond.

        Even steps suit a solver whose error grows with a power of the step in log-SNR (Lu et al. 2022, section 4).
        """
        return self.times(torch.linspace(start, max(self.cleanest, start + 1), steps, dtype=torch.float64))

    def scheduler(self, class_name: str, options: dict[str, Any], steps: int, size: tuple[int, ...]) -> Any:
        """Return a scheduler of diffusers with this process and its timesteps set, for objectives with `schedulers`."""
        raise NotImplementedError(f"{type(self).__name__} has no schedulers of diffusers")

    # ── training ──────────────────────────────────────────────────────────────────────────────────

    def at(self, progress: float) -> Self:
        """Return the objective after this share of the training, from 0 to 1: the same one, unless it has stages."""
        return self

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


def expanded(image: Tensor, levels: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return numbers () or (B,), on any device, in a shape that multiplies images (B, C, *S)."""
    first, second = (level.reshape(-1, *[1] * (image.ndim - 1)).to(image.device) for level in levels)
    return first, second


def noise_bins(u: Tensor) -> dict[str, Tensor]:
    """Return which of u (B,) are in each of the NOISE_BINS ranges: `{"noise0-25": (B,) bool, ...}`, in percent."""
    edges = pairwise(100 * index // NOISE_BINS for index in range(NOISE_BINS + 1))
    return {f"noise{low}-{high}": (low <= 100 * u) & (100 * u < high) for low, high in edges}
