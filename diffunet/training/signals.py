"""Ctrl-C and SIGTERM as a request to save a checkpoint and stop."""

import math
import os
import signal
import threading
import time
from typing import TYPE_CHECKING

import torch
from torch import distributed

if TYPE_CHECKING:
    from accelerate import Accelerator

STDOUT = 1
AGREE_EVERY = 4
"""Steps between agreements of several processes: between their CPUs, which does not wait for devices."""
REPEAT_SECONDS = 3
"""Repeats within this time are ignored: launchers often deliver a signal twice."""


class GracefulShutdown:
    """Inside this context the signals set a flag, and all processes see it at the same step.

    The same signal again, later than `REPEAT_SECONDS`, ends the process at once.
    """

    def __init__(self, accelerator: "Accelerator"):
        self.accelerator = accelerator
        self.signal: signal.Signals | None = None
        self._received = math.inf
        self._group = distributed.new_group(backend="gloo") if accelerator.num_processes > 1 else None

    def __enter__(self) -> "GracefulShutdown":
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame) -> None:
        if self.signal == number and time.monotonic() > self._received + REPEAT_SECONDS:
            signal.signal(number, self._previous[number])
            signal.raise_signal(number)
        if self.signal:
            return
        self.signal, self._received = signal.Signals(number), time.monotonic()
        if self.accelerator.is_main_process:  # print() is not reentrant
            text = f"\n{signal.Signals(number).name}: saving a checkpoint after this step ...\n"
            os.write(STDOUT, text.encode())

    def requested(self, step: int) -> bool:
        """Return whether any process received a signal. All processes have to call this after each step."""
        if self._group is None or step % AGREE_EVERY:
            return self._group is None and self.signal is not None
        received = torch.tensor(self.signal is not None, dtype=torch.int32)
        distributed.all_reduce(received, group=self._group)
        return bool(received)
