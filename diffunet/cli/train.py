"""The train command: where networks, procedure and files meet. It prints, draws, and knows no mathematics."""

import argparse
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..runs.run import Run
from ..runs.config import Config
from .console import config_file, user_friendly
from ..runs.figures import plot_curves
from ..core.runtime import default_device, precision, prepare_for
from ..training.loader import TrainingData
from ..tasks.fit import settled, tell
from .flags import add_flags, parse_flags
from ..core.settings import settings_from
from ..sampling.generate import check_sample_config
from ..tasks.generation import Preview
from ..core.errors import UserError, did_you_mean
from ..training.checkpoint import is_intact, list_checkpoints
from ..training.benchmark import largest_batch, measure
from ..training.trainer import TrainConfig, Trainer

if TYPE_CHECKING:
    from accelerate import Accelerator

IF_IT_IS_THERE = ""
"""What `--resume` means without a run."""
PATIENCE = timedelta(minutes=30)
"""How long processes wait for each other: longer than a preview takes, during which all wait for the main one."""
BENCHMARKED = 10
"""Seconds in which `--benchmark` measures each of three things."""

RESUMABLE = {
    "train.steps",
    "train.gradient_accumulation_steps",
    "train.mixed_precision",
    "train.channels_last",
    "train.compile",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.snapshots",
    "train.preview_every",
    "train.log_with",
    "data.path",
    "data.split",
    "data.memory_budget",
    "data.workers",
}
"""What may change when a run is resumed; anything else would make it another run, and has to be forced."""


@dataclass(frozen=True)
class Plan:
    """What a command line asks for."""

    run: Run
    config: Config
    former: Config | None = None
    """That of the run to resume; None: a new one."""
    checkpoint: Path | None = None
    """To resume from; None: the newest."""
    overwrite: bool = False
    force: bool = False
    benchmark: bool = False


@user_friendly
def train(argv: list[str] | None = None) -> int:
    """Train on an image data set. Without arguments: real handwritten digits, in a few minutes on a CPU."""
    parser = argparse.ArgumentParser(prog="train.py", description=train.__doc__)
    parser.add_argument("--config", metavar="FILE", help="a YAML file [default: configs/digits.yaml]")
    parser.add_argument(
        "--resume",
        metavar="RUN",
        nargs="?",
        const=IF_IT_IS_THERE,
        help="go on with the run in this folder, or from one of its checkpoints (RUN/checkpoints/step_...); "
        "without RUN: with the run at train.output, or begin it if it is not there",
    )
    parser.add_argument("--overwrite", action="store_true", help="give up what is there already")
    parser.add_argument("--force", action="store_true", help="resume although a change makes it another run")
    parser.add_argument("--benchmark", action="store_true", help="measure speed, memory and what limits them, and exit")
    parser.add_argument("--print_config", action="store_true", help="print the configuration and exit")
    add_flags(parser, Config)
    asked, flags = parse_flags(parser, argv)
    plan = _begin(asked, flags) if asked.resume is None else _resume(asked, flags)
    if asked.print_config:
        print(plan.config.to_yaml(), end="")
        return 0
    if asked.benchmark:
        return _train(replace(plan, benchmark=True))
    _refuse_to_give_up(plan)
    return _train(plan)


def _begin(asked: argparse.Namespace, flags: dict[str, str]) -> Plan:
    config = settings_from(config_file(asked.config or "configs/digits.yaml"), Config, flags)
    return Plan(Run(config.train.output), config, overwrite=asked.overwrite)


def _resume(asked: argparse.Namespace, flags: dict[str, str]) -> Plan:
    """UserError where there is nothing to resume, or where flags would make it another run."""
    if asked.resume == IF_IT_IS_THERE:
        plan = _begin(asked, flags)
        run, checkpoint = plan.run, None
        if not run.exists:
            return plan
    elif asked.config:
        raise UserError(f"--resume: {asked.resume} has a config of its own; leave out --config")
    else:
        run, checkpoint = _named(Path(asked.resume))
    former = run.config()
    config = settings_from(run.folder / "config.yaml", Config, flags | {"train.output": str(run.folder)})
    _refuse_another_run(former, config, asked.force)
    if config.train.batch_size == "auto":
        config = config.changed(train={"batch_size": former.train.batch_size})
    return Plan(run, config, former, checkpoint, asked.overwrite, asked.force)


def _named(path: Path) -> tuple[Run, Path | None]:
    """The run that a path means, and the checkpoint if it means one."""
    if path.parent.name != "checkpoints":
        return Run(path), None
    if not path.is_dir():
        there = [checkpoint.name for checkpoint in list_checkpoints(path.parent.parent)]
        raise UserError(f"--resume: {path}: no such checkpoint{did_you_mean(path.name, there)}")
    return Run(path.parent.parent), path


def _refuse_to_give_up(plan: Plan) -> None:
    """UserError where it would cost finished work without having been told to."""
    run, checkpoint = plan.run, plan.checkpoint
    if not plan.former:
        run.check_not_overwriting(plan.overwrite)
        return
    if run.format < 1:
        raise UserError(
            f"{run.folder}: was written before run folders had a format; it can be drawn from and measured, not resumed"
        )
    if not run.blank and not list_checkpoints(run.folder):
        raise UserError(f"{run.folder}: no checkpoint to resume from")
    steps = plan.config.train.steps
    for start in [checkpoint] if checkpoint else list_checkpoints(run.folder)[-1:]:
        if start.name > f"step_{steps:08d}":
            raise UserError(f"--train.steps: {steps}, and {start} is further already")
    if plan.overwrite and not checkpoint:
        raise UserError("--overwrite: gives up what is newer than a RUN/checkpoints/step_... that --resume names")
    for other in list_checkpoints(run.folder):
        if checkpoint and other.name > checkpoint.name and is_intact(other) and not plan.overwrite:
            raise UserError(f"--resume: {other} is newer than {checkpoint.name} and whole; --overwrite gives it up")


def _refuse_another_run(former: Config, config: Config, force: bool) -> None:
    """UserError for a change that would make it another run, unless forced; what changes is said aloud."""
    before, now = _flat(former.model_dump(mode="json")), _flat(config.model_dump(mode="json"))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) == now.get(name) or name == "train.output" or now.get(name) == "auto":
            continue
        if name not in RESUMABLE and not name.startswith("sample.") and not force:
            raise UserError(
                f"--{name}: was {before.get(name)} and cannot change in a resumed run; start another one, or --force it"
            )
        print(f"{name}: {before.get(name)} -> {now.get(name)}")


def _flat(values: dict, above: str = "") -> dict:
    """{"train.steps": 1000, ...}; lists stay whole."""
    flat = {}
    for name, value in values.items():
        flat |= _flat(value, f"{above}{name}.") if isinstance(value, dict) else {above + name: value}
    return flat


def _train(plan: Plan) -> int:
    from accelerate.utils import tqdm

    from ..data.dataset import load_images
    from ..evaluation.monitor import Monitor

    run, config = plan.run, plan.config
    accelerator = _accelerator(run, config.train)
    say = accelerator.print
    pictures = load_images(
        config.data,
        labelled=config.conditions.classes != 0,
        say=say,
        progress=partial(tqdm, desc="decode", unit="picture", leave=False),
    )
    config = config.settled(pictures)
    objective = config.build_objective()
    check_sample_config(config.conditions.class_names, objective, config.sample)
    trained, held_out = pictures.split_held_out()
    fed = trained.on(accelerator.device)
    preview = Preview(run, config, Monitor(objective, trained, held_out), accelerator.device, say)

    def publish(ema: nn.Module) -> None:
        run.publish(ema)
        plot_curves(run.folder)

    def trainer_for(wish: TrainConfig, data: TrainingData = fed) -> Trainer:
        accelerator.free_memory()
        network = _fresh(config.model_copy(update={"train": wish}))
        return Trainer(wish, network, objective, data, accelerator, preview=preview, publish=publish)

    if config.train.batch_size == "auto":
        config = config.changed(train={"batch_size": largest_batch(trainer_for, config.train, fed)})
        say(f"train.batch_size: {config.train.batch_size}, the most that fit into memory")
    if plan.benchmark:
        tell(measure(trainer_for, config.train, fed, BENCHMARKED), config, say)
        return 0
    if not plan.former:
        config = config.changed(train=settled(config.train, trainer_for, say))
    trainer = trainer_for(config.train)
    with run.alone() if accelerator.is_main_process else nullcontext():
        if plan.former:
            trainer.resume(plan.checkpoint, plan.force)
            if _is_complete(trainer, plan, config.train, say):
                accelerator.end_training()
                return 0
        if accelerator.is_main_process:
            run.begin(config, plan.overwrite and not plan.former)
        accelerator.wait_for_everyone()
        accelerator.init_trackers("tensorboard" if config.train.log_with == "tensorboard" else "diffunet")
        parameters = sum(p.numel() for p in trainer.ema.model.parameters())
        kept = f" ({len(held_out):,} held out)" if len(held_out) else ""
        say(
            f"{run.folder}: {len(pictures):,} pictures of {config.data.size[0]}×{config.data.size[1]}{kept}, "
            f"{len(config.conditions.class_names) or 'no'} classes, {parameters / 1e6:.1f} million parameters, "
            f"{accelerator.num_processes} × {accelerator.device.type}, precision {accelerator.mixed_precision}"
        )
        if (snapshots := config.train.snapshots * 2 * 2 * parameters) > 2**30:  # two averages, in 16 bits
            say(f"train.snapshots: {config.train.snapshots} of them will take {snapshots / 2**30:.1f} GiB")
        ended_by = trainer.fit()
    accelerator.end_training()
    if ended_by:
        say(f"saved at step {trainer.step}; python train.py --resume {run.folder} goes on")
        return 128 + ended_by
    if config.train.minutes and not plan.former:
        say(f"{trainer.spent['steps'] / 60:.2f} minutes of training where {config.train.minutes:g} were asked for")
    say(f"pictures: {run.folder}/samples, curves: {run.folder}/curves.png; python sample.py {run.folder} draws more")
    return 0


def _is_complete(trainer: Trainer, plan: Plan, config: TrainConfig, say: Callable) -> bool:
    """Says where a resumed run goes on. To be at the end is no mistake: what starts a killed run again ends there."""
    folder, step = plan.run.folder, trainer.step
    if step == config.steps:
        say(f"{folder}: complete at step {step}; --train.steps NUMBER makes it longer")
        return True
    say(f"{folder}: going on from step {step}")
    before, now = (of.learning_rate_at(step) for of in (plan.former.train, config))
    if before != now:
        say(f"learning rate: {before:.3g} -> {now:.3g}, as {config.lr_schedule} over the new length")
    return False


def _accelerator(run: Run, config: TrainConfig) -> "Accelerator":
    """UserError where a launcher asks for what would not be done, or where a tracker is missing."""
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    _refuse_sharding()
    return Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision=precision(config.mixed_precision, default_device()),
        log_with=_tracker(config.log_with),
        project_dir=run.folder,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )


def _refuse_sharding() -> None:
    """UserError where a launcher asks to split the network over the devices, which would not be done."""
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            raise UserError(f"accelerate: use_{name.lower()}: every device here has the whole network; leave it out")


def _fresh(config: Config) -> nn.Module:
    """The denoiser as it is before any training: a function of the seed."""
    from accelerate.utils import set_seed

    from ..models.denoiser import Denoiser

    set_seed(config.train.seed)
    denoiser = Denoiser.from_config(config.unet, config.conditions)
    prepare_for(denoiser.unet, config.train)
    return denoiser


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
