"""The commands about a network alone: describe, export, import."""

import argparse
from pathlib import Path

from torch import nn

from ..runs.run import Run
from ..runs.config import Config, ModelConfig
from .console import config_file, user_friendly
from ..models.denoiser import Denoiser
from .flags import add_flags, parse_flags
from ..core.settings import settings_from
from ..sampling.generate import parse_labels
from ..models.meta import on_meta
from ..models.presets import PRESETS
from ..core.errors import UserError, did_you_mean
from ..models.unet import UNet, UNetConfig


@user_friendly
def describe(argv: list[str] | None = None) -> int:
    """Show a network as a table: levels, sizes, channels, parameters, operations, receptive field."""
    from ..models.inspection import describe as parts_of
    from ..models.tiling import valid_tile_sizes

    parser = argparse.ArgumentParser(prog="diffunet describe", description=describe.__doc__)
    parser.add_argument("network", metavar="CONFIG", help="a YAML file, a run folder, or a preset such as unet2015")
    parser.add_argument("--size", help="of the input, as 64 or 132,132,116 [default: the config's resolution, or 64]")
    add_flags(parser, ModelConfig)
    asked, flags = parse_flags(parser, argv)
    config, size = _network_and_size(asked.network, asked.size, flags)
    try:
        parts = parts_of(config.unet, size)
    except ValueError as misfit:
        raise UserError(f"--size: {misfit}") from None
    rows = [("", "size", "channels", "attention", "parameters", "GFLOP", "receptive field")]
    for part in parts:
        cells = "×".join(map(str, part.size)), f"{part.channels:,}", "yes" if part.attention else ""
        cost = f"{part.parameters:,}", f"{part.flops / 1e9:,.3f}", f"{part.receptive_field:,}"
        rows.append((part.name, *cells, *cost))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        print(name.ljust(widths[0]), *cells, sep="  ")
    with on_meta():
        denoiser = Denoiser.from_config(config.unet, config.conditions) if config.unet.vector_dim else None
        unet = denoiser.unet if denoiser else UNet(config.unet)
    if denoiser:
        told = sum(p.numel() for p in denoiser.parameters())
        print(f"with what it is told of the time and {config.conditions.classes or 'no'} classes: {told:,} parameters")
    if config.unet.padding == "valid":
        sides = valid_tile_sizes(unet, min(size), min(size) + 3 * 2 ** len(config.unet.levels))
        print(f"valid borders: sides that every level halves evenly are {', '.join(map(str, sides[:4]))}, ...")
    return 0


def _network_and_size(name: str, size: str | None, flags: dict[str, str]) -> tuple[ModelConfig, tuple[int, ...]]:
    """A network by the name of a preset, a run or a file, and the size of its input."""
    try:
        sides = tuple(int(side) for side in size.split(",")) if size else None
    except ValueError:
        raise UserError(f"--size: {size} is not one number, or several with commas between") from None
    if sides and min(sides) < 1:
        raise UserError(f"--size: {size}: each side is at least 1")
    if name in PRESETS:
        config = settings_from(ModelConfig(unet=UNetConfig(preset=name)), ModelConfig, flags)
        default = config.unet.dims * (64,)
        if config.conditions.classes == "auto":
            raise UserError("--conditions.classes: auto, but a preset has no data that could be counted; give a number")
    elif Path(name).is_dir():
        config = settings_from(Run(name).config(), Config, flags)
        default = config.data.size
    elif not Path(name).suffix:
        near = did_you_mean(name, PRESETS)
        raise UserError(f"{name}: neither a preset ({', '.join(PRESETS)}), nor a run, nor a file{near}")
    else:
        config = settings_from(config_file(name), Config, flags)
        default = config.data.size if config.data.resolution else (64, 64)
        config = config.fitted(sides or default, config.data.channels or 3, config.conditions.class_names)
    sides = sides or default
    return config, sides * config.unet.dims if len(sides) == 1 else sides


@user_friendly
def export(argv: list[str] | None = None) -> int:
    """Write a run as a folder that diffusers' DDPMPipeline loads, or a file for guided-diffusion."""
    parser = argparse.ArgumentParser(prog="diffunet export", description=export.__doc__)
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("to", metavar="FOLDER", help="the folder to write, or FILE.pt for guided-diffusion")
    parser.add_argument("--label", help="class that the pipeline shall draw; all: keep the classes [default: not told]")
    asked, _ = parse_flags(parser, argv)
    run, to = Run(asked.run), Path(asked.to)
    config = run.config()
    if to.is_file() or (to.exists() and any(to.iterdir())):
        raise UserError(f"{to}: is there already; name another")
    if to.suffix == ".pt" and asked.label:
        raise UserError(f"--label: {to.name} keeps all classes, as guided-diffusion does; leave it out")
    if to.suffix == ".pt":
        from ..interop.guided_diffusion import save_guided_diffusion

        arguments = save_guided_diffusion(run.denoiser(), to)
        print(f"{to}: UNetModel({', '.join(f'{key}={value!r}' for key, value in arguments.items())}) loads it")
        return 0
    from ..interop.diffusers import export as write_folder

    names = config.conditions.class_names
    label = "all" if asked.label == "all" else parse_labels(asked.label or "none", names)[0]
    write_folder(run.denoiser(), config, label, to)
    print(f"{to}: DDPMPipeline.from_pretrained({str(to)!r}) loads it")
    return 0


@user_friendly
def import_(argv: list[str] | None = None) -> int:
    """Make a run of a diffusers folder, a hub id, or a guided-diffusion checkpoint, for sample.py."""
    parser = argparse.ArgumentParser(prog="diffunet import", description=import_.__doc__)
    parser.add_argument("source", metavar="SOURCE", help="a DDPMPipeline folder or hub id, or FILE.pt")
    parser.add_argument("run", metavar="RUN", help="the run folder to make")
    parser.add_argument("--config", metavar="FILE", help="what a .pt file does not say, such as configs/adm64.yaml")
    parser.add_argument(
        "--attention_order", choices=("new", "legacy"), help="of a .pt file: new for 64x64_diffusion.pt, else legacy"
    )
    asked, _ = parse_flags(parser, argv)
    run = Run(asked.run)
    run.check_not_overwriting(overwrite=False)
    if asked.source.endswith(".pt"):
        config, denoiser = _from_guided_diffusion(asked.source, asked.config, asked.attention_order)
    elif asked.config or asked.attention_order:
        raise UserError(f"{asked.source}: is no .pt file and says itself what --config and --attention_order would")
    else:
        from ..interop.diffusers import load_diffusers

        config, denoiser = load_diffusers(asked.source)
    run.begin(config)
    run.publish(denoiser)
    print(f"{run.folder}: python sample.py {run.folder} draws pictures")
    return 0


def _from_guided_diffusion(path: str, file: str | None, attention_order: str | None) -> tuple[Config, nn.Module]:
    from ..interop.guided_diffusion import load_guided_diffusion

    if file is None or attention_order is None:
        raise UserError(f"{path}: says nothing of its network; add --config FILE and --attention_order new or legacy")
    config = settings_from(config_file(file), Config)
    classes = config.conditions.classes
    if not config.unet.levels or config.data.resolution is None or classes == "auto":
        raise UserError(f"{file}: unet.levels, data.resolution and conditions.classes have to be said here")
    names = config.conditions.class_names or tuple(map(str, range(classes)))
    config = config.model_copy(
        update={
            "conditions": config.conditions.model_copy(update={"class_names": names}),
            "data": config.data.model_copy(update={"channels": config.unet.in_channels, "bit_depth": 8}),
        }
    )
    return config, load_guided_diffusion(path, config.unet, attention_order, config.conditions)
