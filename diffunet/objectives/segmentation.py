"""Segmentation: a class for each place of an image."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from .supervised import Supervised, SupervisedConfig, mean_where

UNKNOWN = -1
"""The class of a place that has no label: it enters no loss, no metric and no choice of patches."""
SMOOTH = 1.0
"""Places added to the numerator and the denominator of an overlap, which keeps small objects from dominating."""


class SegmentationConfig(SupervisedConfig):
    """Classes of places, by the loss cross_entropy * CE + dice * (1 - Dice) - jaccard * log(Jaccard)."""

    terms = "cross_entropy", "dice", "jaccard"

    type: Literal["segmentation"] = "segmentation"
    cross_entropy: float = Field(1.0, ge=0)
    """Factor of the cross-entropy, weighted by place (Ronneberger et al. 2015, equation 1)."""
    dice: float = Field(1.0, ge=0)
    """Factor of one minus the soft Dice coefficient, averaged over the classes, or regions, that an example has."""
    jaccard: float = Field(0.0, ge=0)
    """Factor of minus the logarithm of the soft Jaccard index (Iglovikov & Shvets 2018, equation 4)."""


class Segmentation(Supervised):
    """Terms of logits (B, K, *S) against classes (B, *S), integers; UNKNOWN counts nowhere.

    regions: unions of classes, whose overlaps the terms dice and jaccard then are (Wang et al. 2018, of nested parts of
    a tumor); none: those of each class.
    """

    def __init__(self, config: SegmentationConfig, regions: Sequence[Sequence[int]] = ()):
        super().__init__(config)
        self.regions = [list(region) for region in regions]

    def term(self, name: str, prediction: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        known = target != UNKNOWN
        target = target.clamp(min=0).long()
        if name == "cross_entropy":
            errors = F.cross_entropy(prediction.float(), target, reduction="none")
            return mean_where(errors if weight is None else errors * weight, known)
        overlap, size, present = _overlaps(prediction, target, known, self.regions)
        if name == "dice":
            shared = 1 - (2 * overlap + SMOOTH) / (size + SMOOTH)
        else:
            shared = -((overlap + SMOOTH) / (size - overlap + SMOOTH)).log()
        return mean_where(shared, present)


def _overlaps(
    logits: Tensor, target: Tensor, known: Tensor, regions: Sequence[list[int]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (B, K) by example and class or region: sums of p y and of p + y at known places, and whether it occurs."""
    classes = logits.shape[1]
    inside = known[:, None].float()
    probability = torch.softmax(logits.float(), dim=1) * inside
    truth = torch.movedim(F.one_hot(target, classes), -1, 1).float() * inside
    if regions:
        probability, truth = (torch.stack([x[:, r].sum(1) for r in regions], 1) for x in (probability, truth))
    overlap, size = ((values).flatten(2).sum(2) for values in (probability * truth, probability + truth))
    return overlap, size, truth.flatten(2).any(2)
