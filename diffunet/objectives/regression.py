"""Regression: numbers for each place of an image, such as a stain, a missing band or a concentration."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from .supervised import Supervised, SupervisedConfig, mean_where


class RegressionConfig(SupervisedConfig):
    """Numbers of places, by a sum of losses in units of each channel's standard deviation."""

    terms = "l2", "l1", "huber"

    type: Literal["regression"] = "regression"
    l2: float = Field(1.0, ge=0)
    """Factor of the squared error, whose minimum is the mean of the possible targets."""
    l1: float = Field(0.0, ge=0)
    """Factor of the absolute error, whose minimum is their median."""
    huber: float = Field(0.0, ge=0)
    """Factor of the Huber loss: half the square of errors up to one standard deviation, linear beyond."""


class Regression(Supervised):
    """Terms of values (B, C, *S) against a target of the same shape; NaN is unknown."""

    def __init__(self, config: RegressionConfig, std: Sequence[float]):
        """std: standard deviation of each channel of the target."""
        super().__init__(config)
        self.std = tuple(std)

    def term(self, name: str, prediction: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        known = ~target.isnan()
        unit = torch.tensor(self.std, device=target.device).reshape(-1, *[1] * (target.ndim - 2))
        error = (prediction.float() - target.masked_fill(~known, 0.0)) / unit
        loss = {"l2": error.square, "l1": error.abs, "huber": lambda: F.huber_loss(error, error * 0, reduction="none")}
        values = loss[name]()
        return mean_where(values if weight is None else values * weight[:, None], known)
