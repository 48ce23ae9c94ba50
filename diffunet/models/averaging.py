"""Predictors around predictors: probabilities, the mean over symmetric views of an image, and over several networks.

Each has `members(image)`, one prediction after the other, and `model(image)` is their mean. Around tiled models they
take a `box` as these do: what is predicted is only what is inside it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations, product

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


@dataclass(frozen=True)
class View:
    """A symmetry of images: each of their last axes becomes another, and some are mirrored."""

    axes: tuple[int, ...]
    """The axis of the image, from 0, that each axis of the view is."""
    mirrored: tuple[bool, ...]
    """Whether it is mirrored."""

    def of(self, image: Tensor) -> Tensor:
        """Return the view of an image (..., *S)."""
        leading = image.ndim - len(self.axes)
        moved = image.permute(*range(leading), *(leading + axis for axis in self.axes))
        return moved.flip(flipped) if (flipped := self._flipped(leading)) else moved

    def back(self, view: Tensor) -> Tensor:
        """Return the image (..., *S) of a view."""
        leading = view.ndim - len(self.axes)
        straight = view.flip(flipped) if (flipped := self._flipped(leading)) else view
        return straight.permute(*range(leading), *(leading + self.axes.index(axis) for axis in range(len(self.axes))))

    def box_of(self, box: Box, size: Sequence[int]) -> Box:
        """Return where a box of an image of the sides `size` is in the view."""
        ends = []
        for axis, mirrored in zip(self.axes, self.mirrored, strict=True):
            (start, stop), side = box[axis], size[axis]
            ends.append((side - stop, side - start) if mirrored else (start, stop))
        return ends

    def _flipped(self, leading: int) -> list[int]:
        return [leading + axis for axis, mirrored in enumerate(self.mirrored) if mirrored]


def mirrors(dims: int) -> list[View]:
    """Return the views of images with some axes mirrored: four of images, eight of volumes."""
    return [View(tuple(range(dims)), mirrored) for mirrored in product((False, True), repeat=dims)]


def turns() -> list[View]:
    """Return the eight views of square images: mirrored, and turned by multiples of 90 degrees."""
    return [View(axes, mirrored) for mirrored in product((False, True), repeat=2) for axes in ((0, 1), (1, 0))]


def rotations() -> list[View]:
    """Return the 24 rotations of cubes, none of which is a mirror image."""
    found = [View(axes, mirrored) for axes in permutations(range(3)) for mirrored in product((False, True), repeat=3)]
    return [view for view in found if (sum(view.mirrored) + _swaps(view.axes)) % 2 == 0]


def _swaps(axes: tuple[int, ...]) -> int:
    """Return the number of pairs in the wrong order."""
    return sum(first > second for first, second in combinations(axes, 2))


class Averaged(Ensemble):
    """The mean over views of an image, each prediction mapped back.

    If the views are a group, such as those above, the prediction of a view is the view of the prediction, up to the
    order of the sum; the model has to take tiles of all of them.
    """

    def __init__(self, model: nn.Module, views: Sequence[View]):
        super().__init__([model])
        self.views = list(views)

    def members(self, image: Tensor, box: Box | None = None) -> Iterator[Tensor]:
        for view in self.views:
            inside = None if box is None else view.box_of(box, image.shape[2:])
            yield view.back(_called(self.models[0], view.of(image), inside))


def _called(model: nn.Module, image: Tensor, box: Box | None) -> Tensor:
    return model(image) if box is None else model(image, box=box)


def mean_and_std(members: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation of predictions, without keeping them (Welford 1962)."""
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for count, member in enumerate(members, start=1):
        change = member - mean
        mean = mean + change / count
        squares = squares + change * (member - mean)
    return mean, (squares / max(count, 1)).clamp(min=0).sqrt()
