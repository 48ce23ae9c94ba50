"""Failures of a training that users can do something about, as one table of kinds and messages."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ..core.errors import UserError, ran_out_of_memory


@dataclass(frozen=True)
class Situation:
    """Where a training was when it failed."""

    step: int
    batch_size: int
    micro_batch_size: int
    folder: str
    newest: str
    """Name of the checkpoint from which it can be resumed, or "the start"."""


def lost_a_process(error: Exception) -> bool:
    """Return whether a collective operation failed because another process is gone (gloo, NCCL, the store)."""
    kinds = getattr(torch.distributed, "DistError", ())    # not in every build of torch
    text = str(error)
    return isinstance(error, kinds) or any(name in text for name in ("gloo", "NCCL", "TCPStore"))


def _out_of_memory(error: Exception, at: Situation) -> str:
    return (
        f"out of memory at step {at.step} with train.batch_size {at.batch_size}, {at.micro_batch_size} at a time: "
        "raise --train.gradient_accumulation_steps, which changes nothing else, or lower --train.batch_size"
    )


def _process_lost(error: Exception, at: Situation) -> str:
    first = str(error).splitlines()[0].split(". ")[0]
    why = first.partition("] ")[2] or first
    return (
        f"training stopped at step {at.step}: another process is gone ({why}); "
        f"resume from {at.newest} with --resume {at.folder} and any number of processes"
    )


FAILURES: list[tuple[Callable[[Exception], bool], Callable[[Exception, Situation], str]]] = [
    (ran_out_of_memory, _out_of_memory),
    (lost_a_process, _process_lost),
]
"""Which exceptions are explained, and how. Everything else keeps its traceback."""


@contextmanager
def explained(situation: Callable[[], Situation]) -> Iterator[None]:
    """Turn the exceptions of `FAILURES` into UserErrors."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        for applies, message in FAILURES:
            if applies(error):
                raise UserError(message(error, situation())) from error
        raise
