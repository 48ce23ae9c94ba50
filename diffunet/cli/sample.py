"""The sample command."""

import argparse

from ..core.progress import shared_bar
from ..core.settings import settings_from
from ..runs.run import Run
from ..runs.samples import grid_columns, save_samples
from ..sampling.generate import SampleConfig
from .console import add_condition_flags, check_single_process, output_folder, user_friendly
from .flags import add_flags, parse_flags


@user_friendly
def sample(argv: list[str]) -> int:
    """Sample images from a run, with its EMA weights. Without options, reproduce its last preview."""
    check_single_process("sample.py")
    parser = argparse.ArgumentParser(prog="sample.py", description=sample.__doc__)
    parser.add_argument("run", metavar="RUN", help="a run folder, such as runs/digits; RUN --help shows its conditions")
    parser.add_argument("--output", metavar="FOLDER", help="empty folder for the images [default: RUN/images/000, ...]")
    add_condition_flags(parser, argv)
    add_flags(parser, SampleConfig)
    args, flags = parse_flags(parser, argv)
    run = Run(args.run)
    own = run.config()
    config = settings_from(own.sample, SampleConfig, flags)
    folder = output_folder(args.output, run.folder / "images")
    sampler = run.sampler(config)
    values = sampler.values(config)
    if "num_images" not in flags and (number := sampler.number_of_files(config, values)):
        config = config.model_copy(update={"num_images": number})
    batches = sampler.sample(config, shared_bar("sample", "step", config.total_steps))
    number = save_samples(batches, folder, own.data, own.inputs, grid_columns(values))
    print(f"{number} images: {folder}")
    return 0
