"""Predictors around predictors: probabilities, the mean over symmetric views of an image, and over several networks.

Each has `members(image)`, one prediction after the other, and `model(image)` is their mean.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """The mean of models; alone, one model."""

    def __init__(self, models: Iterable[nn.Module]):
        super().__init__()
        self.models = nn.ModuleList(models)

    def members(self, image: Tensor) -> Iterator[Tensor]:
        """Yield each prediction (B, K, *S) of an image (B, C, *S)."""
        for model in self.models:
            yield from model.members(image) if isinstance(model, Ensemble) else [model(image)]

    def forward(self, image: Tensor) -> Tensor:
        return mean_and_std(self.members(image))[0]


class Probabilities(nn.Module):
    """The probability of each class, from a model of their logits."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        return torch.softmax(self.model(image), dim=1)


class Averaged(Ensemble):
    """The mean over mirrored and, if `turned`, transposed images, each prediction mapped back.

    Four views in 2-D, or eight, which include all turns by 90 degrees. Exactly as symmetric as these views: the mirror
    image has the mirror prediction (up to the order of the sum).
    """

    def __init__(self, model: nn.Module, axes: Sequence[int] = (-2, -1), turned: bool = False):
        """axes: those along which images are mirrored."""
        super().__init__([model])
        self.axes, self.turned = tuple(axes), turned

    def members(self, image: Tensor) -> Iterator[Tensor]:
        for *mirrored, turned in product(*[(False, True)] * len(self.axes), (False, True)[: 1 + self.turned]):
            axes = [axis for axis, flip in zip(self.axes, mirrored, strict=True) if flip]
            view = image.flip(axes) if axes else image
            predicted = self.models[0](view.transpose(-2, -1) if turned else view)
            predicted = predicted.transpose(-2, -1) if turned else predicted
            yield predicted.flip(axes) if axes else predicted


def mean_and_std(members: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation of predictions, without keeping them (Welford 1962)."""
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for count, member in enumerate(members, start=1):
        change = member - mean
        mean = mean + change / count
        squares = squares + change * (member - mean)
    return mean, (squares / max(count, 1)).clamp(min=0).sqrt()
