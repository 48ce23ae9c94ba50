"""Failures of a training that users can do something about, as one table of kinds and messages."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ..core.errors import UserError, ran_out_of_memory


def lost_a_process(error: Exception) -> bool:
    """Return whether a collective operation failed because another process is gone (gloo, NCCL, the store)."""
    kinds = getattr(torch.distributed, "DistError", ())  # not in every build of torch
    return isinstance(error, kinds) or any(name in str(error) for name in ("gloo", "NCCL", "TCPStore"))


FAILURES: list[tuple[Callable[[Exception], bool], str]] = [
    (
        ran_out_of_memory,
        "out of memory at step {step} with train.batch_size {batch_size}, {micro_batch_size} at a time: "
        "raise --train.gradient_accumulation_steps, which changes nothing else, or lower --train.batch_size",
    ),
    (
        lost_a_process,
        "training stopped at step {step}: another process is gone ({reason}); "
        "resume from {newest} with --resume {folder} and any number of processes",
    ),
]
"""Exceptions that are explained, and their messages. All others keep their traceback."""


@contextmanager
def explained(situation: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
    """Turn the exceptions of `FAILURES` into UserErrors; `situation` fills in their messages."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        message = next((message for applies, message in FAILURES if applies(error)), None)
        if message is None:
            raise
        first = (str(error).splitlines() or [""])[0].split(". ")[0]
        reason = first.partition("] ")[2] or first
        raise UserError(message.format(reason=reason, **situation())) from error
