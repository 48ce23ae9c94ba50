"""Guidance of a model by a worse one."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Guided(nn.Module):
    """A model guided away from a worse one, `guide`, with the scale as in diffusers:

        guide + guidance_scale * (model - guide)

    Without a guide, the worse model is the model itself without conditions: classifier-free guidance (Ho & Salimans
    2022, equation 6). With one, such as an earlier state of the same training, it is autoguidance (Karras et al.
    2024). A scale of 1 is the model alone, 0 the guide alone. Outside `interval`, the lowest and highest t, the model
    is used alone (Kynkäänniemi et al. 2024): guidance harms at high noise levels and has no effect at low ones.
    """

    def __init__(
        self,
        model: Callable[..., Tensor],
        guidance_scale: float,
        interval: tuple[float, float] = (float("-inf"), float("inf")),
        guide: Callable[..., Tensor] | None = None,
    ):
        super().__init__()
        self.model = model
        self.guidance_scale = guidance_scale
        self.interval = interval
        self.guide = guide

    def forward(self, x_t: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        """Return the guided prediction, in the shape of x_t. t: one number for the whole batch."""
        prediction = self.model(x_t, t, **conditions)
        lowest, highest = self.interval
        if self.guidance_scale == 1 or not lowest <= t <= highest:
            return prediction
        worse = self.model(x_t, t) if self.guide is None else self.guide(x_t, t, **conditions)
        return torch.lerp(worse, prediction, self.guidance_scale)
