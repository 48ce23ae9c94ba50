"""The commands for a network alone: describe, export, import."""

import argparse
from pathlib import Path

from ..core.errors import UserError, did_you_mean
from ..core.settings import settings_from
from ..models.config import UNetConfig
from ..models.inspection import Part
from ..models.meta import on_meta
from ..models.presets import PRESETS
from ..models.tiling import valid_tile_sizes
from ..models.unet import UNet
from ..runs.config import Config, ModelConfig, config_file
from ..runs.prediction import MAX_PATCH, PredictionConfig
from ..runs.run import Run
from ..tasks.kinds import kind_of, kind_of_run
from .console import check_single_process, user_friendly
from .flags import add_flags, parse_flags


@user_friendly
def describe(argv: list[str]) -> int:
    """Show a network as a table: levels, sizes, channels, parameters, operations, receptive field."""
    from ..models.inspection import describe as parts_of

    parser = argparse.ArgumentParser(prog="diffunet describe", description=describe.__doc__)
    parser.add_argument("network", metavar="CONFIG", help="a YAML file, a run folder, or a preset such as unet2015")
    parser.add_argument("--size", help="of the input, as 64 or 132,132,116 [default: the config's resolution, or 64]")
    add_flags(parser, ModelConfig)
    args, flags = parse_flags(parser, argv)
    config, size = _network_and_size(args.network, args.size, flags)
    try:
        parts = parts_of(config.unet, size)
    except ValueError as misfit:
        raise UserError(f"--size: {misfit}") from None
    print(_table(parts))
    with on_meta():
        try:
            denoiser = config.build_denoiser() if config.unet.vector_dim else None
        except ValueError as unresolved:
            raise UserError(f"{args.network}: {unresolved}") from None
        unet = denoiser.unet if denoiser else UNet(config.unet)
    if denoiser:
        parameters = sum(p.numel() for p in denoiser.parameters())
        conditions = ", ".join(f"{name}: {c.summary}" for name, c in config.conditions.items())
        conditions = conditions or ("of an image" if config.unet.plane_channels else "unconditional")
        print(f"total with time embedding ({conditions}): {parameters:,} parameters")
    if config.unet.padding == "valid":
        sides = valid_tile_sizes(unet, min(size), min(size) + 3 * 2 ** len(config.unet.levels))
        print(f"valid borders: input sizes that every level halves evenly are {', '.join(map(str, sides[:4]))}, ...")
    return 0


def _table(parts: list[Part]) -> str:
    rows = [("", "size", "channels", "attention", "parameters", "GFLOP", "receptive field")]
    for part in parts:
        size, attention = "×".join(map(str, part.size)), "yes" if part.attention else ""
        cost = f"{part.parameters:,}", f"{part.flops / 1e9:,.3f}", f"{part.receptive_field:,}"
        rows.append((part.name, size, f"{part.channels:,}", attention, *cost))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    formats = [f"<{widths[0]}", *(f">{width}" for width in widths[1:])]
    return "\n".join("  ".join(map(format, row, formats)) for row in rows)


def _network_and_size(name: str, size: str | None, flags: dict[str, str]) -> tuple[ModelConfig, tuple[int, ...]]:
    """Return the network of a preset, a run or a file, and the size of its input."""
    try:
        sides = tuple(int(side) for side in size.split(",")) if size else None
    except ValueError:
        raise UserError(f"--size: expected one number, or several separated by commas (got {size})") from None
    if sides and min(sides) < 1:
        raise UserError(f"--size: each side must be at least 1 (got {size})")
    if name in PRESETS:
        config = settings_from(ModelConfig(unet=UNetConfig(preset=name)), ModelConfig, flags)
        default = config.unet.dims * (64,)
    elif Path(name).is_dir():
        kind, _ = kind_of_run(name)
        config = settings_from(Run(name).config(kind), kind, flags)
        default = config.data.patch_size if isinstance(config, PredictionConfig) else config.data.size
    elif not Path(name).suffix:
        near = did_you_mean(name, PRESETS)
        raise UserError(f"{name}: neither a preset ({', '.join(PRESETS)}), nor a run, nor a file{near}")
    elif kind_of(config_file(name)) is PredictionConfig:
        config = settings_from(config_file(name), PredictionConfig, flags)
        default = config.data.patch_size if config.data.patch else (MAX_PATCH, MAX_PATCH)
    else:
        config = settings_from(config_file(name), Config, flags)
        default = config.data.size if config.data.resolution else (64, 64)
        known = {name: condition for name, condition in config.conditions.items() if condition.is_complete}
        for name in config.conditions.keys() - known.keys():
            print(f"conditions.{name}: left out; its size follows from the data (describe a run instead)")
        config = config.model_copy(update={"conditions": known})
        config = config.resolve_model(sides or default, config.data.channels or 3)
    sides = sides or default
    if isinstance(config, PredictionConfig):
        config = ModelConfig(unet=config.unet)
    return config, sides * config.unet.dims if len(sides) == 1 else sides


@user_friendly
def export(argv: list[str]) -> int:
    """Write a run as a folder that diffusers loads, or a file for guided-diffusion.

    The folder is a DDPMPipeline; with image conditions its UNet2DModel takes them as further input channels. Runs with
    text are not exported.
    """
    check_single_process("diffunet export")
    parser = argparse.ArgumentParser(prog="diffunet export", description=export.__doc__)
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("to", metavar="FOLDER", help="the folder to write, or FILE.pt for guided-diffusion")
    parser.add_argument(
        "--label",
        help="class of the label condition that the pipeline samples; all: keep the classes [default: none]",
    )
    args, _ = parse_flags(parser, argv)
    run, to = Run(args.run), Path(args.to)
    config = run.config()
    if to.is_file() or (to.exists() and any(to.iterdir())):
        raise UserError(f"{to}: exists already; choose another name")
    if to.suffix == ".pt" and args.label:
        raise UserError(f"--label: {to.name} keeps all classes, as guided-diffusion does; leave it out")
    if to.suffix == ".pt":
        from ..interop.guided_diffusion import save_guided_diffusion

        arguments = save_guided_diffusion(run.denoiser(), to)
        listed = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        print(f"{to}: load it with UNetModel({listed})")
        return 0
    from ..interop.diffusers import export_run

    print(export_run(run.denoiser(), config, args.label, to))
    return 0


@user_friendly
def import_(argv: list[str]) -> int:
    """Make a run from a diffusers folder, a hub id, or a guided-diffusion checkpoint, for sample.py."""
    check_single_process("diffunet import")
    parser = argparse.ArgumentParser(prog="diffunet import", description=import_.__doc__)
    parser.add_argument("source", metavar="SOURCE", help="a DDPMPipeline folder or hub id, or FILE.pt")
    parser.add_argument("run", metavar="RUN", help="the run folder to make")
    parser.add_argument("--config", metavar="FILE", help="the network of a .pt file, such as configs/adm64.yaml")
    parser.add_argument(
        "--attention_order", choices=("new", "legacy"), help="of a .pt file: new for 64x64_diffusion.pt, else legacy"
    )
    args, _ = parse_flags(parser, argv)
    run = Run(args.run)
    run.check_not_overwriting(overwrite=False)
    if args.source.endswith(".pt"):
        from ..interop.guided_diffusion import import_guided_diffusion

        config, denoiser = import_guided_diffusion(args.source, args.config, args.attention_order)
    elif args.config or args.attention_order:
        raise UserError(f"{args.source}: not a .pt file; leave out --config and --attention_order")
    else:
        from ..interop.diffusers import load_diffusers

        config, denoiser = load_diffusers(args.source)
    run.create(config)
    run.publish(denoiser)
    print(f"{run.folder}: sample with python sample.py {run.folder}")
    return 0
