"""The commands for a network alone: describe, export, import."""

import argparse
from pathlib import Path

from ..core.errors import UserError
from ..models.inspection import Part
from ..models.meta import on_meta
from ..models.tiling import valid_tile_sizes
from ..models.unet import UNet
from ..runs.run import Run
from ..tasks.networks import find_network, settings_of
from .console import check_single_process, user_friendly
from .flags import add_flags, parse_flags


@user_friendly
def describe(argv: list[str]) -> int:
    """Show a network as a table: levels, sizes, channels, parameters, operations, receptive field.

    With a flag of a predictor's data, such as --data.path FOLDER, also a plan: the objects in the data, and the depth,
    patch and batch that suit them and this machine.
    """
    from ..models.inspection import describe as parts_of

    parser = argparse.ArgumentParser(prog="diffunet describe", description=describe.__doc__)
    parser.add_argument("network", metavar="CONFIG", help="a YAML file, a run folder, or a preset such as unet2015")
    parser.add_argument("--size", help="of the input, as 64 or 132,132,116 [default: the config's resolution, or 64]")
    add_flags(parser, settings_of(argv))
    args, flags = parse_flags(parser, argv)
    network = find_network(args.network, _sides(args.size), flags)
    config, size = network.model, network.size
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
    if network.plan:
        print(f"\n{network.plan}")
    elif network.predicts:
        print("--data.path FOLDER, or another flag of data, adds a plan: depth, patch and batch for these data")
    return 0


def _sides(size: str | None) -> tuple[int, ...] | None:
    """Return the sides of an input, one or several. Raise UserError for anything else."""
    try:
        sides = tuple(int(side) for side in size.split(",")) if size else None
    except ValueError:
        raise UserError(f"--size: expected one number, or several separated by commas (got {size})") from None
    if sides and min(sides) < 1:
        raise UserError(f"--size: each side must be at least 1 (got {size})")
    return sides


def _table(parts: list[Part]) -> str:
    rows = [("", "size", "channels", "attention", "parameters", "GFLOP", "receptive field")]
    for part in parts:
        size, attention = "×".join(map(str, part.size)), "yes" if part.attention else ""
        cost = f"{part.parameters:,}", f"{part.flops / 1e9:,.3f}", _field(part)
        rows.append((part.name, size, f"{part.channels:,}", attention, *cost))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    formats = [f"<{widths[0]}", *(f">{width}" for width in widths[1:])]
    return "\n".join("  ".join(map(format, row, formats)) for row in rows)


def _field(part: Part) -> str:
    """Return the receptive field, one number if it is the same along all axes."""
    sides = [f"{side:,}" for side in part.receptive_field]
    return sides[0] if len(set(sides)) == 1 else "×".join(sides)


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

    print(export_run(run.denoiser(), config, args.label, to, run.codec(config)))
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
