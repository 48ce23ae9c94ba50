"""The edit command."""

import argparse
from pathlib import Path

import torch

from ..conditions.image import files_at
from ..core.errors import UserError
from ..core.progress import shared_bar
from ..core.settings import settings_from
from ..data.pixels import denormalize, white
from ..runs.config import Config
from ..runs.edit import EditConfig, interpolation, read_edit, sampling_settings
from ..runs.figures import save_comparison, save_film
from ..runs.run import Run
from ..runs.samples import save_samples
from ..sampling.editing import Edit, Interpolate
from ..sampling.generate import SampleBatch, SampleConfig
from .console import add_condition_flags, check_single_process, output_folder, user_friendly
from .flags import add_flags, parse_flags

FRAMES = 17
"""Of a film, by default."""
MAX_COLUMNS, MAX_ROWS = 16, 8
"""Of comparison.png."""


@user_friendly
def edit(argv: list[str]) -> int:
    """Edit images with any run: fill in, extend, restore or vary them, or a film from one to another.

    White in a mask is generated anew. Conditions are absent unless they are given.
    """
    check_single_process("diffunet edit")
    parser = argparse.ArgumentParser(prog="diffunet edit", description=edit.__doc__)
    parser.add_argument("run", metavar="RUN", help="a run folder; RUN --help shows its conditions")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="files or folders; with --between a file or a seed")
    parser.add_argument("--output", metavar="FOLDER", help="empty folder for the images [default: RUN/edits/000, ...]")
    add_condition_flags(parser, argv)
    add_flags(parser, EditConfig)
    add_flags(parser, SampleConfig)
    args, flags = parse_flags(parser, argv)
    run = Run(args.run)
    own = run.config()
    changes = settings_from(EditConfig(), EditConfig, _flags_of(EditConfig, flags))
    folder = output_folder(args.output, run.folder / "edits")
    if changes.between:
        if len(args.images) > 1:
            raise UserError(f"between: one image or seed at each end (got {len(args.images)} beside it)")
        number = _film(run, own, [args.images[0], changes.between], flags, folder)
    else:
        files = [file for word in args.images for file in files_at("IMAGE", Path(word).expanduser())]
        number = _edit(run, own, changes, files, flags, folder)
    print(f"{number} images: {folder}")
    return 0


def _flags_of(settings: type, flags: dict[str, str]) -> dict[str, str]:
    """Return the flags of one class of settings."""
    return {key: word for key, word in flags.items() if key.split(".")[0] in settings.model_fields}


def _sample_config(own: Config, edit: Edit | type[Edit], number: int, flags: dict[str, str]) -> SampleConfig:
    """Return the settings of sampling for an edit, with flags over them."""
    suitable = sampling_settings(edit, own).model_copy(update={"num_images": number})
    return settings_from(suitable, SampleConfig, _flags_of(SampleConfig, flags))


def _edit(run: Run, own: Config, changes: EditConfig, files: list[Path], flags: dict[str, str], folder: Path) -> int:
    """Write the edits of files to a folder, beside them in comparison.png. Return their number."""
    edit = read_edit(changes, files, own)
    if "num_images" in flags:
        raise UserError("--num_images: follows from the images; give --samples, the number for each")
    config = _sample_config(own, edit, len(files) * changes.samples, flags)
    calls = -(-config.num_images // config.batch_size) * edit.calls(config.steps)
    batches, kept = run.sampler(config).sample(config, shared_bar("edit", "call", calls), edit), []

    def keep(batches):
        for batch in batches:
            kept.append(batch.pixels)
            yield batch

    edited = [file for file in files for _ in range(changes.samples)]
    number = save_samples(keep(batches), folder, own.data, own.inputs, changes.samples, edited)
    bit_depth = own.data.bit_depth or 8
    inputs = denormalize(edit.inputs[:MAX_COLUMNS], bit_depth)
    samples = torch.cat(kept).unflatten(0, (len(files), changes.samples))[:MAX_COLUMNS, :MAX_ROWS]
    rows = [("input", inputs, bit_depth), *(("edit", turn, bit_depth) for turn in samples.unbind(1))]
    save_comparison(folder / "comparison.png", rows)
    return number


def _film(run: Run, own: Config, ends: list[str], flags: dict[str, str], folder: Path) -> int:
    """Write a film between two images or seeds to a folder, and print how well the images came back."""
    config = _sample_config(own, Interpolate, FRAMES, flags)
    sampler, bit_depth = run.sampler(config), own.data.bit_depth or 8
    edit, images = interpolation(ends, sampler, config, own, shared_bar("invert", "call", 2 * config.steps))
    batches = list(sampler.sample(config, shared_bar("sample", "step", config.total_steps), edit))
    number = save_samples(batches, folder, own.data, own.inputs)
    frames = SampleBatch.concatenate(batches).pixels
    save_film(folder, frames, bit_depth)
    for end, image, frame in zip(ends, images, (frames[0], frames[-1]), strict=True):
        if image is not None:
            off = (denormalize(image, bit_depth)[0].double() - frame.double()).square().mean().sqrt().item()
            print(f"{end}: inverted and sampled again, it is off by {255 * off / white(bit_depth):.2g} of 255 levels")
    return number
