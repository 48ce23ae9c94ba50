import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import small_unet, train_small

from diffunet.models.denoiser import ConditionsConfig, Denoiser
from diffunet.models.meta import on_meta
from stress.program import ROOT


def alone(code: str) -> str:
    """What a new process prints."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_a_scheduler_comes_without_what_it_does_not_need_and_finds_it_later():
    said = alone("""
import sys
from diffunet.models.meta import from_diffusers
scheduler = from_diffusers("DPMSolverMultistepScheduler")
print([name for name in ("torch._dynamo", "scipy.stats") if name in sys.modules])
scheduler(use_beta_sigmas=True).set_timesteps(5)               # asks scipy.stats for a function
import torch._dynamo
torch._dynamo.reset()
print([name for name in ("torch._dynamo", "scipy.stats") if name in sys.modules])
from diffusers import DPMSolverMultistepScheduler
print(DPMSolverMultistepScheduler is scheduler)
""")
    assert said.splitlines() == ["[]", "['torch._dynamo', 'scipy.stats']", "True"]


def test_what_is_there_already_stays():
    said = alone("""
import sys, scipy.stats, torch._dynamo
before = sys.modules["scipy.stats"], sys.modules["torch._dynamo"]
from diffunet.models.meta import from_diffusers
from_diffusers("DDPMScheduler")
print(before == (sys.modules["scipy.stats"], sys.modules["torch._dynamo"]))
""")
    assert said.strip() == "True"


def test_the_first_network_call_of_a_sampling_comes_before_every_slow_import(small):
    """torch's compiler, statistics, vision and plots are 6 seconds that a picture need not wait for."""
    train_small("--train.steps", "1")
    slow = ["torch._dynamo", "scipy.stats", "torchvision", "sklearn", "matplotlib", "datasets", "accelerate"]
    said = alone(f"""
import os, sys
os.chdir({str(Path.cwd())!r})
from diffunet.cli import main as commands
from diffunet.models.denoiser import Denoiser
def first_call(*args, **conditions):
    print([name for name in {slow} if name in sys.modules], flush=True)
    os._exit(0)
Denoiser.forward = first_call
commands.sample(["run"])
""")
    assert said.strip() == "[]"


@pytest.mark.parametrize("changes", [{}, {"block": "plain", "resampling": "pool"}])
def test_an_outline_has_the_names_and_shapes_and_neither_memory_nor_randomness(changes):
    config, conditions = small_unet(**changes), ConditionsConfig(classes=3, augmentation=2)
    state = torch.random.get_rng_state()
    with on_meta():
        outline = Denoiser.from_config(config, conditions)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.is_meta for parameter in outline.parameters())
    real = Denoiser.from_config(config, conditions)
    assert {name: tensor.shape for name, tensor in outline.state_dict().items()} == {
        name: tensor.shape for name, tensor in real.state_dict().items()
    }
