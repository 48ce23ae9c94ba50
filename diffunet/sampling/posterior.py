"""Samples of the target of an image: several possible ones, their mean and their spread."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..core.rng import seed_for
from ..models.averaging import Ensemble
from ..models.posterior import TargetDenoiser
from ..models.tiling import Box
from ..objectives.base import Objective
from ..objectives.posterior import SPREAD
from .loop import sample

SAMPLER = "dpm++"
"""Deterministic, so that a sample follows from its first noise; accurate from 8 network calls on."""


class TargetSamples(Ensemble):
    """An ensemble whose members are samples of the target, and `model(image)` is their mean.

    The noise of a member is a function of the seed and its number: neither other members nor the batch change it, and
    images of one size share it. Samples of classes are probabilities, near 0 and 1; their mean is that of each class.
    """

    def __init__(
        self,
        denoiser: TargetDenoiser,
        process: Objective,
        size: tuple[int, ...],
        classes: bool,
        samples: int,
        steps: int,
        seed: int = 0,
    ):
        """size: sides of the patches of the training, which decides at which noise samples start.

        Raise UserError for a number of network calls, `steps`, that the process does not have.
        """
        super().__init__([denoiser])
        process.check_steps(steps)
        self.process, self.size, self.classes = process, size, classes
        self.samples, self.steps, self.seed = samples, steps, seed

    @torch.no_grad()
    def members(self, image: Tensor, box: Box | None = None) -> Iterator[Tensor]:
        """Yield samples of the target (B, K, *S) of an image (B, C, *S); of a box, what is inside it.

        A sample of the whole image is made for any box, since all of its places depend on each other.
        """
        denoiser: Any = self.models[0]
        whole = image.to(denoiser.target_mean.device)
        inside = (..., *(slice(*ends) for ends in box or ()))
        for member in range(self.samples):
            generator = torch.Generator().manual_seed(seed_for(self.seed, member))
            noise = torch.randn(1, len(denoiser.target_mean), *image.shape[2:], generator=generator)
            sampler = self.process.sampler(SAMPLER, self.steps, self.size)
            sampler.limit = SPREAD if self.classes else None
            noise = noise.expand(len(image), *noise.shape[1:]).to(whole.device)
            target = denoiser.target_of(sample(denoiser, sampler, noise, image=whole))[inside].to(image.device)
            yield _probabilities(target) if self.classes else target


def _probabilities(scores: Tensor) -> Tensor:
    """Return probabilities of classes (B, K, *S) from estimates of them, which need not sum to 1."""
    scores = scores.clamp(0, 1) + 1e-6  # so that a place where all are 0 has all classes alike
    return scores / scores.sum(1, keepdim=True)
