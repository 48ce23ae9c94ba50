from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import mistake, run
from line_fit import Points, trainer
from torch import nn

from diffunet.cli import main as commands
from diffunet.training import benchmark as throughput
from diffunet.runs.config import Config
from diffunet.tasks.fit import COMPILING_PAYS, duration, settled
from diffunet.core.settings import settings_from
from diffunet.training.benchmark import SameBatch, bytes_per_image, loader_throughput, largest_batch
from diffunet.training.trainer import TrainConfig

CPU = torch.device("cpu")


class Kept:
    """The mean of sin(sin(x)): its backward pass needs x and sin(x)."""

    def loss(self, model, rng=None, x=None):
        return {"loss": model(x).sin().sin().mean(1)}


def test_what_a_step_keeps_of_a_picture(tmp_path):
    measured = SimpleNamespace(
        data=Points(), objective=Kept(), model=nn.Linear(1, 1000), accelerator=SimpleNamespace(device=CPU)
    )
    # x with 1 number, for the weights; the layer's answer and its sine with 1,000 each; none of them twice.
    assert bytes_per_image(measured) == 4 * (1 + 1000 + 1000)


def test_the_largest_batch_follows_from_the_free_memory(tmp_path, monkeypatch):
    def trainer_for(config, data):
        return trainer(tmp_path, **config.model_dump(include={"batch_size", "gradient_accumulation_steps"}))

    config, each = TrainConfig(), bytes_per_image(trainer(tmp_path))
    weights = sum(parameter.nbytes for parameter in trainer(tmp_path).model.parameters())
    for parts in (1, 2):
        config = TrainConfig(gradient_accumulation_steps=parts)
        for room, expected in ((10, 8), (17, 16), (1000, 32 // parts)):  # of forty examples
            free = (room * throughput.ACTIVATION_OVERHEAD * each + throughput.OPTIMIZER_COPIES * weights) / (1 - throughput.MEMORY_MARGIN)
            monkeypatch.setattr(throughput, "free_memory", lambda device, free=free: free)
            assert largest_batch(trainer_for, config, Points()) == expected * parts


def test_a_repeated_batch_is_the_same_one_however_often_it_is_asked_for():
    data = SameBatch(Points())
    first = data.__getitems__([3, 1])
    assert first["x"].tolist() == Points().x[[3, 1]].tolist()
    assert data.__getitems__([5, 6]) is first
    assert len(data) == 40


def test_feeding_goes_through_the_examples(monkeypatch):
    class Counted(Points):
        seen = 0

        def prepare(self, batch, rng):
            Counted.seen += len(batch["x"])
            return batch

    rate = loader_throughput(Counted(), batch_size=8, device=CPU, seconds=0.1)
    assert rate * 0.1 == pytest.approx(Counted.seen - 8, rel=0.5)  # the first batch only warms up


# ── the commands ──────────────────────────────────────────────────────────────────────────────────


def test_a_benchmark_tells_and_leaves_nothing(small, capsys, monkeypatch):
    monkeypatch.setattr("diffunet.cli.train.BENCHMARKED", 0.05)
    assert run(commands.train, "--config", "small.yaml", "--benchmark", "--train.batch_size", "auto") == 0
    said = capsys.readouterr().out
    for line in ("train.batch_size: 1024, the most", "GFLOP a picture", "images/s with batches of 1024", "data alone"):
        assert line in said
    assert "12 steps take about" in said
    assert not Path("run").exists()


def test_auto_becomes_a_number_that_a_resumed_run_keeps(small, capsys, monkeypatch):
    argv = ["--config", "small.yaml", "--train.batch_size", "auto", "--train.steps", "1"]
    assert run(commands.train, *argv, "--train.gradient_accumulation_steps", "1", "--unet.dropout", "0") == 0
    assert settings_from(Path("run/config.yaml"), Config).train.batch_size == 1024
    monkeypatch.setattr(throughput, "free_memory", lambda device: 0)           # not asked again
    assert run(commands.train, "--resume", "run", "--train.steps", "2", "--train.batch_size", "auto") == 0
    assert settings_from(Path("run/config.yaml"), Config).train.batch_size == 1024
    assert "--train.batch_size" in mistake(
        capsys, commands.train, "--config", "small.yaml", "--train.batch_size", "all"
    )


@pytest.mark.parametrize(
    ("wish", "found"),
    [
        ({"steps": 100_000}, {"steps": 100_000, "compile": False}),  # 0.01 s each: a quarter of an hour
        ({"steps": 1_000_000}, {"steps": 1_000_000, "compile": True}),
        ({"steps": 1_000_000, "compile": False}, {"steps": 1_000_000, "compile": False}),
        ({"steps": 10}, {"steps": 10, "compile": False}),  # not worth measuring
        ({"steps": 10, "compile": True}, {"steps": 10, "compile": True}),
        ({"minutes": 10}, {"steps": 60_000, "compile": False}),
        ({"minutes": 60}, {"steps": 720_000, "compile": True}),  # half the time for a step
    ],
)
def test_compiling_is_for_long_trainings(wish, found):
    def trainer_for(wish):
        return SimpleNamespace(measure_step_time=lambda seconds: 0.005 if wish.compile is True else 0.01)

    assert settled(TrainConfig(**wish), trainer_for, lambda text: None) == found
    assert 10 < COMPILING_PAYS < 60


def test_a_time_is_told_in_its_unit():
    assert [duration(m) for m in (1.94, 119, 192, 60 * 47, 60 * 24 * 12)] == [
        "1.9 minutes",
        "119 minutes",
        "3.2 hours",
        "47 hours",
        "12 days",
    ]
