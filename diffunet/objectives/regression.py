"""Regression: numbers for each place of an image, such as a stain, a missing band or a concentration."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from .similarity import complete_windows, similarity_map
from .supervised import Supervised, SupervisedConfig, center_of, mean_where

ERRORS = {"l2": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss}
SPAN = 4.0
"""Standard deviations that values span, for the constants of the structural similarity."""


class RegressionConfig(SupervisedConfig):
    """Numbers of places, by a sum of losses in units of each channel's standard deviation."""

    terms = "l2", "l1", "huber", "ssim"

    type: Literal["regression"] = "regression"
    base: Literal["linear", "mean"] = "linear"
    """What the network's output is added to: the best linear prediction from the channels at the same place, which is
    near the target if that is a sharper or cleaner image; or the mean of the target."""
    l2: float = Field(1.0, ge=0)
    """Factor of the squared error, whose minimum is the mean of the possible targets."""
    l1: float = Field(0.0, ge=0)
    """Factor of the absolute error, whose minimum is their median."""
    huber: float = Field(0.0, ge=0)
    """Factor of the Huber loss: half the square of errors up to one standard deviation, linear beyond."""
    ssim: float = Field(0.0, ge=0)
    """Factor of one minus the structural similarity (Wang et al. 2004), over windows that are known everywhere."""


class Regression(Supervised):
    """Terms of values (B, C, *S) against a target of the same shape; NaN is unknown."""

    def __init__(self, config: RegressionConfig, std: Sequence[float]):
        """std: standard deviation of each channel of the target."""
        super().__init__(config)
        self.std = tuple(std)

    def term(self, name: str, prediction: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        known = ~target.isnan()
        unit = torch.tensor(self.std, device=target.device).reshape(-1, *[1] * (target.ndim - 2))
        prediction, target = prediction.float() / unit, target.masked_fill(~known, 0.0) / unit
        if name == "ssim":
            values = 1 - similarity_map(prediction, target, SPAN)
            known = complete_windows(known)
            weight = None if weight is None else center_of(weight, values.shape[2:])
        else:
            values = ERRORS[name](prediction, target, reduction="none")
        return mean_where(values if weight is None else values * weight[:, None], known)
