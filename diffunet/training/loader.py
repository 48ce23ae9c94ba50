"""The batches of a data set from any step on. Worker processes that are killed are replaced."""

import signal
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.rng import BatchRNG, EpochShuffle

MAX_CRASHES = 3
"""Consecutive crashes of worker processes, without a batch in between, that end the training."""


class TrainingData(Protocol):
    """A map-style data set of whole batches, and how to prepare one for the network."""

    @property
    def workers(self) -> int:
        """Processes that load data; 0: this one."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of the batches."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identifies the data: other data have another fingerprint."""
        ...

    def __len__(self) -> int: ...
    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]: ...
    def prepare(self, batch: dict[str, Tensor], rng: BatchRNG) -> dict[str, Tensor]: ...


def fetch(
    data: TrainingData,
    order: EpochShuffle,
    positions: list[slice],
    steps: range,
    device: torch.device,
    log: Callable[[str], None],
) -> Iterator[list[dict[str, Tensor]]]:
    """Yield for each of `steps` the examples at each of these positions of its batch, ready to be moved to `device`.

    Killed workers are replaced: the next examples follow from the step alone. Raise UserError after `MAX_CRASHES`, or
    if no example can be read.
    """
    crashes = 0
    while steps:
        micro_batches = _load(data, order, positions, steps, device)
        try:
            while steps:
                batch = [next(micro_batches) for _ in positions]
                steps, crashes = steps[1:], 0
                yield batch
        except UserError as mistake:  # from a worker it comes with its traceback, as text
            line = str(mistake).splitlines()[-1]
            raise UserError(line.partition("UserError: ")[2] or line) from None
        except (RuntimeError, ConnectionError, EOFError) as error:
            if not (data.workers and _is_worker_crash(error)):
                raise
            crashes += 1
            if crashes == MAX_CRASHES:
                raise UserError(
                    f"data.workers: the worker processes were killed {crashes} times in a row; if memory is short, "
                    "lower --data.workers; then --resume RUN"
                ) from None
            log(f"step {steps.start}: a data worker was killed and is replaced")


def _load(
    data: TrainingData, order: EpochShuffle, positions: list[slice], steps: range, device: torch.device
) -> Iterator[dict[str, Tensor]]:
    """Yield the micro-batches one after the other."""
    from torch.utils.data import DataLoader  # takes a tenth of a second, which `--help` does not need

    loader = DataLoader(
        data,
        batch_sampler=(order.batch(step)[place].tolist() for step in steps for place in positions),
        collate_fn=dict,  # `__getitems__` returns whole batches
        num_workers=data.workers,
        worker_init_fn=_ignore_sigint,
        pin_memory=device.type == "cuda" and data.device.type == "cpu",
        generator=torch.Generator(),
    )
    micro_batches = iter(loader)
    if data.workers and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises amid a step; `next` raises too
    return micro_batches


def _is_worker_crash(error: Exception) -> bool:
    """Return whether a worker is gone, by its own report or by a broken connection, rather than raised an error."""
    raised_in_worker = str(error).startswith("Caught ")
    return "DataLoader worker (pid" in str(error) if isinstance(error, RuntimeError) else not raised_in_worker


def _ignore_sigint(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
