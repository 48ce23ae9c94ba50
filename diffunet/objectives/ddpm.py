"""Denoising diffusion (DDPM, Ho et al. 2020): discrete noise levels, and what to predict of them.

With alpha_bar(t) from the scheduler, x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) noise (equation 4).
"""

import inspect
from types import MappingProxyType
from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor

from ..core.errors import UserError
from .base import CLIP_TO_DATA_RANGE, NoisyBatch, Objective, ObjectiveConfig
from .schedulers import from_diffusers


class DDPMConfig(ObjectiveConfig):
    """DDPM's noise, and what the network predicts of it."""

    type: Literal["ddpm"] = "ddpm"
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    """What the network answers with: noise, clean image, or v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x_0."""
    beta_schedule: Literal["linear", "cosine"] = "linear"
    """Noise over time: linear from 0.0001 to 0.02 (Ho et al. 2020) or cosine (Nichol & Dhariwal 2021)."""
    num_train_timesteps: int = Field(1000, ge=2, le=1_000_000)
    """Number of noise levels; t runs from 0 to this less one."""
    rescale_betas_zero_snr: bool = False
    """Let the last noise level hold no signal at all (Lin et al. 2023); not with epsilon."""
    min_snr_gamma: float | None = Field(None, gt=0)
    """Clamp of the min-SNR loss weight (Hang et al. 2023), usually 5; null: no weight."""

    @model_validator(mode="after")
    def _zero_snr_needs_a_target(self):
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise ValueError(
                "rescale_betas_zero_snr leaves nothing to learn with prediction_type epsilon; "
                "use v_prediction or sample"
            )
        return self

    def scheduler(self):
        """The `DDPMScheduler` of this noise."""
        return from_diffusers("DDPMScheduler")(
            num_train_timesteps=self.num_train_timesteps,
            beta_schedule={"linear": "linear", "cosine": "squaredcos_cap_v2"}[self.beta_schedule],
            prediction_type=self.prediction_type,
            rescale_betas_zero_snr=self.rescale_betas_zero_snr,
            timestep_spacing="trailing",
        )


class DDPM(Objective):
    """DDPM's objective, over the noise schedules of `diffusers`.

    Samplers that are not offered miss the mean or the spread of Gaussian data with some step count or
    prediction type.
    """

    config: DDPMConfig
    samplers = MappingProxyType(
        {
            "dpm++": ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}),
            "sde-dpm++": (
                "DPMSolverMultistepScheduler",
                {"use_lu_lambdas": True, "algorithm_type": "sde-dpmsolver++"},
            ),
            "unipc": ("UniPCMultistepScheduler", {}),
            "ddim": ("DDIMScheduler", {}),
            "ddpm": ("DDPMScheduler", {}),
            "euler-a": ("EulerAncestralDiscreteScheduler", {}),
        }
    )

    def __init__(self, config: DDPMConfig):
        super().__init__(config)
        self.scheduler = config.scheduler()

    def add_noise(self, image: Tensor, noise: Tensor, u: Tensor) -> NoisyBatch:
        t = (u * self.config.num_train_timesteps).long()
        x_t = self.scheduler.add_noise(image, noise, t)
        return NoisyBatch(x_t, t, self._target(image, noise, t), self._weight(t))

    def timestep_at(self, u: float) -> float:
        return u * self.config.num_train_timesteps

    def _target(self, image: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        match self.config.prediction_type:
            case "epsilon":
                return noise
            case "sample":
                return image
            case "v_prediction":
                return self.scheduler.get_velocity(image, noise, t)

    def _weight(self, t: Tensor) -> Tensor | float:
        """Min-SNR (Hang et al. 2023): min(SNR, gamma) on the error of x_0, in terms of the prediction."""
        gamma = self.config.min_snr_gamma
        if gamma is None:
            return 1.0
        alpha_bar = self.scheduler.alphas_cumprod.to(t.device)[t]
        snr = alpha_bar / (1 - alpha_bar)
        match self.config.prediction_type:
            case "epsilon":
                return (gamma / snr).clamp(max=1)             # finite at SNR 0, unlike min(SNR, gamma) / SNR
            case "sample":
                return snr.clamp(max=gamma)
            case "v_prediction":
                return snr.clamp(max=gamma) / (snr + 1)

    def sampler(self, name: str, steps: int):
        scheduler_class, options = self.scheduler_class(name)
        trained = self.scheduler.config
        total = trained.num_train_timesteps
        if not 1 <= steps <= total:
            raise UserError(f"steps: {steps} is not between 1 and the {total} noise levels of the training")
        if name == "ddim" and total % steps:
            near = min((n for n in range(1, total + 1) if total % n == 0), key=lambda n: abs(n - steps))
            raise UserError(f"steps: ddim needs a number that divides {total}, not {steps}; try {near}")
        if name == "euler-a" and trained.prediction_type == "sample":
            raise UserError("sampler: euler-a cannot use a network trained with prediction_type sample; try sde-dpm++")
        if name == "euler-a" and trained.prediction_type == "epsilon" and self.scheduler.alphas_cumprod[-1] < 1e-6:
            raise UserError("sampler: euler-a cannot undo cosine noise with prediction_type epsilon; try sde-dpm++")
        # Not by from_config: that fills gaps with another class's defaults, betas included, and imports them all.
        spacing = {"timestep_spacing": "trailing", "final_sigmas_type": "zero", "clip_sample": False}
        known = inspect.signature(scheduler_class).parameters
        wanted = {**trained, **CLIP_TO_DATA_RANGE, **spacing, **options}
        sampler = scheduler_class(**{key: value for key, value in wanted.items() if key in known})
        sampler.set_timesteps(steps)
        return sampler
