"""Time that can be compared on a machine whose speed changes: in turn, round by round, and in pairs."""

from collections.abc import Callable, Hashable
from math import comb
from random import Random
from time import perf_counter
from typing import TypeVar

import numpy as np
import torch

SHORTEST = 0.3
"""Seconds; within a round, shorter calls are repeated for about so long."""
WARM_UP = {"cpu": 1, "cuda": 3}
"""Calls that do not count; CUDA graphs are recorded in the second."""

Name = TypeVar("Name", bound=Hashable)


def timed(call: Callable[[], object], times: int = 1) -> float:
    """Seconds of a call, its work on the GPU included."""
    _synchronise()
    started = perf_counter()
    for _ in range(times):
        call()
    _synchronise()
    return (perf_counter() - started) / times


def _synchronise() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def interleaved(calls: dict[Name, Callable[[], object]], rounds: int) -> dict[Name, np.ndarray]:
    """Seconds of each warm call, (rounds,).

    Every round has each call once, in an order of its own, so that what the machine does meanwhile meets all alike.
    """
    times = {name: max(1, round(SHORTEST / timed(call))) for name, call in calls.items()}
    seconds = {name: np.empty(rounds) for name in calls}
    for number in range(rounds):
        for name in Random(number).sample(list(calls), len(calls)):
            seconds[name][number] = timed(calls[name], times[name])
    return seconds


def interval(values: np.ndarray) -> tuple[float, float]:
    """The narrowest pair of the values between which the median lies with 95 % at least, whatever the distribution.

    It is outside the k-th and the k-th last of n with a probability of 2 (C(n, 0) + ... + C(n, k - 1)) / 2^n. Fewer
    than six values cannot say so much; they give the smallest and the greatest.
    """
    n = len(values)
    outside = np.cumsum([comb(n, i) for i in range(n)]) / 2 ** (n - 1)
    k = max(1, int((outside <= 0.05).sum()))
    return float(np.sort(values)[k - 1]), float(np.sort(values)[n - k])


def shown(values: np.ndarray, digits: str = ".2f") -> str:
    """Median, and in brackets its interval."""
    low, high = interval(values)
    return f"{np.median(values):{digits}} [{low:{digits}}, {high:{digits}}]"
