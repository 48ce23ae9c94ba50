"""Training any task: resuming, locking, automatic batch size, time limits, trackers, the end."""

import os
import signal
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import torch

from ..core.errors import UserError, did_you_mean
from ..core.runtime import default_device, precision, set_deterministic
from ..training.benchmark import Throughput, largest_batch, measure
from ..training.config import TrainConfig
from ..training.loader import TrainingData
from ..training.placement import check_shardable
from ..training.processes import TIMEOUT, from_main
from ..training.trainer import Trainer
from .estimate import resolve_schedule
from .task import Start, Task

if TYPE_CHECKING:
    from accelerate import Accelerator

BENCHMARK_SECONDS = 2
"""How long each part of a benchmark is measured."""


def fit(task: Task, start: Start) -> signal.Signals | None:
    """Train a task to its last step. Return the signal that ended it early, after a checkpoint, if one did.

    Raise UserError where the training cannot begin, or cannot continue.
    """
    accelerator, log = task.accelerator, task.accelerator.print
    if task.config.train.shard:
        check_shardable(task.config.train)
    config = with_batch_size(task)
    if not start.previous:
        config = resolve_schedule(config, partial(make_trainer, task), log)
    trainer = make_trainer(task, config)
    with ExitStack() as lock:
        from_main(accelerator, lambda: lock.enter_context(start.run.lock()))
        if start.previous:
            trainer.resume(start.checkpoint, start.force)
            if trainer.step == config.steps:
                log(f"{start.run.folder}: complete at step {trainer.step}; a larger --train.steps continues it")
                accelerator.end_training()
                return None
            _log_resumed(trainer, start.previous)
        recorded, overwrite = task.config.model_copy(update={"train": config}), start.overwrite and not start.previous
        from_main(accelerator, lambda: start.run.create(recorded, overwrite, task.files, task.notes))
        accelerator.init_trackers("tensorboard" if config.log_with == "tensorboard" else "diffunet")
        _log_beginning(task, trainer)
        ended_by = trainer.fit()
    published = trainer.placement.whole(trainer.published)
    accelerator.end_training()
    if ended_by:
        log(f"saved at step {trainer.step}; python train.py --resume {start.run.folder} continues")
        return ended_by
    if config.minutes and not start.previous:
        log(f"trained for {trainer.spent['steps'] / 60:.2f} of {config.minutes:g} minutes")
    if (least := trainer.least) and least.step:
        log(f"published: step {int(least.step)}, with the least validation loss, {float(least.loss):.4g}")
    log(task.report(published))
    return None


def benchmark(task: Task) -> tuple[Throughput, TrainConfig]:
    """Measure the speed and memory of a task without writing anything; also return its resolved `train` section."""
    config = with_batch_size(task)
    return measure(partial(make_trainer, task), config, task.data, BENCHMARK_SECONDS, task.accelerator.print), config


def make_accelerator(config: TrainConfig) -> "Accelerator":
    """Return Accelerate's view of the processes and devices.

    Raise UserError where a launcher requests sharding by Accelerate, or where a tracker is missing.
    """
    set_deterministic(config.deterministic)
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            raise UserError(f"accelerate: use_{name.lower()}: not supported; leave it out, and use --train.shard true")
    tracker = _tracker(config.log_with)
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    return Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision=precision(config.runtime.mixed_precision, default_device()),
        log_with=tracker,
        project_dir=config.output,
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=TIMEOUT),
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
        ],
    )


def _tracker(name: str | None) -> str | None:
    if name is None:
        return None
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    known, installed = [str(tracker) for tracker in LOGGER_TYPE_TO_CLASS], map(str, get_available_trackers())
    if name not in known:
        raise UserError(f"train.log_with: {name} is not one of {', '.join(known)}{did_you_mean(name, known)}")
    if name not in installed:
        raise UserError(f"train.log_with: {name} is not installed; pip install {name}")
    return name


def make_trainer(task: Task, config: TrainConfig, data: TrainingData | None = None) -> Trainer:
    """Return the trainer of a task with this section `train`, and with fresh weights."""
    from accelerate.utils import set_seed

    task.accelerator.free_memory()
    set_seed(config.seed % 2**32)  # all that numpy takes
    return Trainer(
        config,
        task.build_model(config),
        task.objective,
        data or task.data,
        task.accelerator,
        preview=task.preview,
        publish=task.publish,
    )


def with_batch_size(task: Task) -> TrainConfig:
    """Return the section `train` with `batch_size: auto` resolved."""
    config = task.config.train
    if config.batch_size != "auto":
        return config
    size = largest_batch(partial(make_trainer, task), config, task.data)
    task.accelerator.print(f"train.batch_size: {size}, the largest that fits into memory")
    return config.model_copy(update={"batch_size": size})


def _log_beginning(task: Task, trainer: Trainer) -> None:
    accelerator, config = trainer.accelerator, trainer.config
    for note in task.notes:
        accelerator.print(note)
    parameters = sum(p.numel() for p in trainer.ema.model.parameters())
    accelerator.print(
        f"{config.output}: {task.summary}, {parameters / 1e6:.1f} million parameters, "
        f"{accelerator.num_processes} × {accelerator.device.type}, precision {accelerator.mixed_precision}"
    )
    if (snapshots := config.snapshots * 2 * 2 * parameters) > 2**30:  # two averages, in 16 bits
        accelerator.print(f"train.snapshots: {config.snapshots} of them will take {snapshots / 2**30:.1f} GiB")


def _log_resumed(trainer: Trainer, previous: TrainConfig) -> None:
    config, log = trainer.config, trainer.accelerator.print
    log(f"{config.output}: resuming from step {trainer.step}")
    before, now = (train.learning_rate_at(trainer.step) for train in (previous, config))
    if before != now:
        log(f"learning rate: {before:.3g} -> {now:.3g}, by the {config.lr_schedule} schedule over the new length")
