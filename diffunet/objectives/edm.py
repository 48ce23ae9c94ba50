"""EDM's preconditioning (Karras et al. 2022, "Elucidating the design space", table 1 and equations 7 and 8).

Noise of any standard deviation sigma is added to the image: x = x_0 + sigma noise.
The network F has inputs and targets of unit variance; the denoiser is D = c_skip x + c_out F(c_in x, c_noise).
"""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from .base import Objective, ObjectiveConfig

EPS = 1e-6
"""Smallest distance of u from 0 and 1, where sigma would be 0 and infinite."""


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
    """The error of D, weighted by lambda = 1 / c_out², so that every noise level counts the same in F.

    The network sees x_t = c_in (x_0 + sigma noise), and t = c_noise.
    """

    config: EDMConfig

    def time_at(self, u: Tensor) -> Tensor:
        log_sigma = self.config.P_mean + self.config.P_std * torch.special.ndtri(u.clamp(EPS, 1 - EPS))
        return log_sigma / 4  # c_noise = ln(sigma) / 4

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = (4 * t).exp()
        c_in = (sigma**2 + self.config.sigma_data**2) ** -0.5
        return c_in, c_in * sigma

    def target(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factors in (x_0 - c_skip x) / c_out: those of x_0 and of the noise in x cancel in part."""
        c_in, c_in_sigma = self.levels(t)
        return c_in_sigma / self.config.sigma_data, -self.config.sigma_data * c_in

    @property
    def cleanest(self) -> float:
        return -math.log(self.config.sigma_min)

    def time_of(self, log_snr: Tensor) -> Tensor:
        return -log_snr / 4

    def start(self, size: tuple[int, ...]) -> float:
        return -math.log(self.config.sigma_max)
