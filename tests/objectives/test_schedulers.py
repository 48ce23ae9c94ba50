"""Schedulers come without slow imports, and no one else sees what stands in for those."""

import subprocess
import sys
import threading

import pytest

from diffunet.objectives import schedulers
from stress.program import ROOT


def output_of(code: str) -> str:
    """Return what a new process prints."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_slow_modules_are_imported_when_they_are_needed():
    printed = output_of("""
import sys
from diffunet.objectives.schedulers import from_diffusers
scheduler = from_diffusers("DPMSolverMultistepScheduler")
print([name for name in ("torch._dynamo", "scipy.stats") if name in sys.modules])
scheduler(use_beta_sigmas=True).set_timesteps(5)               # calls a function of scipy.stats
import torch._dynamo
torch._dynamo.reset()
print([name for name in ("torch._dynamo", "scipy.stats") if name in sys.modules])
from diffusers import DPMSolverMultistepScheduler
print(DPMSolverMultistepScheduler is scheduler)
""")
    assert printed.splitlines() == ["[]", "['torch._dynamo', 'scipy.stats']", "True"]


@pytest.mark.slow
def test_modules_imported_before_stay():
    printed = output_of("""
import sys, scipy.stats, torch._dynamo
before = sys.modules["scipy.stats"], sys.modules["torch._dynamo"]
from diffunet.objectives.schedulers import from_diffusers
from_diffusers("DDPMScheduler")
print(before == (sys.modules["scipy.stats"], sys.modules["torch._dynamo"]))
""")
    assert printed.strip() == "True"


@pytest.mark.slow
def test_a_second_thread_imports_the_real_scipy_meanwhile():
    printed = output_of("""
import sys, threading, time
from diffunet.objectives.schedulers import from_diffusers
imported = threading.Event()
stubs = set()
def other_thread():
    while "diffusers" not in sys.modules:
        time.sleep(0.001)
    import scipy.stats
    print(hasattr(scipy.stats, "norm"))
    while not imported.is_set():
        stubs.update(name for name in ("torch._dynamo", "scipy.stats") if name in sys.modules
                     and not hasattr(sys.modules[name], "__file__"))
        time.sleep(0.001)
thread = threading.Thread(target=other_thread)
thread.start()
from_diffusers("DPMSolverMultistepScheduler")
imported.set()
thread.join()
print(stubs)
""")
    assert printed.splitlines() == ["True", "set()"]


@pytest.mark.parametrize("threads", [1, 2])
def test_stubs_exist_only_while_no_other_thread_runs(threads, monkeypatch):
    seen = []

    class Library:
        def __getattr__(self, name):
            seen.append("made_up" in sys.modules)

    monkeypatch.setattr(threading, "active_count", lambda: threads)
    monkeypatch.setattr(schedulers, "STUBBED_MODULES", ("made_up",))
    monkeypatch.setattr(schedulers.importlib, "import_module", lambda name: Library())
    schedulers.from_diffusers("Scheduler")
    assert seen == [threads == 1]
    assert "made_up" not in sys.modules
