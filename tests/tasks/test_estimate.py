"""Steps that fit into a time, whether to compile, and the table of a benchmark."""

from types import SimpleNamespace

import pytest
import torch

from diffunet.core.runtime import RuntimeConfig
from diffunet.tasks.estimate import COMPILING_PAYS, describe_throughput, duration, resolve_schedule
from diffunet.training.benchmark import Throughput
from diffunet.training.config import TrainConfig

LONGER = "; for an hour, pass --train.minutes 60"


@pytest.mark.parametrize(
    ("config", "compiling", "expected"),
    [
        ({"steps": 100_000}, "auto", (100_000, False)),  # 0.01 s each: a quarter of an hour
        ({"steps": 1_000_000}, "auto", (1_000_000, True)),
        ({"steps": 1_000_000}, False, (1_000_000, False)),
        ({"steps": 10}, "auto", (10, False)),  # not worth measuring
        ({"steps": 10}, True, (10, True)),
        ({"minutes": 10}, "auto", (60_000, False)),
        ({"minutes": 60}, "auto", (720_000, True)),  # half the time for a step
    ],
)
def test_long_trainings_are_compiled_and_minutes_become_steps(config, compiling, expected):
    def trainer_for(train):
        return SimpleNamespace(measure_step_time=lambda seconds: 0.005 if train.runtime.compile is True else 0.01)

    config = TrainConfig(**config, runtime=RuntimeConfig(compile=compiling))
    found = resolve_schedule(config, trainer_for, lambda text: None)
    assert (found.steps, found.runtime.compile) == expected
    runtime = config.runtime.model_copy(update={"compile": found.runtime.compile})
    assert found == config.model_copy(update={"steps": found.steps, "runtime": runtime})
    _, otherwise = COMPILING_PAYS
    assert 10 < otherwise < 60


@pytest.mark.parametrize(("seconds", "advised"), [(0.8, False), (1.0, True)])
def test_an_estimate_of_days_names_the_minutes(seconds, advised):
    lines = []
    trainer = SimpleNamespace(measure_step_time=lambda _: seconds)
    resolve_schedule(TrainConfig(steps=100_000), lambda train: trainer, lines.append)
    assert lines == [f"100,000 steps: about {duration(seconds * 1e5 / 60)}, without previews{LONGER * advised}"]


def test_compiling_pays_earlier_on_a_gpu(monkeypatch):
    config = TrainConfig(minutes=10)
    trainer = SimpleNamespace(measure_step_time=lambda seconds: 0.01)
    assert not resolve_schedule(config, lambda train: trainer, lambda text: None).runtime.compile
    monkeypatch.setattr("diffunet.tasks.estimate.default_device", lambda: torch.device("cuda"))
    assert resolve_schedule(config, lambda train: trainer, lambda text: None).runtime.compile
    sharded = config.model_copy(update={"shard": True})
    assert not resolve_schedule(sharded, lambda train: trainer, lambda text: None).runtime.compile


def test_durations_have_a_suitable_unit():
    assert [duration(m) for m in (1, 1.94, 119, 192, 60 * 47, 60 * 24 * 12)] == [
        "1 minute",
        "1.9 minutes",
        "119 minutes",
        "3.2 hours",
        "47 hours",
        "12 days",
    ]


def test_a_benchmark_is_a_table_with_the_duration_of_the_whole_training():
    found = Throughput(
        batch_size=16,
        images_per_second=100.0,
        without_data=120.0,
        data_alone=5000.0,
        bytes_per_image=2.0**20,
        memory=2**30,
        peak_flops=1e12,
    )
    text = describe_throughput(found, TrainConfig(steps=6000, batch_size=64), flops=1e9)
    assert "100.0 images/s with batches of 16: 300 GFLOP/s, 30% of this machine's" in text
    assert "without data  120.0 images/s" in text
    assert "data alone    5,000 images/s" in text
    assert "peak 1.00 GiB, about 1 MiB per image" in text
    assert "6,000 steps of 64 images take about 64 minutes" in text
