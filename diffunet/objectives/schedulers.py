"""Schedulers of diffusers, imported without the slow modules that they do not need."""

import importlib
import sys
import threading
from types import ModuleType
from typing import Any

STUBBED_MODULES = ("torch._dynamo", "scipy.stats")
"""Imported by every scheduler: a compiler that is optional, and statistics for a spacing of steps not offered here."""


def from_diffusers(name: str) -> Any:
    """Return the object of this name in `diffusers`, in a third of the time of `from diffusers import name`.

    Empty modules replace STUBBED_MODULES meanwhile; later imports are real. With other threads running, which could
    import an empty module, nothing is replaced.
    """
    alone = threading.active_count() == 1
    absent = [module for module in STUBBED_MODULES if alone and module not in sys.modules]
    sys.modules |= {module: ModuleType(module) for module in absent}
    try:
        return getattr(importlib.import_module("diffusers"), name)
    finally:
        for module in absent:
            del sys.modules[module]
