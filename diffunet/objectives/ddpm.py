"""Denoising diffusion (DDPM, Ho et al. 2020): discrete noise levels, and a choice of prediction target.

x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise (equation 4), with alpha_bar of the schedulers of diffusers.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..core.errors import UserError
from .base import CLIP_TO_DATA_RANGE, NoisyBatch, Objective, ObjectiveConfig
from .schedulers import from_diffusers

MULTISTEP = {**CLIP_TO_DATA_RANGE, "final_sigmas_type": "zero"}
DPM = {**MULTISTEP, "use_lu_lambdas": True}
FIRST_ORDER = {**CLIP_TO_DATA_RANGE, "clip_sample": False}
PURE_NOISE = 40.0
"""Noise-to-signal ratio after UniPC's first step; nothing can be predicted above it."""


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

    Samplers that miss the mean or the spread of Gaussian data for some number of steps or target are left out.
    """

    config: DDPMConfig
    samplers: ClassVar = {
        "dpm++": ("DPMSolverMultistepScheduler", DPM),
        "sde-dpm++": ("DPMSolverMultistepScheduler", {**DPM, "algorithm_type": "sde-dpmsolver++"}),
        "unipc": ("UniPCMultistepScheduler", MULTISTEP),
        "ddim": ("DDIMScheduler", FIRST_ORDER),
        "ddpm": ("DDPMScheduler", FIRST_ORDER),
        "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    }

    def __init__(self, config: DDPMConfig, dropout: Mapping[str, float] = {}):
        super().__init__(config, dropout)
        self.scheduler = config.scheduler()

    def add_noise(self, image: Tensor, noise: Tensor, u: Tensor) -> NoisyBatch:
        t = (u * self.config.num_train_timesteps).long()
        x_t = self.scheduler.add_noise(image, noise, t)  # equation 4
        return NoisyBatch(x_t, t, self._target(image, noise, t), self._weight(t))

    def timestep_at(self, u: float) -> float:
        return u * self.config.num_train_timesteps

    def _target(self, image: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        if self.config.prediction_type == "v_prediction":
            return self.scheduler.get_velocity(image, noise, t)
        return {"epsilon": noise, "sample": image}[self.config.prediction_type]

    def _weight(self, t: Tensor) -> Tensor | float:
        """Return the min-SNR weight (Hang et al. 2023): min(SNR, gamma) on the error of x_0, in terms of the target."""
        gamma = self.config.min_snr_gamma
        if gamma is None:
            return 1.0
        alpha_bar = self.scheduler.alphas_cumprod.to(t.device)[t]
        snr = alpha_bar / (1 - alpha_bar)
        match self.config.prediction_type:
            case "epsilon":
                return (gamma / snr).clamp(max=1)  # finite at SNR 0, unlike min(SNR, gamma) / SNR
            case "sample":
                return snr.clamp(max=gamma)
            case "v_prediction":
                return snr.clamp(max=gamma) / (snr + 1)

    def sampler(self, name: str, steps: int) -> Any:
        class_name, options = self.scheduler_args(name)
        total, prediction = self.config.num_train_timesteps, self.config.prediction_type
        if not 1 <= steps <= total:
            raise UserError(f"steps: {steps} is not between 1 and the {total} noise levels of the training")
        if name == "ddim" and total % steps:
            near = min((n for n in range(1, total + 1) if total % n == 0), key=lambda n: abs(n - steps))
            raise UserError(f"steps: ddim needs a divisor of {total} (got {steps}); try {near}")
        if name == "euler-a" and prediction == "sample":
            raise UserError("sampler: euler-a does not support prediction_type sample; use sde-dpm++")
        if name == "euler-a" and prediction == "epsilon" and self.scheduler.alphas_cumprod[-1] < 1e-6:
            raise UserError("sampler: euler-a does not support epsilon with cosine noise; use sde-dpm++")
        sampler = self.config.scheduler(class_name, **options)
        sampler.set_timesteps(steps)
        if name == "unipc":  # its own even timesteps miss the spread by up to half
            sigmas = ((1 - sampler.alphas_cumprod) / sampler.alphas_cumprod).sqrt()
            sampler.timesteps = _even_in_log_snr(sigmas, steps)
            sampler.sigmas = torch.cat([sigmas[sampler.timesteps], torch.zeros(1)])
        return sampler


def _even_in_log_snr(sigmas: Tensor, steps: int) -> Tensor:
    """Return distinct timesteps (steps,) int64: the last one, then even in log-SNR from PURE_NOISE down to timestep 0.

    sigmas: noise-to-signal ratio at each timestep, rising.
    """
    log_sigmas = sigmas.double().log().numpy()
    even = np.linspace(min(log_sigmas[-1], np.log(PURE_NOISE)), log_sigmas[0], steps - 1)
    nearest = np.interp(even, log_sigmas, np.arange(len(sigmas))).round().astype(np.int64)
    index = np.arange(steps)
    falling = np.minimum.accumulate(np.append(len(sigmas) - 1, nearest) + index) - index
    return torch.from_numpy(np.maximum(falling, steps - 1 - index))
