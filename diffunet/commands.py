"""The commands: where networks, procedure and files meet. Each prints, draws, and knows no mathematics."""

import argparse
import sys
from functools import partial

import torch
from torch import nn

from .averages import list_snapshots
from .checkpoint import Run
from .config import Config
from .console import config_file, told_plainly
from .drawing import draw_curves, draw_grid, draw_strip
from .frontend import add_flags, parse_flags, settings_from
from .generation import refuse_impossible
from .network_commands import describe, export, import_
from .quality_commands import classifier, ema, evaluate
from .sample_command import columns, draw, sample
from .settings import UserError, did_you_mean

REHEARSED = 0.05
"""Share of `train.minutes` in which the speed is measured before."""

RESUMABLE = {
    "train.steps",
    "train.gradient_accumulation_steps",
    "train.mixed_precision",
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
"""What may change when a run is resumed; anything else would make it another run."""


# ── train ─────────────────────────────────────────────────────────────────────────────────────────


@told_plainly
def train(argv: list[str] | None = None) -> int:
    """Train on an image data set. Without arguments: real handwritten digits, in a few minutes on a CPU."""
    parser = argparse.ArgumentParser(prog="train.py", description=train.__doc__)
    parser.add_argument("--config", metavar="FILE", help="a YAML file [default: configs/digits.yaml]")
    parser.add_argument("--resume", metavar="RUN", help="go on with the run in this folder")
    parser.add_argument("--overwrite", action="store_true", help="replace a run that is already there")
    parser.add_argument("--print_config", action="store_true", help="print the configuration and exit")
    add_flags(parser, Config)
    asked, flags = parse_flags(parser, argv)
    if asked.resume and (asked.config or asked.overwrite):
        raise UserError(f"--resume: {asked.resume} has a config of its own; leave out --config and --overwrite")
    if asked.resume:
        run = Run(asked.resume)
        former = run.config()
        config = settings_from(run.folder / "config.yaml", Config, flags | {"train.output": str(run.folder)})
        _refuse_another_run(former, config)
    else:
        config = settings_from(config_file(asked.config or "configs/digits.yaml"), Config, flags)
        run = Run(config.train.output)
    if asked.print_config:
        print(config.to_yaml(), end="")
        return 0
    if not asked.resume:
        run.refuse_to_overwrite(asked.overwrite)
    return _train(run, config, bool(asked.resume), asked.overwrite)


def _refuse_another_run(former: Config, config: Config) -> None:
    """UserError for a change that would make it another run; what may change is said aloud."""
    before, now = _flat(former.model_dump(mode="json")), _flat(config.model_dump(mode="json"))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) == now.get(name) or name == "train.output":
            continue
        if name not in RESUMABLE and not name.startswith("sample."):
            raise UserError(f"--{name}: was {before.get(name)} and cannot change in a resumed run; start another run")
        print(f"{name}: {before.get(name)} -> {now.get(name)}")


def _flat(values: dict, above: str = "") -> dict:
    """{"train.steps": 1000, ...}; lists stay whole."""
    flat = {}
    for name, value in values.items():
        flat |= _flat(value, f"{above}{name}.") if isinstance(value, dict) else {above + name: value}
    return flat


def _train(run: Run, config: Config, resuming: bool, overwrite: bool) -> int:
    from accelerate import Accelerator
    from accelerate.utils import tqdm

    from .data import open_pictures
    from .health import Health
    from .training import TrainConfig, Trainer

    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision=_precision(config.train.mixed_precision),
        log_with=_tracker(config.train.log_with),
        project_dir=run.folder,
    )
    say = accelerator.print
    with accelerator.main_process_first():
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
    health = Health(objective, trained, held_out)

    def preview(step: int, ema: nn.Module) -> dict[str, float]:
        wish = config.sample
        if wish.guide and not list_snapshots(run.folder):                     # nothing to guide by as yet
            wish = wish.model_copy(update={"guide": None, "guidance_scale": 1.0})
        try:
            pixels = torch.cat([drawn.pixels for drawn in draw(run, ema, config, wish)])
        except UserError as broken:
            say(f"no preview at step {step}: {broken}")
            return {}
        draw_grid(pixels, config.data.bit_depth, run.folder / "samples" / f"step_{step:08d}.png", columns(config))
        draw_strip(run.folder / "samples", config.data.size)
        return health(ema, pixels, accelerator.device)

    def publish(ema: nn.Module) -> None:
        run.publish(ema)
        draw_curves(run.folder)

    def trainer_for(settings: TrainConfig) -> Trainer:
        return Trainer(settings, _fresh(config), objective, trained, accelerator, preview=preview, publish=publish)

    if config.train.minutes and not resuming:
        seconds = 60 * config.train.minutes
        endless = config.train.model_copy(update={"steps": sys.maxsize})
        per_step = trainer_for(endless).rehearse(REHEARSED * seconds)
        accelerator.free_memory()
        steps = max(1, round(seconds / per_step))
        say(f"{steps:,} steps of {per_step:.3g} s fit into {config.train.minutes:g} minutes")
        config = config.model_copy(update={"train": config.train.model_copy(update={"steps": steps})})
    trainer = trainer_for(config.train)
    if resuming:
        trainer.resume()
        if trainer.step >= config.train.steps:
            raise UserError(f"{run.folder}: complete at step {trainer.step}; --train.steps NUMBER makes it longer")
        say(f"{run.folder}: going on from step {trainer.step}")
    if accelerator.is_main_process:
        run.begin(config, overwrite)
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
    if config.train.minutes and not resuming:
        say(f"{trainer.spent['steps'] / 60:.2f} minutes of training where {config.train.minutes:g} were asked for")
    say(f"pictures: {run.folder}/samples, curves: {run.folder}/curves.png; python sample.py {run.folder} draws more")
    return 0


def _fresh(config: Config) -> nn.Module:
    """The denoiser as it is before any training: a function of the seed."""
    from accelerate.utils import set_seed

    from .denoiser import Denoiser

    set_seed(config.train.seed)
    return Denoiser.from_config(config.unet, config.conditions)


def _precision(wish: str) -> str:
    if wish == "auto":
        return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"
    if wish == "fp16" and not torch.accelerator.is_available():
        raise UserError("--train.mixed_precision: fp16 needs a GPU; use no or bf16")
    return wish


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


# ── all of them ───────────────────────────────────────────────────────────────────────────────────


COMMANDS = {
    "train": train,
    "sample": sample,
    "evaluate": evaluate,
    "ema": ema,
    "classifier": classifier,
    "describe": describe,
    "export": export,
    "import": import_,
}


@told_plainly
def main(argv: list[str] | None = None) -> int:
    """The `diffunet` command: `diffunet train`, `diffunet sample`, ..."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in COMMANDS:
        COMMANDS[argv[0]](argv[1:])
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: diffunet COMMAND ...; diffunet COMMAND --help tells more\n")
        for name, command in COMMANDS.items():
            print(f"  {name:10}{command.__doc__.splitlines()[0]}")
        return 0
    raise UserError(f"{argv[0]}: unknown command{did_you_mean(argv[0], COMMANDS)}")
