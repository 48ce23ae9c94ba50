"""Silence libraries during calls from any thread: warning filters and log levels belong to the whole process."""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_lock = threading.Lock()
_users = 0
_restore = ExitStack()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Pillow's warnings, and `datasets`, the hub client and tifffile, which raise the errors that they log.

    Also a decorator. Of overlapping threads the first to enter silences and the last to leave restores.
    """
    global _users
    with _lock:
        if not _users:
            _silence()
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                _restore.close()


def _silence() -> None:
    import datasets  # configures its logger and the hub's

    _restore.enter_context(warnings.catch_warnings())
    warnings.filterwarnings("ignore", module="PIL|datasets")
    for logger in map(logging.getLogger, ("datasets", "huggingface_hub", "tifffile")):
        _restore.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL)
    if not datasets.are_progress_bars_disabled():
        datasets.disable_progress_bars()
        _restore.callback(datasets.enable_progress_bars)
