"""The batches of a data set, from any step on. What dies while it fetches them is replaced."""

import signal
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from ..core.rng import EpochShuffle, BatchRNG
from ..core.errors import UserError

WORKER_DEATHS = 3
"""The end, when the processes that fetch data die so many times without a batch in between."""


class TrainingData(Protocol):
    """What can be trained on: a map-style data set of whole batches, and what to make of one."""

    workers: int
    """Processes that fetch; 0: this one."""
    device: torch.device
    """Where the batches lie."""
    fingerprint: str
    """Tells other data from these."""

    def __len__(self) -> int: ...
    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]: ...
    def prepare(self, batch: dict[str, Tensor], rng: BatchRNG) -> dict[str, Tensor]: ...


def fetch(
    data: TrainingData, order: EpochShuffle, positions: list[slice], steps: range, pin_memory: bool, say: Callable
) -> Iterator[list[dict[str, Tensor]]]:
    """For each of `steps` what stands at each of these positions of its batch.

    Processes that were killed are replaced: which examples come next follows from the step alone. UserError if
    that happens again and again, or if nothing can be read.
    """
    deaths = 0
    while steps:
        parts = _parts(data, order, positions, steps, pin_memory)
        try:
            while steps:
                batch = [next(parts) for _ in positions]
                steps, deaths = steps[1:], 0
                yield batch
        except UserError as mistake:                           # from a worker its traceback comes along, as text
            said = str(mistake).splitlines()[-1]
            raise UserError(said.partition("UserError: ")[2] or said) from None
        except (RuntimeError, ConnectionError, EOFError) as error:
            if not (data.workers and _is_worker_crash(error)):
                raise
            deaths += 1
            if deaths == WORKER_DEATHS:
                raise UserError(
                    f"the processes that fetch data were killed {deaths} times in a row; if the memory is short, "
                    "lower --data.workers; --resume RUN goes on from the newest checkpoint"
                ) from None
            say(f"step {steps.start}: a process that fetches data was killed; others take over")


def _parts(
    data: TrainingData, order: EpochShuffle, positions: list[slice], steps: range, pin_memory: bool
) -> Iterator[dict[str, Tensor]]:
    """The same, one after the other."""
    from torch.utils.data import DataLoader  # a tenth of a second, which `--help` need not wait for

    loader = DataLoader(
        data,
        batch_sampler=(order.batch(step)[place].tolist() for step in steps for place in positions),
        collate_fn=_identity,
        num_workers=data.workers,
        worker_init_fn=_ignore_sigint,
        pin_memory=pin_memory,
        generator=torch.Generator(),
    )
    parts = iter(loader)
    if data.workers and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)          # torch's handler raises amid a step; `next` tells, too
    return parts


def _is_worker_crash(error: Exception) -> bool:
    """Whether it says that a process has gone, by itself or by a broken connection, rather than what one came upon."""
    came_upon = str(error).startswith("Caught ")
    return "DataLoader worker (pid" in str(error) if isinstance(error, RuntimeError) else not came_upon


def _identity(batch):
    return batch


def _ignore_sigint(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
