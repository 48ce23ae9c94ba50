"""Ctrl-C and SIGTERM as a request to save and stop."""

import math
import os
import signal
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import Accelerator


STDOUT = 1
AGREED_EVERY = 4
"""Steps."""
REPEATED = 3
"""Seconds within which the same signal is the same wish: who stops a launcher and all it started sends it twice."""


class GracefulShutdown:
    """While it is entered, the signals only ask; all processes hear of it at the same step.

    The same signal again, later than `REPEATED`, ends the process at once.
    """

    def __init__(self, accelerator: "Accelerator"):
        self.accelerator = accelerator
        self.signal: signal.Signals | None = None
        self._asked = math.inf

    def __enter__(self) -> "GracefulShutdown":
        self._former = {}
        if threading.current_thread() is threading.main_thread():
            self._former = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame) -> None:
        if self.signal == number and time.monotonic() > self._asked + REPEATED:
            signal.signal(number, self._former[number])
            signal.raise_signal(number)
        if self.signal:
            return
        self.signal, self._asked = signal.Signals(number), time.monotonic()
        self.accelerator.set_trigger()
        if self.accelerator.is_main_process:                   # print() could meet itself amid a line
            text = f"\n{signal.Signals(number).name}: saving a checkpoint after this step ...\n"
            os.write(STDOUT, text.encode())

    def requested(self, step: int) -> bool:
        """Whether any process was asked to stop. To be called by all of them after each step.

        Several agree on it at every fourth step only, since that waits for their devices.
        """
        if self.accelerator.num_processes == 1:
            return self.signal is not None
        return step % AGREED_EVERY == 0 and self.accelerator.check_trigger()
