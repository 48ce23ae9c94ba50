"""The commands: where networks, procedure and files meet. Each prints, draws, and knows no mathematics."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import count
from pathlib import Path

import torch
from torch import nn

from .checkpoint import Run
from .config import Config
from .console import config_file, told_plainly
from .drawing import draw_curves, draw_grid, to_picture
from .frontend import add_flags, parse_flags, settings_from
from .generation import Drawn, SampleConfig, generate, refuse_impossible
from .network_commands import describe, export, import_
from .settings import UserError, did_you_mean, unwatched
from .storage import whole_file

CLOSEST = 12
"""Pairs in the picture of the drawn pictures that come closest to real ones."""

FEWEST = 3
"""Drawn pictures from which a spread, and its error, can be told; of real ones twice as many, for their halves."""

MOST_REAL = 10_000
"""Real pictures that an evaluation looks at."""

RESUMABLE = {
    "train.steps",
    "train.gradient_accumulation_steps",
    "train.mixed_precision",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
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
    from accelerate.utils import set_seed, tqdm

    from .data import open_pictures
    from .denoiser import Denoiser
    from .diffusion import Diffusion
    from .training import Trainer

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
    refuse_impossible(config.conditions.class_names, config.diffusion, config.sample)
    set_seed(config.train.seed)
    denoiser = Denoiser.from_config(config.unet, config.conditions)

    def preview(step: int, ema: nn.Module) -> None:
        try:
            pixels = torch.cat([drawn.pixels for drawn in _drawn(ema, config, config.sample)])
        except UserError as broken:
            say(f"no preview at step {step}: {broken}")
            return
        draw_grid(pixels, config.data.bit_depth, run.folder / "samples" / f"step_{step:08d}.png", _columns(config))

    def publish(ema: nn.Module) -> None:
        run.publish(ema)
        draw_curves(run.folder)

    trainer = Trainer(
        config.train, denoiser, Diffusion(config.diffusion), pictures, accelerator, preview=preview, publish=publish
    )
    if resuming:
        trainer.resume()
        if trainer.step >= config.train.steps:
            raise UserError(f"{run.folder}: complete at step {trainer.step}; --train.steps NUMBER makes it longer")
        say(f"{run.folder}: going on from step {trainer.step}")
    if accelerator.is_main_process:
        run.begin(config, overwrite)
    accelerator.wait_for_everyone()
    accelerator.init_trackers("tensorboard" if config.train.log_with == "tensorboard" else "diffunet")
    millions = sum(p.numel() for p in denoiser.parameters()) / 1e6
    say(
        f"{run.folder}: {len(pictures):,} pictures of {config.data.size[0]}×{config.data.size[1]}, "
        f"{len(config.conditions.class_names) or 'no'} classes, {millions:.1f} million parameters, "
        f"{accelerator.num_processes} × {accelerator.device.type}, precision {accelerator.mixed_precision}"
    )
    ended_by = trainer.fit()
    accelerator.end_training()
    if ended_by:
        say(f"saved at step {trainer.step}; python train.py --resume {run.folder} goes on")
        return 128 + ended_by
    say(f"pictures: {run.folder}/samples, curves: {run.folder}/curves.png; python sample.py {run.folder} draws more")
    return 0


def _drawn(denoiser: nn.Module, config: Config, wish: SampleConfig, progress: Callable = unwatched) -> Iterator[Drawn]:
    """The pictures that `wish` asks of a run's denoiser, batch by batch."""
    return generate(denoiser, config.conditions.class_names, config.diffusion, config.data, wish, progress)


def _columns(config: Config) -> int | None:
    """One column of a grid for each class, while they are few."""
    classes = len(config.conditions.class_names)
    return classes if 2 <= classes <= 16 else None


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


# ── sample ────────────────────────────────────────────────────────────────────────────────────────


@told_plainly
def sample(argv: list[str] | None = None) -> int:
    """Draw pictures from a run, from its EMA weights. Without options: what its last preview shows."""
    parser = argparse.ArgumentParser(prog="sample.py", description=sample.__doc__)
    run, config, wish = _run_and_wish(parser, argv)
    folder = _output_folder(run, wish)
    batches = _drawn(run.denoiser().to(_device()), config, wish, _bar(wish))
    records, pixels = [], []
    for drawn in batches:
        folder.mkdir(parents=True, exist_ok=True)
        for picture, seed, label in zip(drawn.pixels, drawn.seeds, drawn.labels, strict=True):
            record = {"file_name": f"{len(records):05d}.png", "seed": seed}
            if label is not None:
                record |= {"label": label, "class": config.conditions.class_names[label]}
            to_picture(picture, config.data.bit_depth).save(folder / record["file_name"])
            records.append(record)
        pixels.append(drawn.pixels)
        (folder / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    draw_grid(torch.cat(pixels), config.data.bit_depth, folder / "grid.png", _columns(config))
    print(f"{len(records)} pictures: {folder}")
    return 0


def _run_and_wish(parser: argparse.ArgumentParser, argv: list[str] | None) -> tuple[Run, Config, SampleConfig]:
    """A run, and what to draw from it: as its own previews, with flags laid over."""
    parser.add_argument("run", metavar="RUN", help="a run folder, such as runs/digits")
    add_flags(parser, SampleConfig)
    asked, flags = parse_flags(parser, argv)
    run = Run(asked.run)
    config = run.config()
    return run, config, settings_from(config.sample, SampleConfig, flags)


def _device() -> torch.device:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def _bar(wish: SampleConfig) -> Callable:
    """One bar over all steps of all batches, which appears with the first."""
    from tqdm import tqdm

    total = -(-wish.num_images // wish.batch_size) * wish.steps
    bar = cache(lambda: tqdm(total=total, desc="sample", unit="step", leave=False, dynamic_ncols=True))

    def watched(steps):
        for step in steps:
            yield step
            bar().update()

    return watched


def _output_folder(run: Run, wish: SampleConfig) -> Path:
    """The folder that was asked for, if it is empty, or the next free one of the run."""
    if wish.output:
        folder = Path(wish.output)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"--output: {folder} is not empty; name another folder")
        return folder
    return _next_folder(run.folder / "pictures")


def _next_folder(folder: Path) -> Path:
    """The first of 000, 001, ... that is not there yet."""
    return next(path for number in count() if not (path := folder / f"{number:03d}").exists())


# ── evaluate ──────────────────────────────────────────────────────────────────────────────────────


@told_plainly
def evaluate(argv: list[str] | None = None) -> int:
    """Draw pictures from a run and measure them against the pictures it was trained on.

    The figures go to RUN/evaluations, beside a picture of the drawn ones that come closest to real ones.
    """
    from .data import open_pictures
    from .evaluation import closest_pairs, evaluate_digits, evaluate_pixels

    parser = argparse.ArgumentParser(prog="diffunet evaluate", description=evaluate.__doc__)
    run, config, wish = _run_and_wish(parser, argv)
    pictures = open_pictures(config.data, labelled=False)
    if wish.num_images < FEWEST or len(pictures) < 2 * FEWEST:
        drawn = f"--num_images {wish.num_images} and {len(pictures)} real pictures"
        raise UserError(f"{drawn}: too few to compare; at least {FEWEST} and {2 * FEWEST}")
    batches = list(_drawn(run.denoiser().to(_device()), config, wish, _bar(wish)))
    pixels = torch.cat([drawn.pixels for drawn in batches])
    real = pictures.images[list(range(min(len(pictures), MOST_REAL)))]
    if config.data.path == "digits" and config.conditions.classes:
        found = evaluate_digits(pixels, [label for drawn in batches for label in drawn.labels])
    else:
        found = evaluate_pixels(pixels, real, config.data.bit_depth)
    found |= {"sampler": wish.sampler, "steps": wish.steps, "guidance_scale": wish.guidance_scale, "seed": wish.seed}
    folder = _next_folder(run.folder / "evaluations")
    with whole_file(folder / "evaluation.json") as file:
        file.write_text(json.dumps(found, indent=2), encoding="utf-8")
    draw_grid(closest_pairs(pixels, real, CLOSEST), config.data.bit_depth, folder / "closest.png", columns=2)
    print(json.dumps(found, indent=2))
    print(f"{folder}/closest.png: drawn on the left, its nearest real picture on the right", file=sys.stderr)
    return 0


# ── all of them ───────────────────────────────────────────────────────────────────────────────────


COMMANDS = {
    "train": train,
    "sample": sample,
    "evaluate": evaluate,
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
