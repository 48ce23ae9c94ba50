"""Seconds that need not be spent: imports that nobody uses, and weights that nobody reads."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

NOT_NEEDED = ("torch._dynamo", "scipy.stats")
"""What the schedulers of `diffusers` import at once: a compiler that they can do without, and statistics that only a
spacing of steps needs which is not offered here. Empty modules stand in for them meanwhile; later imports are real."""


def from_diffusers(name: str) -> Any:
    """What `diffusers` calls so, in a third of the time of `from diffusers import name`."""
    absent = [module for module in NOT_NEEDED if module not in sys.modules]
    sys.modules |= {module: ModuleType(module) for module in absent}
    try:
        return getattr(importlib.import_module("diffusers"), name)
    finally:
        for module in absent:
            del sys.modules[module]


@contextmanager
def outlined() -> Iterator[None]:
    """Networks made here have names and shapes, and neither memory nor values."""
    with torch.device("meta"), _Unfilled():
        yield


class _Unfilled(TorchFunctionMode):
    """Leaves normal numbers out: to draw them for tensors without memory, torch imports its compiler."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (Tensor.normal_, nn.init.normal_):
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)
