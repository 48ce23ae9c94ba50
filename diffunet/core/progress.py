"""Progress bars and messages, as functions that callers pass in."""

import os
from collections.abc import Callable, Iterable
from functools import cache


def no_progress(steps: Iterable, **options) -> Iterable:
    """Return `steps` unchanged, without a progress bar."""
    return steps


def shared_bar(description: str, unit: str, total: int) -> Callable[..., Iterable]:
    """Return a function that counts the items of many iterables in one tqdm bar, shown from the first item on."""
    from tqdm import tqdm

    bar = cache(lambda: tqdm(total=total, desc=description, unit=unit, leave=False, dynamic_ncols=True))

    def counted(steps: Iterable) -> Iterable:
        for step in steps:
            yield step
            bar().update()

    return counted


def print_once(text: str) -> None:
    """Print in the first process of a launcher only."""
    if os.environ.get("RANK", "0") == "0":
        print(text)
