import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import small_unet, train_small

from diffunet.conditions.augmentation import AugmentationConfig
from diffunet.conditions.label import LabelConfig
from diffunet.models.denoiser import Denoiser
from diffunet.models.meta import on_meta
from stress.program import ROOT


def output_of(code: str) -> str:
    """Return what a new process prints."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_sampling_calls_the_network_before_any_slow_import(small):
    """torch's compiler, statistics, vision and plots would delay the first image by 6 seconds."""
    train_small("--train.steps", "1")
    slow = ["torch._dynamo", "scipy.stats", "torchvision", "sklearn", "matplotlib", "datasets", "accelerate"]
    printed = output_of(f"""
import os, sys
os.chdir({str(Path.cwd())!r})
from diffunet.cli.main import main
from diffunet.models.denoiser import Denoiser
def first_call(*args, **conditions):
    print([name for name in {slow} if name in sys.modules], flush=True)
    os._exit(0)
Denoiser.forward = first_call
main(["sample", "run"])
""")
    assert printed.strip() == "[]"


@pytest.mark.parametrize("changes", [{}, {"block": "plain", "resampling": "pool"}])
def test_meta_model_has_names_and_shapes_but_no_memory_or_randomness(changes):
    config = small_unet(**changes)
    conditions = {"label": LabelConfig(num_classes=3), "augmentation": AugmentationConfig(width=2)}
    state = torch.random.get_rng_state()
    with on_meta():
        skeleton = Denoiser.from_config(config, conditions)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.is_meta for parameter in skeleton.parameters())
    real = Denoiser.from_config(config, conditions)
    assert {name: tensor.shape for name, tensor in skeleton.state_dict().items()} == {
        name: tensor.shape for name, tensor in real.state_dict().items()
    }
