"""Flow matching along straight paths (Lipman et al. 2023; rectified flow, Liu et al. 2023).

x_t = (1 - s) x_0 + s noise for s from 0 to 1; the network predicts the velocity, noise - x_0.
"""

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..core.errors import UserError
from .base import CLIP_TO_DATA_RANGE, Objective, ObjectiveConfig
from .schedulers import from_diffusers

TIME_SCALE = 1000
"""The network sees t = 1000 s, the range that its sinusoidal time embedding is made for."""
LAST = 0.01
"""s of a solver's last call."""
MULTISTEP = {
    **CLIP_TO_DATA_RANGE,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "num_train_timesteps": TIME_SCALE,
    "final_sigmas_type": "zero",
}


class FlowConfig(ObjectiveConfig):
    """Straight paths, with s uniform in training."""

    type: Literal["flow"] = "flow"


class Flow(Objective):
    """The error of the velocity."""

    config: FlowConfig
    schedulers: ClassVar = {"unipc": ("UniPCMultistepScheduler", MULTISTEP)}

    def time_at(self, u: Tensor) -> Tensor:
        return TIME_SCALE * u

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t / TIME_SCALE, t / TIME_SCALE

    def target(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(t), torch.ones_like(t)

    @property
    def cleanest(self) -> float:
        return math.log(1 / LAST - 1)

    def time_of(self, log_snr: Tensor) -> Tensor:
        return TIME_SCALE * torch.sigmoid(-log_snr)

    def check_steps(self, steps: int) -> None:
        if not 1 <= steps <= TIME_SCALE:
            raise UserError(f"steps: {steps} is not between 1 and {TIME_SCALE}")

    def scheduler(self, class_name: str, options: dict[str, Any], steps: int, size: tuple[int, ...]) -> Any:
        scheduler = from_diffusers(class_name)(**options)
        scheduler.set_timesteps(steps)
        # Its own steps, even in s, begin too late for the large-scale parts of images.
        scheduler.timesteps = self.falling_times(steps, self.start(size))
        scheduler.sigmas = torch.cat([scheduler.timesteps / TIME_SCALE, torch.zeros(1)])
        scheduler.init_noise_sigma = float(scheduler.sigmas[0])
        return scheduler
