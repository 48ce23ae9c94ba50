"""Guidance of a model by a worse one."""

from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

EVERYWHERE = float("-inf"), float("inf")
"""The interval without which guidance need not look at t, which a GPU would have to send."""


class Guided(nn.Module):
    """A model guided away from a worse one, `guide`, with the scale as in diffusers:

        guide + guidance_scale * (model - guide)

    Without a guide, the worse model is the model itself without conditions: classifier-free guidance (Ho & Salimans
    2022, equation 6). With one, such as an earlier state of the same training, it is autoguidance (Karras et al.
    2024). A scale of 1 is the model alone, 0 the guide alone. Outside `interval`, the lowest and highest t, the model
    is used alone (Kynkäänniemi et al. 2024): guidance harms at high noise levels and has no effect at low ones.

    A mapping has a scale w_k for each condition c_k, in the order of the mapping (InstructPix2Pix, Brooks et al. 2023,
    equation 3, for any number of conditions):

        model() + sum over k of w_k * (model(c_1, ..., c_k) - model(c_1, ..., c_k-1))

    Conditions that are not in the mapping come first, with w = 1; those that are not passed take no part. All scales
    equal are one number, all 1 the model itself. Raise ValueError for a mapping together with a guide.
    """

    def __init__(
        self,
        model: Callable[..., Tensor],
        guidance_scale: float | Mapping[str, float],
        interval: tuple[float, float] = EVERYWHERE,
        guide: Callable[..., Tensor] | None = None,
    ):
        super().__init__()
        if isinstance(guidance_scale, Mapping) and guide is not None:
            raise ValueError("guidance_scale: one per condition (got a guide, which has the same conditions)")
        self.model = model
        self.guidance_scale = guidance_scale
        self.interval = interval
        self.guide = guide

    def forward(self, x_t: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        """Return the guided prediction, in the shape of x_t. t: one number for the whole batch."""
        lowest, highest = self.interval
        if self.interval != EVERYWHERE and not lowest <= t <= highest:
            return self.model(x_t, t, **conditions)
        scale = self.guidance_scale
        if self.guide is None or isinstance(scale, Mapping):
            return self._telescoping(x_t, t, conditions)
        prediction = self.model(x_t, t, **conditions)
        return prediction if scale == 1 else torch.lerp(self.guide(x_t, t, **conditions), prediction, scale)

    def _telescoping(self, x_t: Tensor, t: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """Return the guided prediction of the model and itself with fewer conditions.

        The coefficient of model(c_1, ..., c_k) in the sum is w_k - w_k+1, with 1 before the first scale and 0 after the
        last, so the model is called only where neighboring scales differ.
        """
        scales = self._scales(conditions)
        names, w = list(scales), [1.0, *scales.values(), 0.0]
        called = [k for k in range(len(w) - 1) if w[k] != w[k + 1]]
        predictions = [self.model(x_t, t, **{name: conditions[name] for name in names[:k]}) for k in called]
        guided = predictions[0]
        for k, (worse, better) in zip(called[1:], pairwise(predictions), strict=True):
            guided = torch.lerp(worse, better, w[k]) + (guided - worse)
        return guided

    def _scales(self, conditions: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the scale of each condition that is passed, in the order of the sum."""
        if not isinstance(self.guidance_scale, Mapping):
            return dict.fromkeys(conditions, self.guidance_scale)
        ones = {name: 1.0 for name in conditions if name not in self.guidance_scale}
        return ones | {name: scale for name, scale in self.guidance_scale.items() if name in conditions}
