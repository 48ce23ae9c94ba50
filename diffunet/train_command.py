"""The train command: where networks, procedure and files meet. It prints, draws, and knows no mathematics."""

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from torch import nn

from .averages import list_snapshots
from .checkpoint import Run
from .config import Config
from .console import config_file, found_device, told_plainly
from .drawing import draw_curves, draw_grid, draw_strip
from .execution import precision, ready
from .fetching import Data
from .frontend import add_flags, parse_flags, settings_from
from .generation import refuse_impossible
from .inspection import describe
from .sample_command import columns, draw
from .settings import UserError, did_you_mean, ran_out_of_memory
from .state import is_whole, list_checkpoints
from .throughput import TRAINING, Throughput, largest_batch, measure
from .training import TrainConfig, Trainer

IF_IT_IS_THERE = ""
"""What `--resume` means without a run."""
PATIENCE = timedelta(minutes=30)
"""How long processes wait for each other: longer than a preview takes, during which all wait for the main one."""
REHEARSED = 0.05
"""Share of `train.minutes` in which the speed is measured before."""
WORTH_MEASURING = 700
"""Steps, of which the seven that tell the speed are one in a hundred."""
BENCHMARKED = 10
"""Seconds in which `--benchmark` measures each of three things."""
COMPILING_PAYS = 30
"""Minutes, in trainings of which the compiler's one to three are won back (docs/performance.md)."""

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


@told_plainly
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
        run.refuse_to_overwrite(plan.overwrite)
        return
    if run.format < 1:
        raise UserError(
            f"{run.folder}: was written before run folders had a format; it can be drawn from and measured, not resumed"
        )
    if not run.blank and not list_checkpoints(run.folder):
        raise UserError(f"{run.folder}: no checkpoint to resume from")
    if plan.overwrite and not checkpoint:
        raise UserError("--overwrite: gives up what is newer than a RUN/checkpoints/step_... that --resume names")
    for other in list_checkpoints(run.folder):
        if checkpoint and other.name > checkpoint.name and is_whole(other) and not plan.overwrite:
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
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs, tqdm

    from .data import open_pictures
    from .health import Health

    run, config = plan.run, plan.config
    _refuse_sharding()
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision=precision(config.train.mixed_precision, found_device()),
        log_with=_tracker(config.train.log_with),
        project_dir=run.folder,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    say = accelerator.print
    pictures = open_pictures(
        config.data,
        labelled=config.conditions.classes != 0,
        say=say,
        progress=partial(tqdm, desc="decode", unit="picture", leave=False),
    )
    config = config.settled(pictures)
    objective = config.build_objective()
    refuse_impossible(config.conditions.class_names, objective, config.sample)
    trained, held_out = pictures.parted()
    fed = trained.on(accelerator.device)
    health = Health(objective, trained, held_out)

    def preview(step: int, ema: nn.Module) -> dict[str, float]:
        wish = config.sample
        if wish.guide and not list_snapshots(run.folder):                     # nothing to guide by as yet
            wish = wish.model_copy(update={"guide": None, "guidance_scale": 1.0})
        try:
            pixels = torch.cat([drawn.pixels for drawn in draw(run, ema, config, wish)])
        except (UserError, RuntimeError, MemoryError) as error:               # no reason to end a training
            if not isinstance(error, UserError) and not ran_out_of_memory(error):
                raise
            short = f"out of memory with sample.batch_size {wish.batch_size}"
            say(f"no preview at step {step}: {error if isinstance(error, UserError) else short}")
            return {}
        draw_grid(pixels, config.data.bit_depth, run.folder / "samples" / f"step_{step:08d}.png", columns(config))
        draw_strip(run.folder / "samples", config.data.size)
        return health(ema, pixels, accelerator.device)

    def publish(ema: nn.Module) -> None:
        run.publish(ema)
        draw_curves(run.folder)

    def trainer_for(wish: TrainConfig, data: Data = fed) -> Trainer:
        accelerator.free_memory()
        network = _fresh(config.model_copy(update={"train": wish}))
        return Trainer(wish, network, objective, data, accelerator, preview=preview, publish=publish)

    if config.train.batch_size == "auto":
        config = config.changed(train={"batch_size": largest_batch(trainer_for, config.train, fed)})
        say(f"train.batch_size: {config.train.batch_size}, the most that fit into memory")
    if plan.benchmark:
        _tell(measure(trainer_for, config.train, fed, BENCHMARKED), config, say)
        return 0
    if not plan.former:
        config = config.changed(train=_settled(config.train, trainer_for, say))
    trainer = trainer_for(config.train)
    with run.alone() if accelerator.is_main_process else nullcontext():
        if plan.former:
            trainer.resume(plan.checkpoint, plan.force)
            if trainer.step >= config.train.steps:
                raise UserError(f"{run.folder}: complete at step {trainer.step}; --train.steps NUMBER makes it longer")
            say(f"{run.folder}: going on from step {trainer.step}")
            before, now = (of.learning_rate_at(trainer.step) for of in (plan.former.train, config.train))
            if before != now:
                say(f"learning rate: {before:.3g} -> {now:.3g}, as {config.train.lr_schedule} over the new length")
        if accelerator.is_main_process:
            run.begin(config, plan.overwrite and not plan.former)
        accelerator.wait_for_everyone()
        accelerator.init_trackers("tensorboard" if config.train.log_with == "tensorboard" else "diffunet")
        millions = sum(p.numel() for p in trainer.ema.model.parameters()) / 1e6
        kept = f" ({len(held_out):,} held out)" if len(held_out) else ""
        say(
            f"{run.folder}: {len(pictures):,} pictures of {config.data.size[0]}×{config.data.size[1]}{kept}, "
            f"{len(config.conditions.class_names) or 'no'} classes, {millions:.1f} million parameters, "
            f"{accelerator.num_processes} × {accelerator.device.type}, precision {accelerator.mixed_precision}"
        )
        snapshots = config.train.snapshots * sum(2 * 2 * p.numel() for p in trainer.ema.model.parameters())
        if snapshots > 2**30:
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


def _settled(wish: TrainConfig, trainer_for: Callable, say: Callable) -> dict[str, bool | int]:
    """What only a measurement tells: whether compiling pays, and how many steps fit into `minutes`."""
    minutes, steps, compiling = wish.minutes, wish.steps, wish.compile

    def seconds_per_step(seconds: float) -> float:
        return trainer_for(wish.model_copy(update={"steps": sys.maxsize, "compile": compiling})).rehearse(seconds)

    if not minutes and steps >= WORTH_MEASURING:
        minutes = steps * seconds_per_step(0) / 60
        say(f"{steps:,} steps: about {_duration(minutes)}, without previews")
    if compiling == "auto":
        compiling = (minutes or 0) > COMPILING_PAYS
    if wish.minutes:
        per_step = seconds_per_step(REHEARSED * 60 * minutes)
        steps = max(1, round(60 * minutes / per_step))
        say(f"{steps:,} steps of {per_step:.3g} s fit into {minutes:g} minutes")
    return {"steps": steps, "compile": compiling}


def _tell(found: Throughput, config: Config, say: Callable) -> None:
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
        f"{found.bytes_per_picture / 2**20:.2g} MiB\n"
        f"{config.train.steps:,} steps take about {_duration(minutes)}, without previews"
    )


def _duration(minutes: float) -> str:
    """In words: 1.9 minutes, 3.2 hours, 12 days."""
    size, unit = next((s, u) for s, u in ((1440, "days"), (60, "hours"), (1, "minutes")) if minutes >= 2 * s or s == 1)
    return f"{minutes / size:.1f}".removesuffix(".0") + f" {unit}"


def _refuse_sharding() -> None:
    """UserError where a launcher asks to split the network over the devices, which would not be done."""
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            raise UserError(f"accelerate: use_{name.lower()}: every device here has the whole network; leave it out")


def _fresh(config: Config) -> nn.Module:
    """The denoiser as it is before any training: a function of the seed."""
    from accelerate.utils import set_seed

    from .denoiser import Denoiser

    set_seed(config.train.seed)
    denoiser = Denoiser.from_config(config.unet, config.conditions)
    ready(denoiser.unet, config.train)
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
