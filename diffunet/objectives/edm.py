"""EDM's preconditioning (Karras et al. 2022, "Elucidating the design space", table 1 and equations 7 and 8).

The image keeps its scale, and noise of any standard deviation sigma is added: x = x_0 + sigma noise.
The network F has inputs and targets of unit variance; the denoiser is D = c_skip x + c_out F(c_in x, c_noise).
"""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..core.errors import UserError
from .base import CLIP_TO_DATA_RANGE, NoisyBatch, Objective, ObjectiveConfig
from .schedulers import from_diffusers

EPS = 1e-6
"""Smallest distance of u from 0 and 1, where sigma would be 0 and infinite."""
# Even in ln(sigma): closer to the closed form with this solver than the paper's rho = 7, which suits Heun's.
MULTISTEP = {**CLIP_TO_DATA_RANGE, "sigma_schedule": "exponential", "final_sigmas_type": "zero"}


class EDMConfig(ObjectiveConfig):
    """EDM's noise: log-normal in training, from sigma_max down to sigma_min in sampling."""

    type: Literal["edm"] = "edm"
    sigma_data: float = Field(0.5, gt=0)
    """Standard deviation of the images in [-1, 1]."""
    P_mean: float = -1.2
    """Mean of ln(sigma) in training."""
    P_std: float = Field(1.2, gt=0)
    """Standard deviation of ln(sigma) in training."""
    sigma_min: float = Field(0.002, gt=0)
    """Lowest noise level in sampling, before zero."""
    sigma_max: float = Field(80.0, gt=0)
    """Noise level at which sampling starts."""


class EDM(Objective):
    """The error of D, weighted by lambda = 1 / c_out², so that every noise level counts the same in F."""

    config: EDMConfig
    samplers: ClassVar = {
        "dpm++": ("EDMDPMSolverMultistepScheduler", MULTISTEP),
        "sde-dpm++": ("EDMDPMSolverMultistepScheduler", {**MULTISTEP, "algorithm_type": "sde-dpmsolver++"}),
    }

    def add_noise(self, image: Tensor, noise: Tensor, u: Tensor) -> NoisyBatch:
        log_sigma = self.config.P_mean + self.config.P_std * torch.special.ndtri(u.clamp(EPS, 1 - EPS))
        sigma = log_sigma.exp().reshape(-1, *[1] * (image.ndim - 1))
        data = self.config.sigma_data
        total = (sigma**2 + data**2).sqrt()
        c_skip, c_out, c_in = data**2 / total**2, sigma * data / total, 1 / total
        x = image + sigma * noise
        return NoisyBatch(c_in * x, log_sigma / 4, (image - c_skip * x) / c_out)  # c_noise = ln(sigma) / 4

    def timestep_at(self, u: float) -> float:
        normal = float(torch.special.ndtri(torch.tensor(u).double().clamp(EPS, 1 - EPS)))
        return (self.config.P_mean + self.config.P_std * normal) / 4

    def sampler(self, name: str, steps: int) -> Any:
        class_name, options = self.scheduler_args(name)
        if steps < 2:
            raise UserError(f"steps: EDM needs at least 2 noise levels (got {steps})")
        levels = {key: getattr(self.config, key) for key in ("sigma_data", "sigma_min", "sigma_max")}
        sampler = from_diffusers(class_name)(**levels, **options)
        sampler.set_timesteps(steps)
        return sampler
