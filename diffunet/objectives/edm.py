"""EDM's preconditioning (Karras et al. 2022, "Elucidating the design space", table 1 and equations 7 and 8).

The image keeps its size and noise of any standard deviation sigma is added, x = x_0 + sigma noise.
The network F sees and answers in unit variance; the clean image is D = c_skip x + c_out F(c_in x, c_noise).
"""

from types import MappingProxyType
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ..core.errors import UserError
from .base import CLIP_TO_DATA_RANGE, NoisyBatch, Objective, ObjectiveConfig

EPS = 1e-6
"""u stays this far from 0 and 1, where sigma would be 0 and infinite."""


class EDMConfig(ObjectiveConfig):
    """EDM's noise: log-normal in training, from sigma_max down to sigma_min when drawing."""

    type: Literal["edm"] = "edm"
    sigma_data: float = Field(0.5, gt=0)
    """Standard deviation of the pictures in [-1, 1]."""
    P_mean: float = -1.2
    """Mean of ln(sigma) in training: P_mean."""
    P_std: float = Field(1.2, gt=0)
    """Standard deviation of ln(sigma) in training: P_std."""
    sigma_min: float = Field(0.002, gt=0)
    """Lowest noise when drawing, before none."""
    sigma_max: float = Field(80.0, gt=0)
    """Noise to draw from."""


class EDM(Objective):
    """The error of D, weighted so that every noise level counts the same in F: lambda = 1 / c_out²."""

    config: EDMConfig
    samplers = MappingProxyType(
        {
            "dpm++": ("EDMDPMSolverMultistepScheduler", {}),
            "sde-dpm++": ("EDMDPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        }
    )

    def add_noise(self, image: Tensor, noise: Tensor, u: Tensor) -> NoisyBatch:
        normal = torch.special.ndtri(u.clamp(EPS, 1 - EPS))
        log_sigma = self.config.P_mean + self.config.P_std * normal
        sigma = log_sigma.exp().reshape(-1, *[1] * (image.ndim - 1))
        data = self.config.sigma_data
        total = (sigma**2 + data**2).sqrt()
        c_skip, c_out, c_in = data**2 / total**2, sigma * data / total, 1 / total
        x = image + sigma * noise
        return NoisyBatch(c_in * x, log_sigma / 4, (image - c_skip * x) / c_out)

    def timestep_at(self, u: float) -> float:
        normal = float(torch.special.ndtri(torch.tensor(u).double().clamp(EPS, 1 - EPS)))
        return (self.config.P_mean + self.config.P_std * normal) / 4

    def sampler(self, name: str, steps: int):
        scheduler_class, options = self.scheduler_class(name)
        if steps < 2:
            raise UserError(f"steps: {steps}; EDM's noise levels are at least 2")
        noise = {key: getattr(self.config, key) for key in ("sigma_data", "sigma_min", "sigma_max")}
        # Even in ln(sigma): for this solver nearer to the closed form than the paper's rho of 7, which is Heun's.
        levels = {"sigma_schedule": "exponential", "final_sigmas_type": "zero"}
        sampler = scheduler_class(**noise, **levels, **CLIP_TO_DATA_RANGE, **options)
        sampler.set_timesteps(steps)
        return sampler
