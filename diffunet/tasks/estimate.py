"""Estimates before a training: how long it takes, and whether compiling pays."""

import sys
from collections.abc import Callable

from ..core.runtime import default_device
from ..training.benchmark import TRAIN_FLOPS_RATIO, Throughput
from ..training.config import TrainConfig
from ..training.trainer import Trainer

REHEARSAL = 0.05
"""Share of `train.minutes` that is spent beforehand on measuring the speed."""
WORTH_MEASURING = 700
"""Steps from which on measuring a few of them costs no more than one percent."""
LONG = 24 * 60
"""Minutes of training from which on the estimate names `train.minutes`."""
COMPILING_PAYS = {"cuda": 5}, 30
"""Minutes of training from which on compiling, which takes one to three, pays off (docs/performance.md): by the kind of
device, and elsewhere."""


def resolve_schedule(
    config: TrainConfig, trainer_for: Callable[[TrainConfig], Trainer], log: Callable[[str], None]
) -> TrainConfig:
    """Return the config with the steps that fit into `minutes`, and `compile: auto` decided, both by measurement."""
    minutes, steps, compiling = config.minutes, config.steps, config.runtime.compile

    def with_steps(number: int) -> TrainConfig:
        return config.model_copy(
            update={"steps": number, "runtime": config.runtime.model_copy(update={"compile": compiling})}
        )

    def seconds_per_step(seconds: float) -> float:
        return trainer_for(with_steps(sys.maxsize)).measure_step_time(seconds)

    if not minutes and steps >= WORTH_MEASURING:
        minutes = steps * seconds_per_step(0) / 60
        advice = "; for an hour, pass --train.minutes 60" if minutes > LONG else ""
        log(f"{steps:,} steps: about {duration(minutes)}, without previews{advice}")
    if compiling == "auto":
        by_device, otherwise = COMPILING_PAYS
        compiling = (minutes or 0) > by_device.get(default_device().type, otherwise) and not config.shard
    if config.minutes:
        per_step = seconds_per_step(REHEARSAL * 60 * config.minutes)
        steps = max(1, round(60 * config.minutes / per_step))
        log(f"{steps:,} steps of {per_step:.3g} s fit into {duration(config.minutes)}")
    return with_steps(steps)


def describe_throughput(found: Throughput, config: TrainConfig, flops: float | None = None) -> str:
    """Return a measurement as a table; `flops` are the operations of one forward pass for one example, if known."""
    minutes = config.steps * config.batch_size / found.images_per_second / 60
    utilization = ""
    if flops is not None:
        done = TRAIN_FLOPS_RATIO * flops * found.images_per_second
        share = done / found.peak_flops
        utilization = f": {done / 1e9:,.0f} GFLOP/s, {share:.0%} of this machine's fastest 3×3 convolution"
    return (
        f"training      {found.images_per_second:,.1f} images/s with batches of {found.batch_size}{utilization}\n"
        f"without data  {found.without_data:,.1f} images/s\n"
        f"data alone    {found.data_alone:,.0f} images/s\n"
        f"memory        peak {found.memory / 2**30:.2f} GiB, about {found.bytes_per_image / 2**20:.2g} MiB per image\n"
        f"{config.steps:,} steps of {config.batch_size} images take about {duration(minutes)}, without previews"
    )


def duration(minutes: float) -> str:
    """Return a time in words: 1.9 minutes, 3.2 hours, 12 days."""
    size, unit = next((s, u) for s, u in ((1440, "days"), (60, "hours"), (1, "minutes")) if minutes >= 2 * s or s == 1)
    number = f"{minutes / size:.1f}".removesuffix(".0")
    return f"{number} {unit.removesuffix('s') if number == '1' else unit}"
