"""`unet.levels: auto` and `train.learning_rate: auto`: the choice, its reason in config.yaml, and resuming."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import mistake, run

from diffunet.core.settings import settings_from
from diffunet.models.config import UNetConfig
from diffunet.models.sizes import SIZES
from diffunet.runs.config import Config
from diffunet.tasks import sizing
from diffunet.tasks.sizing import Measured, largest

AUTO = ["--config", "small.yaml", "--unet.levels", "auto", "--train.learning_rate", "auto"]


@pytest.fixture
def speeds(monkeypatch):
    """Seconds of a step by width, instead of measurements; returns the widths that were measured."""
    measured = []

    def make_trainer(task, train):
        width = task.config.unet.levels[0].channels
        assert train.runtime.compile is False

        def measure_step_time(seconds):
            measured.append(width)
            return width / 1000

        return SimpleNamespace(batch_size=train.batch_size, measure_step_time=measure_step_time)

    monkeypatch.setattr(sizing, "make_trainer", make_trainer)
    return measured


def width() -> int:
    return settings_from(Path("run/config.yaml"), Config).unet.levels[0].channels


def test_steps_decide_the_size_and_config_yaml_has_the_reason(small, capsys):
    assert run("train", *AUTO) == 0
    found = settings_from(Path("run/config.yaml"), Config)
    assert found.unet.levels == SIZES[0].of(UNetConfig(), 8).levels
    assert found.unet.dropout == 0.1  # of small.yaml
    assert found.train.learning_rate == 0.05 / 16
    reason = f"unet.levels: auto: width 16 for 96 images in 12 steps; {SIZES[1].name} needs {SIZES[1].images:,}"
    assert reason in capsys.readouterr().out
    assert Path("run/config.yaml").read_text().splitlines()[0] == f"# {reason}"

    given = ["--unet.levels", "auto", "--train.learning_rate", "auto", "--train.batch_size", "auto"]
    assert run("train", "--resume", "run", "--train.steps", "16", *given) == 0
    resumed = settings_from(Path("run/config.yaml"), Config)
    assert resumed == found.replace(train={"steps": 16})
    assert Path("run/config.yaml").read_text().splitlines()[0] == f"# {reason}"


@pytest.mark.parametrize(("minutes", "expected"), [(0.01, 0), (1e3, 2), (1e9, len(SIZES) - 1)])
def test_measured_speeds_decide_the_size_for_a_time(small, capsys, monkeypatch, speeds, minutes, expected):
    """Each size sees 60,000 minutes / width × 8 images, so the expected one is known beforehand."""
    sizes = [size.of(UNetConfig(), 8).levels[0].channels for size in SIZES]
    needed = {0.01: 0, 1e3: 8 * 60_000 * 1e3 / sizes[2], 1e9: 0}[minutes]
    counts = [0, 1, needed, *(10**9 * place for place in range(1, len(SIZES) - 2))] if needed else None
    if counts:
        chosen = [replace(size, images=round(n)) for size, n in zip(SIZES, counts, strict=True)]
        monkeypatch.setattr(sizing, "SIZES", chosen)
    monkeypatch.setattr(
        "diffunet.tasks.fit.resolve_schedule", lambda config, *_: config.model_copy(update={"steps": 1})
    )
    assert run("train", *AUTO, "--train.minutes", minutes) == 0
    assert width() == sizes[expected]
    assert speeds == sizes[: expected + 2]  # and one that sees too few
    assert f"unet.levels: auto: {SIZES[expected].name} for " in capsys.readouterr().out


def test_a_network_that_is_given_is_not_chosen(small, capsys, speeds):
    assert run("train", "--config", "small.yaml", "--train.minutes", "0.001") == 0
    assert "auto" not in capsys.readouterr().out
    assert not Path("run/config.yaml").read_text().startswith("#")
    assert not speeds


def test_a_benchmark_proposes_sizes(small, capsys, monkeypatch, speeds):
    monkeypatch.setattr("diffunet.tasks.fit.BENCHMARK_SECONDS", 0.02)
    monkeypatch.setattr("diffunet.training.benchmark.peak_conv_flops", lambda device, precision: 1e9)
    assert run("train", "--config", "small.yaml", "--benchmark") == 0
    lines = capsys.readouterr().out.splitlines()
    table = lines[lines.index("--unet.levels auto with --train.minutes takes here, in") + 1 :]
    assert [line.split("  ")[0].strip() for line in table] == ["10 minutes", "60 minutes", "8 hours", "3 days"]
    for line, minutes in zip(table, sizing.PROPOSED, strict=True):
        size = next(size for size in SIZES if size.name in line)
        channels = size.of(UNetConfig(), 8).levels[0].channels
        assert f"{round(60 * minutes / (channels / 1000)) * 8:,} images" in line


def test_larger_sizes_are_estimated_by_their_operations(small, monkeypatch, speeds):
    from diffunet.tasks.generation import generation

    monkeypatch.setattr(sizing, "SLOW", 0.02)  # of a step: that of width 32
    resized = generation(settings_from(Path("small.yaml"), Config)).resized
    lines = sizing.proposals(resized).splitlines()[1:]
    assert speeds == [16, 32]
    assert len(lines) == len(sizing.PROPOSED)
    known = Measured(SIZES[0], resized(SIZES[0]), 8, 0.016)
    estimated = known.slower(SIZES[1], resized(SIZES[1]))
    assert 3 < estimated.seconds / known.seconds < 4.5  # twice the width
    assert largest([known, estimated], 1e9) == estimated
    assert largest([known, estimated], 0.01) == known


def test_a_rate_that_nothing_decides_is_one_line(small, capsys):
    images = ["--data.path", "digits", "--train.output", "classifier", "--train.steps", "1"]
    line = mistake(capsys, "classifier", *images, "--train.learning_rate", "auto")
    assert line.startswith("train.learning_rate: auto follows from a U-Net")
    assert not Path("classifier/config.yaml").exists()
