"""Comparable times on a machine whose speed varies: calls in turn, round by round, and ratios within rounds."""

from collections.abc import Callable, Hashable
from math import comb
from random import Random
from time import perf_counter
from typing import TypeVar

import numpy as np
import torch

SHORTEST = 0.3
"""Seconds for which shorter calls are repeated within a round."""
WARM_UP = {"cpu": 1, "cuda": 3}
"""Calls before the timing; CUDA graphs are recorded in the second."""

Name = TypeVar("Name", bound=Hashable)


def timed(call: Callable[[], object], times: int = 1) -> float:
    """Return the seconds of a call, including its work on the GPU."""
    _synchronize()
    started = perf_counter()
    for _ in range(times):
        call()
    _synchronize()
    return (perf_counter() - started) / times


def _synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def interleaved(calls: dict[Name, Callable[[], object]], rounds: int) -> dict[Name, np.ndarray]:
    """Return the seconds of each call after a warm-up, (rounds,).

    Each round has every call once, in a random order, so that the machine's other work affects all alike.
    """
    times = {name: max(1, round(SHORTEST / timed(call))) for name, call in calls.items()}
    seconds = {name: np.empty(rounds) for name in calls}
    for number in range(rounds):
        for name in Random(number).sample(list(calls), len(calls)):
            seconds[name][number] = timed(calls[name], times[name])
    return seconds


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the narrowest pair of values that contains the median with 95 % or more, for any distribution.

    The median is outside the k-th and k-th last of n with probability 2 (C(n, 0) + ... + C(n, k - 1)) / 2^n. For fewer
    than six values, less certain, the smallest and the largest.
    """
    n = len(values)
    outside = np.cumsum([comb(n, i) for i in range(n)]) / 2 ** (n - 1)
    k = max(1, int((outside <= 0.05).sum()))
    return float(np.sort(values)[k - 1]), float(np.sort(values)[n - k])


def format_median(values: np.ndarray, digits: str = ".2f") -> str:
    """Return the median, and in brackets its interval."""
    low, high = interval(values)
    return f"{np.median(values):{digits}} [{low:{digits}}, {high:{digits}}]"
