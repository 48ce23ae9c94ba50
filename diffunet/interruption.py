"""Ctrl-C and SIGTERM as a request to save and stop."""

import os
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import Accelerator


STDOUT = 1


class Interruption:
    """While it is entered, the signals only ask; all processes hear of it at the same step.

    The same signal a second time ends the process at once.
    """

    def __init__(self, accelerator: "Accelerator"):
        self.accelerator = accelerator
        self.signal: signal.Signals | None = None

    def __enter__(self) -> "Interruption":
        self._former = {}
        if threading.current_thread() is threading.main_thread():
            self._former = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame) -> None:
        signal.signal(number, self._former[number])
        self.signal = self.signal or signal.Signals(number)
        self.accelerator.set_trigger()
        if self.accelerator.is_main_process:                   # print() could meet itself amid a line
            text = f"\n{signal.Signals(number).name}: saving a checkpoint after this step ...\n"
            os.write(STDOUT, text.encode())

    def requested(self) -> bool:
        """Whether any process was asked to stop. To be called by all of them at the same step."""
        return self.accelerator.check_trigger()
