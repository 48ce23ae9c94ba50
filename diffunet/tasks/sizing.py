"""The network of `unet.levels: auto`: the largest that sees as many images as it needs in the training."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

from ..models.inspection import Part, describe
from ..models.sizes import SIZES, Size, size_for
from ..training.config import TrainConfig
from .estimate import duration
from .fit import make_trainer, with_batch_size
from .task import Task

SLOW = 0.5
"""Seconds of a step from which on a proposal measures no larger sizes: their speed follows from their operations."""
PROPOSED = (10, 60, 8 * 60, 3 * 24 * 60)
"""Minutes of training for which sizes are proposed."""


@dataclass(frozen=True)
class Measured:
    """The speed of a training of one size."""

    size: Size
    task: Task
    batch_size: int
    seconds: float
    """Of a step."""

    def images_in(self, minutes: float) -> int:
        """Return the images that the training sees in this time."""
        return round(60 * minutes / self.seconds) * self.batch_size

    def slower(self, size: Size, task: Task) -> Self:
        """Return a larger size at as many operations per second."""
        ratio = _network(task).flops / _network(self.task).flops
        return replace(self, size=size, task=task, seconds=ratio * self.seconds)


def sized(resized: Callable[[Size], Task], train: TrainConfig) -> Task:
    """Return the training of the size for its steps, or for its minutes, by measured speeds.

    resized: as of `Task`.
    """
    if train.minutes:
        measured = []
        for each in map(_measured, SIZES, map(resized, SIZES)):
            measured.append(each)
            if each.images_in(train.minutes) < each.size.images:
                break
        chosen = largest(measured, train.minutes)
        images = chosen.images_in(train.minutes)
        reason = f"{images:,} images in {duration(train.minutes)}, at {chosen.seconds:.3g} s per step"
        size, task = chosen.size, chosen.task
    else:
        size, reason = size_for(train.images), f"{train.images:,} images in {train.steps:,} steps"
        task = resized(size)
    larger = SIZES[SIZES.index(size) + 1 :]
    beyond = f"; {larger[0].name} needs {larger[0].images:,}" if larger else ""
    return replace(task, notes=(f"unet.levels: auto: {size.name} for {reason}{beyond}",))


def _measured(size: Size, task: Task) -> Measured:
    train = with_batch_size(task)
    eager = train.runtime.model_copy(update={"compile": False})
    trainer = make_trainer(task, train.model_copy(update={"steps": sys.maxsize, "runtime": eager}))
    return Measured(size, task, trainer.batch_size, trainer.measure_step_time(0))


def largest(measured: Sequence[Measured], minutes: float) -> Measured:
    """Return the largest of these that sees as many images in this time as it needs; at least the first."""
    return [each for each in measured if each is measured[0] or each.images_in(minutes) >= each.size.images][-1]


def proposals(resized: Callable[[Size], Task]) -> str:
    """Return what `unet.levels: auto` would take for trainings of some lengths, a line for each, by measured speeds."""
    measured: list[Measured] = []
    for size, task in zip(SIZES, map(resized, SIZES), strict=True):
        slow = measured and measured[-1].seconds > SLOW
        measured.append(measured[-1].slower(size, task) if slow else _measured(size, task))
    chosen = {minutes: largest(measured, minutes) for minutes in PROPOSED}
    lines = [
        f"{duration(minutes):<12}  {each.size.name}, {_network(each.task).parameters / 1e6:.2g} million parameters, "
        f"{each.images_in(minutes):,} images"
        for minutes, each in chosen.items()
    ]
    return "\n".join(["--unet.levels auto with --train.minutes takes here, in", *lines])


def _network(task: Task) -> Part:
    return describe(task.config.unet, task.config.sampled_size)[-1]
