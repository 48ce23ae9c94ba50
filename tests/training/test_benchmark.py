"""Memory per image, the largest batch, and throughput, against numbers that are known."""

from types import SimpleNamespace

import pytest
import torch
from line_fit import Points, trainer
from torch import nn

from diffunet.training import benchmark
from diffunet.training.benchmark import SameBatch, bytes_per_image, largest_batch, loader_throughput, measure
from diffunet.training.config import TrainConfig

CPU = torch.device("cpu")


class DoubleSine:
    """The mean of sin(sin(x)): its backward pass needs x and sin(x)."""

    def loss(self, model, rng=None, x=None):
        return {"loss": model(x).sin().sin().mean(1)}


@pytest.mark.parametrize("examples", [1, 2, 40])
def test_bytes_per_image_counts_each_stored_activation_once(examples):
    """Also for data sets with fewer examples than the measurement takes."""
    data = Points()
    data.x = data.x[:examples]
    measured = SimpleNamespace(
        data=data,
        objective=DoubleSine(),
        placement=SimpleNamespace(model=nn.Linear(1, 1000)),
        accelerator=SimpleNamespace(device=CPU),
    )
    # x with 1 number, for the weights; the layer's output and its sine with 1,000 each; none of them twice.
    assert bytes_per_image(measured) == 4 * (1 + 1000 + 1000)


def test_the_largest_batch_follows_from_the_free_memory(tmp_path, monkeypatch):
    def trainer_for(config, data):
        return trainer(tmp_path, **config.model_dump(include={"batch_size", "gradient_accumulation_steps"}))

    per_image = bytes_per_image(trainer(tmp_path))
    weights = sum(parameter.nbytes for parameter in trainer(tmp_path).placement.module.parameters())
    for parts in (1, 2):
        config = TrainConfig(gradient_accumulation_steps=parts)
        for images, expected in ((10, 8), (17, 16), (1000, 32 // parts)):  # of forty examples
            used = images * benchmark.ACTIVATION_OVERHEAD * per_image + benchmark.OPTIMIZER_COPIES * weights
            free = used / (1 - benchmark.MEMORY_MARGIN)
            monkeypatch.setattr(benchmark, "free_memory", lambda device, free=free: free)
            assert largest_batch(trainer_for, config, Points()) == expected * parts


def test_same_batch_always_returns_its_first_batch():
    data = SameBatch(Points())
    first = data.__getitems__([3, 1])
    assert first["x"].tolist() == Points().x[[3, 1]].tolist()
    assert data.__getitems__([5, 6]) is first
    assert len(data) == 40


def test_loader_throughput_counts_the_prepared_examples():
    class Counted(Points):
        seen = 0

        def prepare(self, batch, rng):
            Counted.seen += len(batch["x"])
            return batch

    rate = loader_throughput(Counted(), batch_size=8, device=CPU, seconds=0.1)
    assert rate * 0.1 == pytest.approx(Counted.seen - 8, rel=0.5)  # the first batch only warms up


@pytest.mark.parametrize(("limit", "batch_size"), [(1e9, 32), (0.0, 2)])
def test_a_benchmark_of_slow_steps_uses_smaller_batches(tmp_path, monkeypatch, limit, batch_size):
    """With a line before each of its parts; two micro-batches have one example each at least."""
    monkeypatch.setattr(benchmark, "MAX_STEP", limit)
    monkeypatch.setattr(benchmark, "peak_conv_flops", lambda device, precision: 1.0)
    lines = []

    def trainer_for(config, data):
        changes = config.model_dump(include={"batch_size", "gradient_accumulation_steps"})
        return trainer(tmp_path, steps=10**9, **changes)

    config = TrainConfig(batch_size=32, gradient_accumulation_steps=2)
    found = measure(trainer_for, config, Points(), 0.01, lines.append)
    assert found.batch_size == batch_size
    assert f"measuring training with batches of {batch_size} ..." in lines
    assert len(lines) == 4
