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
                self.context.__exit__(None, None, None)


@contextmanager
def _ignored_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL|datasets")
        yield


@contextmanager
def _silent_datasets() -> Iterator[None]:
    import datasets  # configures its logger and the hub's

    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    shows_bars = not datasets.are_progress_bars_disabled()
    try:
        datasets.disable_progress_bars()
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if shows_bars:
            datasets.enable_progress_bars()


quiet_warnings = Shared(_ignored_warnings)
"""Silences warnings about defects that do not keep an image from being read."""
quiet_datasets = Shared(_silent_datasets)
"""Silences the logs and bars of `datasets` and the hub client, which raise every error that they log."""
