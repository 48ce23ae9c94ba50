"""What can be told of a training before it: how long it takes, and whether compiling pays."""

import sys
from collections.abc import Callable

from ..runs.config import Config
from ..models.inspection import describe
from ..training.benchmark import TRAINING, Throughput
from ..training.trainer import TrainConfig

REHEARSED = 0.05
"""Share of `train.minutes` in which the speed is measured before."""
WORTH_MEASURING = 700
"""Steps, of which the seven that tell the speed are one in a hundred."""
COMPILING_PAYS = 30
"""Minutes, in trainings of which the compiler's one to three are won back (docs/performance.md)."""


def settled(wish: TrainConfig, trainer_for: Callable, say: Callable) -> dict[str, bool | int]:
    """What only a measurement tells: whether compiling pays, and how many steps fit into `minutes`."""
    minutes, steps, compiling = wish.minutes, wish.steps, wish.compile

    def seconds_per_step(seconds: float) -> float:
        return trainer_for(wish.model_copy(update={"steps": sys.maxsize, "compile": compiling})).measure_step_time(seconds)

    if not minutes and steps >= WORTH_MEASURING:
        minutes = steps * seconds_per_step(0) / 60
        say(f"{steps:,} steps: about {duration(minutes)}, without previews")
    if compiling == "auto":
        compiling = (minutes or 0) > COMPILING_PAYS
    if wish.minutes:
        per_step = seconds_per_step(REHEARSED * 60 * minutes)
        steps = max(1, round(60 * minutes / per_step))
        say(f"{steps:,} steps of {per_step:.3g} s fit into {minutes:g} minutes")
    return {"steps": steps, "compile": compiling}


def tell(found: Throughput, config: Config, say: Callable) -> None:
    """What a measurement of a training means for it."""
    network = describe(config.unet, config.data.size)[-1]
    done = TRAINING * network.flops * found.images_per_second
    minutes = config.train.steps * config.train.batch_size / found.images_per_second / 60
    say(
        f"network       {network.parameters / 1e6:.1f} million parameters, {network.flops / 1e9:.3g} GFLOP a picture\n"
        f"training      {found.images_per_second:,.1f} images/s with batches of {config.train.batch_size}: "
        f"{done / 1e9:,.0f} GFLOP/s, {done / found.ceiling:.0%} of this machine's fastest 3×3 convolution\n"
        f"without data  {found.without_data:,.1f} images/s\n"
        f"data alone    {found.data_alone:,.0f} images/s\n"
        f"memory        {found.memory / 2**30:.2f} GiB at most; a picture more takes about "
        f"{found.bytes_per_image / 2**20:.2g} MiB\n"
        f"{config.train.steps:,} steps take about {duration(minutes)}, without previews"
    )


def duration(minutes: float) -> str:
    """In words: 1.9 minutes, 3.2 hours, 12 days."""
    size, unit = next((s, u) for s, u in ((1440, "days"), (60, "hours"), (1, "minutes")) if minutes >= 2 * s or s == 1)
    return f"{minutes / size:.1f}".removesuffix(".0") + f" {unit}"
