"""The train command."""

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from ..core.errors import UserError
from ..core.settings import settings_from
from ..models.inspection import describe
from ..runs.config import Config, RunConfig, config_file
from ..runs.prediction import PredictionConfig
from ..runs.run import Run
from ..tasks.estimate import describe_throughput
from ..tasks.fit import benchmark, fit
from ..tasks.kinds import COMPRESSES, PREDICTS, kind_of, kind_of_run, new, objective_of
from ..tasks.sizing import proposals
from ..tasks.start import begin, resume
from ..tasks.task import Task
from .console import user_friendly
from .flags import add_flags, parse_flags

IF_THERE = ""
"""The value of `--resume` without a run."""


@user_friendly
def train(argv: list[str]) -> int:
    """Train on an image data set. Without arguments: handwritten digits, in a few minutes on a CPU."""
    parser = argparse.ArgumentParser(prog="train.py", description=train.__doc__)
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="a YAML file; its objective decides which flags there are "
        "[default: digits.yaml, or that of finetune.from]",
    )
    parser.add_argument(
        "--resume",
        metavar="RUN",
        nargs="?",
        const=IF_THERE,
        help="resume the run in this folder, or from one of its checkpoints (RUN/checkpoints/step_...); "
        "without RUN: resume the run at train.output, or start it if there is none",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the run, or discard later checkpoints")
    parser.add_argument("--force", action="store_true", help="resume although a change makes it another run")
    parser.add_argument("--benchmark", action="store_true", help="measure speed, memory and the bottleneck, and exit")
    parser.add_argument("--print_config", action="store_true", help="print the configuration and exit")
    add_flags(parser, _kind(argv))
    args, flags = parse_flags(parser, argv)
    path, start = args.resume, None
    if path and args.config:
        raise UserError(f"--resume: {path} has its own config; leave out --config")
    if path is None or path == IF_THERE:
        config, make = new(_file(args.config, flags), flags)
        path = config.train.output if path is not None and Run(config.train.output).exists else None
    if path is not None:
        kind, make = kind_of_run(path)
        change = partial(settings_from, settings=kind, overrides=flags)
        config, start = resume(path, kind, change, args.overwrite, args.force)
    if args.print_config:
        print(config.to_yaml(), end="")
        return 0
    if args.benchmark:
        return _benchmark(make(config))
    start = start or begin(config, args.overwrite)
    ended_by = fit(make(config), start)
    return 128 + ended_by if ended_by else 0


def _kind(argv: list[str]) -> type[RunConfig]:
    """Return the class of the configuration that the flags are for."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flag in ("--config", "--objective", "--objective.type", "--finetune.from"):
        parser.add_argument(flag)
    parser.add_argument("--resume", nargs="?", const=IF_THERE)
    try:
        found, _ = parser.parse_known_args(argv)
    except argparse.ArgumentError:  # reported with all flags at hand
        return Config
    if found.resume:
        return kind_of_run(found.resume)[0]
    flags = {name: word for name, word in vars(found).items() if word is not None and name != "config"}
    return kind_of(_file(found.config, flags), flags)


def _file(name: str | None, flags: Mapping[str, str]) -> Path | None:
    """Return the configuration file to read: the one that is named, or the digits if nothing else decides."""
    if name or (flags.get("finetune.from", "null") == "null" and objective_of(flags) not in {*PREDICTS, COMPRESSES}):
        return config_file(name or "configs/digits.yaml")
    return None


def _benchmark(task: Task) -> int:
    found, train = benchmark(task)
    network = describe(task.config.unet, _size(task.config))[-1]
    task.accelerator.print(
        f"network       {network.parameters / 1e6:.1f} million parameters, {network.flops / 1e9:.3g} GFLOP per image\n"
        + describe_throughput(found, train, network.flops)
    )
    if task.resized:
        task.accelerator.print(proposals(task.resized))
    return 0


def _size(config: RunConfig) -> tuple[int, ...]:
    """Return the sides of what the network takes in a training."""
    return config.patch_size if isinstance(config, PredictionConfig) else config.sampled_size
