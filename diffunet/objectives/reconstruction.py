"""Reconstruction from undersampled k-space: whole complex images, of which new lines go missing at each step."""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field, Strict, model_validator
from torch import Tensor

from ..core.fourier import Pattern, sampled_lines, zero_filled
from ..core.rng import BatchRNG
from .supervised import Supervised, SupervisedConfig, mean_where

Acceleration = Annotated[float, Field(ge=1, le=64)]
SEEDS = 2**24
"""Different patterns; fp32 numbers in [0, 1) have no more."""


class ReconstructionConfig(SupervisedConfig):
    """Complex images from some lines of their k-space, by a sum of losses in units of the images' magnitude."""

    terms = "l2", "l1"

    type: Literal["reconstruction"] = "reconstruction"
    acceleration: Annotated[tuple[Acceleration, Acceleration], Strict(False)] = (4.0, 4.0)
    """Phase-encoding lines over those measured, a range [low, high], drawn anew for each example."""
    center: float = Field(0.08, ge=0, le=1)
    """Central share of the lines that is always measured."""
    pattern: Pattern = "random"
    """Lines besides the center: at random, or every n-th one."""
    l2: float = Field(1.0, ge=0)
    """Factor of the squared error."""
    l1: float = Field(0.0, ge=0)
    """Factor of the absolute error of the real and the imaginary part."""

    @model_validator(mode="after")
    def _fits(self):
        low, high = self.acceleration
        if low > high:
            raise ValueError(f"acceleration: the range is [low, high] (got [{low:g}, {high:g}])")
        if self.pattern == "random" and self.center * high > 1:
            raise ValueError(
                f"center: {self.center:g} of the lines are more than one in {high:g}; lower it or the acceleration"
            )
        return self


class Reconstruction(Supervised):
    """Terms of complex images (B, 2E, *S), real and imaginary in turn, against the fully sampled ones."""

    config: ReconstructionConfig

    def __init__(self, config: ReconstructionConfig, magnitude: float = 1.0):
        """magnitude: root mean square of the complex images of the training set."""
        super().__init__(config)
        self.magnitude = magnitude

    def loss(
        self,
        model: Callable[[Tensor], Tensor],
        image: Tensor,
        target: Tensor | None = None,
        weight: Tensor | None = None,
        rng: BatchRNG | None = None,
    ) -> dict[str, Tensor]:
        """Return `loss` and its terms, (B,) each.

        target: whole images (B, 2E, *S), or None if `image` is. The model sees them as `core.fourier.zero_filled`,
        (B, 2E + 1, *S), with lines along the last axis but one; weight: (B, *S) or None. Without `rng` the lines are
        the same at each call.
        """
        rng = rng or BatchRNG(torch.Generator(image.device).manual_seed(0))
        whole = (image if target is None else target).float()
        return super().loss(model, zero_filled(whole, self.masks(whole, rng)), whole, weight)

    def masks(self, image: Tensor, rng: BatchRNG) -> Tensor:
        """Return which places of k-space are measured of each image (B, C, *S), (B, *S) bool."""
        (low, high), size = self.config.acceleration, image.shape[2:]
        shares, seeds = rng.uniform_like(image).tolist(), rng.uniform_like(image).mul(SEEDS).long().tolist()
        lines = [
            sampled_lines(size[-1], low + share * (high - low), self.config.center, self.config.pattern, seed=seed)
            for share, seed in zip(shares, seeds, strict=True)
        ]
        shape = (len(image), *[1] * (len(size) - 1), size[-1])
        return torch.stack(lines).reshape(shape).expand(-1, *size).to(image.device)

    def term(self, name: str, prediction: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        errors = (prediction.float() - target) / self.magnitude
        # Two real channels are one complex number, whose power is the sum of theirs.
        values = 2 * errors.square() if name == "l2" else errors.abs()
        return mean_where(values if weight is None else values * weight[:, None], torch.ones_like(values).bool())
