"""Few-step samplers by consistency tuning (Easy Consistency Tuning, Geng et al. 2024, arXiv 2406.14548).

The source, a trained DDPM, EDM or flow network, estimates the clean image, f(x_t, t). Tuning makes f the same all along
a path from noise to an image, so that one call on pure noise is a sample. The paper's t is here the ratio sigma / alpha
of x_t = alpha x_0 + sigma noise, whatever the source; f(x_t, t) -> x_t as the ratio -> 0.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, field_validator
from torch import Tensor

from ..core.errors import UserError
from .base import NoisyBatch, Objective, ObjectiveConfig, expanded
from .ddpm import DDPM, DDPMConfig
from .edm import EDM, EPS, EDMConfig
from .flow import Flow, FlowConfig
from .solvers import Method

SOURCES: dict[str, type[Objective]] = {"ddpm": DDPM, "edm": EDM, "flow": Flow}
STEEPNESS = 8.0
"""k in n(t) = 1 + k sigmoid(-t), by which steps are longer, relative to t, at low noise."""
RENOISE = Method(order=1, eta=math.inf)
"""Multistep consistency sampling (Song et al. 2023, algorithm 1): each estimate of x_0 with noise drawn anew."""
MIDDLE = {1: (), 2: (0.821,), 3: (2.5, 0.8), 4: (4.0, 1.3, 0.5)}
"""sigma / alpha of the calls after the first, by the number of calls; that of two calls is the paper's."""


class ConsistencyConfig(ObjectiveConfig):
    """Tuning of a trained network into one that samples in 1 to 4 calls."""

    begins_from: ClassVar = frozenset(SOURCES)

    type: Literal["consistency"] = "consistency"
    source: Annotated[DDPMConfig | EDMConfig | FlowConfig, Field(discriminator="type")]
    """The objective that the network was trained for; that of finetune.from, if there is one."""
    log_mean: float = -1.1
    """Mean of ln(sigma / alpha) in training."""
    log_std: float = Field(2.0, gt=0)
    """Standard deviation of ln(sigma / alpha) in training."""
    start: float = Field(80.0, gt=0)
    """Highest sigma / alpha in training, at which sampling starts; images of few pixels vanish at less, such as 12."""
    guidance_scale: float | None = Field(None, ge=0, le=1000)
    """Learn from steps of the pretrained network (finetune.from) with this guidance, which becomes part of the run;
    1: no guidance; null: learn from the data instead."""
    stages: int = Field(8, ge=1, le=64)
    """Equal parts of the training, with ever shorter steps."""
    step_ratio: float = Field(2.0, gt=1)
    """Quotient of the lengths of a step in neighboring stages."""
    huber: float = Field(0.03, gt=0)
    """Difference of pixels above which the loss is their norm, and below which it is the square (pseudo-Huber)."""

    @field_validator("source")
    @classmethod
    def _returns_its_input_without_noise(cls, source: Any) -> Any:
        if isinstance(source, DDPMConfig) and source.prediction_type == "sample":
            raise ValueError("prediction_type sample cannot be tuned: without noise, its estimate is not its input")
        return source

    @property
    def process(self) -> ObjectiveConfig:
        return self.source


@dataclass(frozen=True, kw_only=True)
class PairBatch(NoisyBatch):
    """The same images and noise at two levels, x_t and the less noisy x_r; `target` is the image."""

    x_r: Tensor
    """(B, C, *S)"""
    r: Tensor
    """(B,), the time that the network sees with x_r."""
    at_image: Tensor
    """(B,) bool: r is no noise at all, where f is the image itself."""


class Consistency(Objective):
    """The distance of f at two levels of a path, over the difference of the levels.

    The levels of a pair come closer with the progress of the training: r = t (1 - n(t) / q^stage), with q the
    `step_ratio`. In stage 0 they are t and 0, which is the source's own task; with a teacher, stage 1 is the first.

    An image with the same noise at two levels is on one path in expectation. With a `teacher`, x_r is instead an Euler
    step of it away from x_t (distillation, Song et al. 2023, section 4), so that its guidance becomes part of f.
    """

    config: ConsistencyConfig
    methods: ClassVar = {"consistency": RENOISE}

    def __init__(
        self,
        config: ConsistencyConfig,
        dropout: Mapping[str, float] = {},
        teacher: Callable[..., Tensor] | None = None,
    ):
        """teacher: the network of the source, guided or not; called as the model is."""
        super().__init__(config, dropout)
        self.teacher = teacher
        self.source = SOURCES[config.source.type](config.source)
        self.stage = self._first_stage + config.stages - 1

    def at(self, progress: float) -> Self:
        changed = copy.copy(self)
        changed.stage = self._first_stage + min(int(progress * self.config.stages), self.config.stages - 1)
        return changed

    @property
    def _first_stage(self) -> int:
        """0, or 1 with a teacher, whose own task it has learned already."""
        return int(self.teacher is not None)

    # ── the process: that of the source, with its own distribution of noise levels ────────────────

    def time_at(self, u: Tensor) -> Tensor:
        log_ratio = self.config.log_mean + self.config.log_std * torch.special.ndtri(u.clamp(EPS, 1 - EPS))
        return self.time_of(-log_ratio.clamp(-self.cleanest, math.log(self.config.start)))

    def time_of(self, log_snr: Tensor) -> Tensor:
        return self.source.time_of(log_snr)

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.source.levels(t)

    def target(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.source.target(t)

    @property
    def cleanest(self) -> float:
        return self.source.cleanest

    # ── training ──────────────────────────────────────────────────────────────────────────────────

    def add_noise(self, image: Tensor, noise: Tensor, u: Tensor) -> PairBatch:
        t = self.time_at(u)
        alpha, sigma = self.levels(t)
        return self.pair(image, noise, t, self.earlier(sigma / alpha))

    def earlier(self, ratio: Tensor) -> Tensor:
        """Return the lower level r of each level t, both as sigma / alpha; below the cleanest it is 0."""
        n = 1 + STEEPNESS * torch.sigmoid(-ratio)
        r = ratio * (1 - n / self.config.step_ratio**self.stage)
        return r.where(r > math.exp(-self.cleanest), 0)

    def pair(self, image: Tensor, noise: Tensor, t: Tensor, earlier: Tensor) -> PairBatch:
        """Return the batch at the times t and at the levels `earlier`, sigma / alpha, (B,), 0 for the image itself."""
        alpha, sigma = self.levels(t)
        at_image = earlier == 0
        r = self.time_of(-earlier.log()).where(~at_image, t)
        x_t, x_r = (self.noisy(image, noise, time).x_t for time in (t, r))
        return PairBatch(x_t, t, image, 1 / (sigma / alpha - earlier), x_r=x_r, r=r, at_image=at_image)

    def error(self, model: Callable[..., Tensor], noisy: PairBatch, **conditions: Any) -> Tensor:
        """Return the pseudo-Huber distance of f(x_t, t) and f(x_r, r), without weight, (B,) in fp32.

        The target f(x_r, r) has no gradient, and the dropout masks of f(x_t, t); no average of the weights is needed.
        """
        seed = int(torch.randint(2**62, ()))
        with torch.no_grad():
            if self.teacher:
                noisy = self._taught(self.teacher, noisy, conditions)
            target = self._estimate(model, noisy.x_r, noisy.r, seed, conditions)
        estimate = self._estimate(model, noisy.x_t, noisy.t, seed, conditions)
        at_image = noisy.at_image.reshape(-1, *[1] * (target.ndim - 1))
        squared = (estimate - torch.where(at_image, noisy.target, target)).square().flatten(1).mean(1)
        c = self.config.huber
        return squared / ((squared + c**2).sqrt() + c)  # sqrt(squared + c²) - c, without cancellation

    def _taught(self, teacher: Callable[..., Tensor], noisy: PairBatch, conditions: Mapping[str, Any]) -> PairBatch:
        """Return the batch with x_r, and the image for r = 0, where an Euler step of the teacher leads from x_t."""
        clean = self.clean(teacher(noisy.x_t, noisy.t, **conditions).float(), noisy.x_t, noisy.t)
        alpha, sigma = expanded(clean, self.levels(noisy.t))
        noise = (noisy.x_t - alpha * clean) / sigma
        return replace(noisy, x_r=self.noisy(clean, noise, noisy.r).x_t, target=clean)

    def _estimate(
        self, model: Callable[..., Tensor], x_t: Tensor, t: Tensor, seed: int, conditions: Mapping[str, Any]
    ) -> Tensor:
        """Return f(x_t, t), with the dropout masks of this seed."""
        torch.manual_seed(seed)
        return self.clean(model(x_t, t, **conditions).float(), x_t, t)

    # ── sampling ──────────────────────────────────────────────────────────────────────────────────

    def check_steps(self, steps: int) -> None:
        if steps not in MIDDLE:
            raise UserError(f"steps: consistency takes {min(MIDDLE)} to {max(MIDDLE)} calls (got {steps})")

    def start(self, size: tuple[int, ...]) -> float:
        return -math.log(self.config.start)

    def falling_times(self, steps: int, start: float) -> Tensor:
        return self.times(torch.tensor([start, *(-math.log(ratio) for ratio in MIDDLE[steps])], dtype=torch.float64))

    def times(self, log_snr: Tensor) -> Tensor:
        return self.time_of(log_snr).float()
