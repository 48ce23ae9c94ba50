"""Predictors around predictors: probabilities, the mean over symmetric views of an image, and over several networks.

Each has `members(image)`, one prediction after the other, and `model(image)` is their mean. Around tiled models they
take a `box` as these do: what is predicted is only what is inside it.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product

import torch
from torch import Tensor, nn

from .tiling import Box


class Ensemble(nn.Module):
    """The mean of models; alone, one model."""

    def __init__(self, models: Iterable[nn.Module]):
        super().__init__()
        self.models = nn.ModuleList(models)

    def members(self, image: Tensor, box: Box | None = None) -> Iterator[Tensor]:
        """Yield each prediction (B, K, *S) of an image (B, C, *S)."""
        for model in self.models:
            yield from model.members(image, box) if isinstance(model, Ensemble) else [_called(model, image, box)]

    def forward(self, image: Tensor, box: Box | None = None) -> Tensor:
        return mean_and_std(self.members(image, box))[0]


class Probabilities(nn.Module):
    """The probability of each class, from a model of their logits."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, box: Box | None = None) -> Tensor:
        return torch.softmax(_called(self.model, image, box), dim=1)


class Averaged(Ensemble):
    """The mean over mirrored and, if `turned`, transposed images, each prediction mapped back.

    Four views in 2-D, or eight, which include all turns by 90 degrees. Exactly as symmetric as these views: the mirror
    image has the mirror prediction (up to the order of the sum).
    """

    def __init__(self, model: nn.Module, axes: Sequence[int] = (-2, -1), turned: bool = False):
        """axes: those along which images are mirrored."""
        super().__init__([model])
        self.axes, self.turned = tuple(axes), turned

    def members(self, image: Tensor, box: Box | None = None) -> Iterator[Tensor]:
        for *mirrored, turned in product(*[(False, True)] * len(self.axes), (False, True)[: 1 + self.turned]):
            axes = [axis for axis, flip in zip(self.axes, mirrored, strict=True) if flip]
            predicted = _called(self.models[0], _viewed(image, axes, turned), _box_viewed(box, image, axes, turned))
            yield _viewed(predicted, axes, turned, back=True)


def _called(model: nn.Module, image: Tensor, box: Box | None) -> Tensor:
    return model(image) if box is None else model(image, box=box)


def _viewed(image: Tensor, axes: list[int], turned: bool, back: bool = False) -> Tensor:
    """Return the image mirrored along axes, then transposed; or back from that."""
    image = image.transpose(-2, -1) if turned and back else image
    image = image.flip(axes) if axes else image
    return image.transpose(-2, -1) if turned and not back else image


def _box_viewed(box: Box | None, image: Tensor, axes: list[int], turned: bool) -> Box | None:
    """Return where a box of the image is in its view."""
    if box is None:
        return None
    ends = list(box)
    for axis in axes:
        start, stop = ends[axis]
        ends[axis] = image.shape[axis] - stop, image.shape[axis] - start
    return [*ends[:-2], ends[-1], ends[-2]] if turned else ends


def mean_and_std(members: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation of predictions, without keeping them (Welford 1962)."""
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for count, member in enumerate(members, start=1):
        change = member - mean
        mean = mean + change / count
        squares = squares + change * (member - mean)
    return mean, (squares / max(count, 1)).clamp(min=0).sqrt()
