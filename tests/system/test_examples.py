"""The scripts in examples/: few steps, but all of the code."""

import importlib.util
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_minimal_trains_and_samples_a_grid(in_a_new_folder):
    samples = load("minimal").main(steps=3, file="digits.png")
    assert samples.shape == (100, 1, 8, 8)
    assert samples.isfinite().all()
    assert Path("digits.png").stat().st_size > 1000


@pytest.mark.slow
def test_your_own_condition_reaches_the_network():
    torch.manual_seed(0)
    measured = load("your_own_condition").main(steps=60)
    assert measured[0] < measured[-1]


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_examples_are_short(name):
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) <= 60
