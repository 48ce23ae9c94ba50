"""Flow matching along straight paths (Lipman et al. 2023; rectified flow, Liu et al. 2023).

x_t = (1 - s) x_0 + s noise for s from 0 to 1; the network predicts the velocity, noise - x_0.
"""

from typing import Any, ClassVar, Literal

from torch import Tensor

from ..core.errors import UserError
from .base import CLIP_TO_DATA_RANGE, NoisyBatch, Objective, ObjectiveConfig
from .schedulers import from_diffusers

TIME_SCALE = 1000
"""The network sees t = 1000 s, the range that its sinusoidal time embedding is made for."""
MULTISTEP = {
    **CLIP_TO_DATA_RANGE,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "num_train_timesteps": TIME_SCALE,
    "final_sigmas_type": "zero",
    "flow_shift": 0.4,  # even steps of s for data of this standard deviation
}


class FlowConfig(ObjectiveConfig):
    """Straight paths, with s uniform in training."""

    type: Literal["flow"] = "flow"


class Flow(Objective):
    """The error of the velocity."""

    config: FlowConfig
    samplers: ClassVar = {
        "dpm++": ("DPMSolverMultistepScheduler", MULTISTEP),
        "unipc": ("UniPCMultistepScheduler", MULTISTEP),
    }

    def add_noise(self, image: Tensor, noise: Tensor, u: Tensor) -> NoisyBatch:
        s = u.reshape(-1, *[1] * (image.ndim - 1))
        return NoisyBatch((1 - s) * image + s * noise, TIME_SCALE * u, noise - image)

    def timestep_at(self, u: float) -> float:
        return TIME_SCALE * u

    def sampler(self, name: str, steps: int) -> Any:
        class_name, options = self.scheduler_args(name)
        if not 1 <= steps <= TIME_SCALE:
            raise UserError(f"steps: {steps} is not between 1 and {TIME_SCALE}")
        sampler = from_diffusers(class_name)(**options)
        sampler.set_timesteps(steps)
        return sampler
