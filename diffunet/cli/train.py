"""The train command."""

import argparse

from ..core.errors import UserError
from ..core.settings import settings_from
from ..models.inspection import describe
from ..runs.config import Config, config_file
from ..runs.run import Run
from ..tasks.estimate import describe_throughput
from ..tasks.finetuning import Pretrained, configure
from ..tasks.fit import benchmark, fit
from ..tasks.generation import generation
from ..tasks.start import begin, resume
from .console import user_friendly
from .flags import add_flags, parse_flags

IF_THERE = ""
"""The value of `--resume` without a run."""


@user_friendly
def train(argv: list[str]) -> int:
    """Train on an image data set. Without arguments: handwritten digits, in a few minutes on a CPU."""
    parser = argparse.ArgumentParser(prog="train.py", description=train.__doc__)
    parser.add_argument(
        "--config", metavar="FILE", help="a YAML file [default: configs/digits.yaml, or that of finetune.from]"
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
    add_flags(parser, Config)
    args, flags = parse_flags(parser, argv)
    path, start, pretrained = args.resume, None, None
    if path and args.config:
        raise UserError(f"--resume: {path} has its own config; leave out --config")
    if path is None or path == IF_THERE:
        name = args.config or ("" if flags.get("finetune.from", "null") != "null" else "configs/digits.yaml")
        config, pretrained = configure(config_file(name) if name else None, flags)
        path = config.train.output if path is not None and Run(config.train.output).exists else None
    if path is not None:
        config, start = resume(
            path, Config, lambda previous: settings_from(previous, Config, flags), args.overwrite, args.force
        )
        pretrained = None
    if args.print_config:
        print(config.to_yaml(), end="")
        return 0
    if args.benchmark:
        return _benchmark(config, pretrained)
    start = start or begin(config, args.overwrite)
    ended_by = fit(generation(config, pretrained), start)
    return 128 + ended_by if ended_by else 0


def _benchmark(config: Config, pretrained: Pretrained | None) -> int:
    task = generation(config, pretrained)
    found, train = benchmark(task)
    network = describe(task.config.unet, task.config.data.size)[-1]
    task.accelerator.print(
        f"network       {network.parameters / 1e6:.1f} million parameters, {network.flops / 1e9:.3g} GFLOP per image\n"
        + describe_throughput(found, train, network.flops)
    )
    return 0
