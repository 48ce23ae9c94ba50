"""Denoising diffusion (DDPM, Ho et al. 2020): discrete noise levels, and a choice of prediction target.

x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise (equation 4), with alpha_bar as in diffusers.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..core.errors import UserError
from .base import CLIP_TO_DATA_RANGE, Objective, ObjectiveConfig
from .schedulers import from_diffusers

MULTISTEP = {**CLIP_TO_DATA_RANGE, "final_sigmas_type": "zero"}
FIRST_ORDER = {**CLIP_TO_DATA_RANGE, "clip_sample": False}
MAX_BETA = 0.999
"""Limit of cosine noise at the last timesteps."""
UNIPC_START = -math.log(40.0)
"""log(alpha / sigma) after UniPC's first step; from further up, it misses the spread."""


class DDPMConfig(ObjectiveConfig):
    """DDPM's noise schedule and prediction target."""

    type: Literal["ddpm"] = "ddpm"
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    """Target: the noise, the clean image, or v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x_0."""
    beta_schedule: Literal["linear", "cosine"] = "linear"
    """Noise over time: linear from 0.0001 to 0.02 (Ho et al. 2020) or cosine (Nichol & Dhariwal 2021)."""
    num_train_timesteps: int = Field(1000, ge=2, le=1_000_000)
    """Number of noise levels; t runs from 0 to this minus one."""
    rescale_betas_zero_snr: bool = False
    """Leave no signal at the last noise level (Lin et al. 2023); not with epsilon."""
    min_snr_gamma: float | None = Field(None, gt=0)
    """Clamp of the min-SNR loss weight (Hang et al. 2023), usually 5; null: unweighted."""

    @model_validator(mode="after")
    def _zero_snr_needs_a_target(self):
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            problem = "rescale_betas_zero_snr leaves nothing to learn with prediction_type epsilon"
            raise ValueError(f"{problem}; use v_prediction or sample")
        return self

    def alpha_bar(self) -> Tensor:
        """Return the share of the signal in the variance at each timestep, (T,) fp32: the one of diffusers, to the bit.

        Computed here since sampling should not wait for the import of diffusers.
        """
        total = self.num_train_timesteps
        if self.beta_schedule == "linear":
            betas = torch.linspace(1e-4, 0.02, total)
        else:  # Nichol & Dhariwal 2021, equation 17
            f = [math.cos((step / total + 0.008) / 1.008 * math.pi / 2) ** 2 for step in range(total + 1)]
            betas = torch.tensor([min(1 - after / before, MAX_BETA) for before, after in pairwise(f)])
        if not self.rescale_betas_zero_snr:
            return (1 - betas).cumprod(0)
        root = (1 - betas).cumprod(0).sqrt()  # Lin et al. 2023, algorithm 1
        root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
        rescaled = root**2
        alphas = torch.cat([rescaled[:1], rescaled[1:] / rescaled[:-1]])
        return (1 - (1 - alphas)).cumprod(0)

    def scheduler(self, class_name: str = "DDPMScheduler", **options: Any) -> Any:
        """Return a scheduler of diffusers with this noise. Raise TypeError for an option that the class lacks."""
        # Not by from_config: it fills gaps with another class's defaults, betas included, and drops unknown options.
        return from_diffusers(class_name)(
            num_train_timesteps=self.num_train_timesteps,
            beta_schedule={"linear": "linear", "cosine": "squaredcos_cap_v2"}[self.beta_schedule],
            prediction_type=self.prediction_type,
            rescale_betas_zero_snr=self.rescale_betas_zero_snr,
            timestep_spacing="trailing",
            **options,
        )


class DDPM(Objective):
    """DDPM's objective, over the noise schedules of diffusers.

    Schedulers that miss the mean or the spread of Gaussian data for some number of steps or target are left out.
    """

    config: DDPMConfig
    schedulers: ClassVar = {
        "unipc": ("UniPCMultistepScheduler", MULTISTEP),
        "ddim": ("DDIMScheduler", FIRST_ORDER),
        "ddpm": ("DDPMScheduler", FIRST_ORDER),
        "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    }

    def __init__(self, config: DDPMConfig, dropout: Mapping[str, float] = {}):
        super().__init__(config, dropout)
        self.alpha_bar = config.alpha_bar()
        """(T,), share of the signal in the variance at each timestep."""

    def time_at(self, u: Tensor) -> Tensor:
        return (u * self.config.num_train_timesteps).long()

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma (equation 4); between whole times, the log-SNR is linear."""
        if t.is_floating_point():
            table = torch.from_numpy(self._log_snr).to(t)
            before = t.long()
            log_snr = torch.lerp(table[before], table[(before + 1).clamp(max=len(table) - 1)], t - before)
            return torch.sigmoid(2 * log_snr).sqrt(), torch.sigmoid(-2 * log_snr).sqrt()
        alpha_bar = self.alpha_bar.to(t.device)[t]
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def target(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.levels(t)
        match self.config.prediction_type:
            case "epsilon":
                return torch.zeros_like(alpha), torch.ones_like(alpha)
            case "sample":
                return torch.ones_like(alpha), torch.zeros_like(alpha)
            case "v_prediction":
                return -sigma, alpha

    def weight(self, t: Tensor) -> Tensor | float:
        """Return the min-SNR weight (Hang et al. 2023): min(SNR, gamma) on the error of x_0, in terms of the target."""
        gamma = self.config.min_snr_gamma
        if gamma is None:
            return 1.0
        alpha_bar = self.alpha_bar.to(t.device)[t]
        snr = alpha_bar / (1 - alpha_bar)
        match self.config.prediction_type:
            case "epsilon":
                return (gamma / snr).clamp(max=1)  # finite at SNR 0, unlike min(SNR, gamma) / SNR
            case "sample":
                return snr.clamp(max=gamma)
            case "v_prediction":
                return snr.clamp(max=gamma) / (snr + 1)

    @property
    def cleanest(self) -> float:
        return float(self._log_snr[0])

    @property
    def _log_snr(self) -> np.ndarray:
        """log(alpha / sigma) at each timestep, (T,), falling."""
        alpha_bar = self.alpha_bar.double().clamp(min=1e-12)
        return (0.5 * (alpha_bar / (1 - alpha_bar)).log()).numpy()

    def start(self, size: tuple[int, ...]) -> float:
        return max(super().start(size), float(self._log_snr[-1]))

    def time_of(self, log_snr: Tensor) -> Tensor:
        """Return the times, in general not whole, from the first to the last of the training."""
        falling = torch.from_numpy(self._log_snr).to(log_snr)
        last = len(falling) - 1
        before = (last - torch.searchsorted(falling.flip(0), log_snr)).clamp(0, last - 1)
        share = (falling[before] - log_snr) / (falling[before] - falling[before + 1])
        return before + share.clamp(0, 1)

    def times(self, log_snr: Tensor) -> Tensor:
        """Return distinct whole timesteps (N,) int64, near these noise levels."""
        rising = self._log_snr[::-1]
        last = len(rising) - 1
        nearest = last - np.interp(log_snr.numpy(), rising, np.arange(last + 1)).round().astype(np.int64)
        index = np.arange(len(nearest))
        falling = np.minimum.accumulate(nearest + index) - index
        return torch.from_numpy(np.maximum(falling, len(nearest) - 1 - index))

    def check_steps(self, steps: int) -> None:
        total = self.config.num_train_timesteps
        if not 1 <= steps <= total:
            raise UserError(f"steps: {steps} is not between 1 and the {total} noise levels of the training")

    def scheduler(self, class_name: str, options: dict[str, Any], steps: int, size: tuple[int, ...]) -> Any:
        total, prediction = self.config.num_train_timesteps, self.config.prediction_type
        if class_name == "DDIMScheduler" and total % steps:
            near = min((n for n in range(1, total + 1) if total % n == 0), key=lambda n: abs(n - steps))
            raise UserError(f"steps: ddim needs a divisor of {total} (got {steps}); try {near}")
        if class_name == "EulerAncestralDiscreteScheduler" and prediction == "sample":
            raise UserError("sampler: euler-a does not support prediction_type sample; use ancestral")
        if class_name == "EulerAncestralDiscreteScheduler" and prediction == "epsilon" and self.alpha_bar[-1] < 1e-6:
            raise UserError("sampler: euler-a does not support epsilon with cosine noise; use ancestral")
        scheduler = self.config.scheduler(class_name, **options)
        scheduler.set_timesteps(steps)
        if class_name == "UniPCMultistepScheduler":  # its own even timesteps miss the spread by up to half
            last = torch.tensor([self._log_snr[-1]])  # where it expects pure noise
            even = torch.linspace(max(UNIPC_START, last.item()), self.cleanest, steps - 1, dtype=torch.float64)
            scheduler.timesteps = self.times(torch.cat([last, even]))
            sigmas = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()
            scheduler.sigmas = torch.cat([sigmas[scheduler.timesteps], torch.zeros(1)])
        return scheduler
