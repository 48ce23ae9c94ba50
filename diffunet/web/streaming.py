"""Sampling or predicting in a thread of its own: the newest estimate, and a stop between two steps."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, Full, Queue
from typing import Any, Generic, TypeVar

from torch import Tensor

B = TypeVar("B")
T = TypeVar("T")
WAIT_SECONDS = 0.05


@dataclass
class Switch:
    """A request to stop sampling, shared by the sampling thread and the threads that serve browsers."""

    off: bool = False


@dataclass(frozen=True)
class Frame:
    """The state of a sampling after one step."""

    images: Tensor
    """(B, C, H, W), estimates of the clean images, in about [-1, 1]."""
    step: int
    """Steps so far, over all batches."""
    steps: int
    """Of all batches together."""

    @property
    def share(self) -> float:
        """The share of the steps that is done."""
        return self.step / self.steps

    @property
    def text(self) -> str:
        return f"Step {self.step} of {self.steps}"


@dataclass(frozen=True)
class Finished(Generic[T]):
    """The end of a sampling."""

    result: T


class _Stop(Exception):
    """Leaves the loop over the steps."""


def stream(
    sample: Callable[..., Iterator[B]],
    finish: Callable[[Iterable[B]], T],
    switch: Switch,
    batches: int = 1,
) -> Iterator[Frame | Finished[T]]:
    """Yield the newest frame of a sampling again and again, and at last what `finish` makes of its batches.

    sample: called with `progress` and `watch` as in `Sampler.sample`. batches: how many it makes.
    Batches that are complete when the switch is turned off, or the iterator closed, are finished.
    Raise whatever `sample` or `finish` raises.
    """
    frames: Queue[Frame] = Queue(maxsize=1)
    step = steps = 0

    def progress(each: Iterable[Any]) -> Iterator[Any]:
        nonlocal step, steps
        each = list(each)
        steps = max(steps, len(each) * batches)
        for one in each:
            if switch.off:
                raise _Stop
            step += 1
            yield one

    def watch(images: Tensor) -> None:
        with suppress(Empty):  # only the newest is of interest
            frames.get_nowait()
        with suppress(Full):
            frames.put_nowait(Frame(images.detach().float().cpu(), step, steps))

    def complete() -> Iterator[B]:
        with suppress(_Stop):
            yield from sample(progress=progress, watch=watch)

    with ThreadPoolExecutor(1) as thread:
        future: Future[T] = thread.submit(lambda: finish(complete()))
        try:
            while not future.done():
                with suppress(Empty):
                    yield frames.get(timeout=WAIT_SECONDS)
            yield Finished(future.result())
        finally:
            switch.off = True
