"""Progress bars are passed in as functions that wrap an iterable."""

from collections.abc import Iterable
from functools import partial


def no_progress(steps: Iterable, **options) -> Iterable:
    """Return `steps` unchanged: the progress bar of callers that show none."""
    return steps


def progress_bar(description: str, unit: str = "it"):
    """Return a function that wraps an iterable in a tqdm bar, which is removed when it is done."""
    from tqdm import tqdm

    return partial(tqdm, desc=description, unit=unit, leave=False, dynamic_ncols=True)
