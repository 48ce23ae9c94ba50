"""Consistency tuning as a whole run: trained, resumed in the middle of its stages, and sampled in one call."""

import shutil
from pathlib import Path

import pytest
from helpers import checkpoint, mistake, run, train_small

from diffunet.cli import main as commands
from diffunet.runs.run import Run

FLAGS = [
    *("--objective", "consistency", "--objective.source", "ddpm", "--objective.stages", "3"),
    *("--sample.sampler", "consistency", "--sample.steps", "2"),
]


@pytest.mark.slow
def test_a_resumed_run_is_the_same_to_the_byte(small):
    """Stages, pairs, dropout masks shared by two forward passes, and micro-batches included."""
    train_small(*FLAGS)
    shutil.copytree("run", "resumed")
    shutil.rmtree("resumed/checkpoints/step_00000012")
    assert run(commands.train, "--resume", "resumed") == 0
    assert checkpoint(Path("resumed")) == checkpoint(Path("run"))
    sampled = Run("run").sample(num_images=2, steps=1)
    assert sampled.pixels.shape == (2, 1, 8, 8)


def test_other_samplers_are_refused_before_the_training(small, capsys):
    line = mistake(capsys, commands.train, "--config", "small.yaml", *FLAGS[:4])
    assert line == "sampler: dpm++ is not one of consistency"
