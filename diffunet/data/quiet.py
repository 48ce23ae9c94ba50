"""Silence libraries while they are called: warning filters and log levels belong to the whole process."""

import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ContextDecorator, contextmanager


class Shared(ContextDecorator):
    """A context manager or decorator that the first thread to enter opens and the last one to leave closes."""

    def __init__(self, make: Callable[[], AbstractContextManager]):
        self.make = make
        self.lock = threading.Lock()
        self.users = 0

    def __enter__(self) -> None:
        with self.lock:
            if not self.users:
                self.context = self.make()
                self.context.__enter__()
            self.users += 1

    def __exit__(self, *error) -> None:
        with self.lock:
            self.users -= 1
            if not self.users:
                self.context.__exit__(*error)


@contextmanager
def _pillow() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


@contextmanager
def _datasets() -> Iterator[None]:
    import datasets  # configures its logger and the hub's

    levels = {name: logging.getLogger(name).level for name in ("datasets", "huggingface_hub")}
    shows_bars = not datasets.are_progress_bars_disabled()
    try:
        with warnings.catch_warnings(action="ignore"):
            for name in levels:
                logging.getLogger(name).setLevel(logging.CRITICAL)
            datasets.disable_progress_bars()
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if shows_bars:
            datasets.enable_progress_bars()


quiet_pillow = Shared(_pillow)
"""Silences warnings about defects that do not keep an image from being read."""
quiet_datasets = Shared(_datasets)
"""Silences `datasets` and the hub client, which raise every error that they log."""
