"""The sample command."""

import argparse

from ..core.progress import no_progress, shared_bar
from ..core.settings import settings_from
from ..core.shared_work import UNFINISHED, kept_if_begun
from ..runs.run import Run
from ..runs.shared_samples import job_of, sample_to_folder
from ..sampling.generate import SampleConfig
from ..training.processes import from_main, this_process
from .console import add_condition_flags, begin, user_friendly
from .flags import add_flags, parse_flags


@user_friendly
def sample(argv: list[str]) -> int:
    """Sample images from a run, with its EMA weights. Without options, reproduce its last preview.

    The same command resumes an interrupted sampling. Under a launcher, such as torchrun, all processes sample.
    """
    parser = argparse.ArgumentParser(prog="sample.py", description=sample.__doc__)
    parser.add_argument("run", metavar="RUN", help="a run folder, such as runs/digits; RUN --help shows its conditions")
    parser.add_argument("--output", metavar="FOLDER", help="empty folder for the images [default: RUN/images/000, ...]")
    add_condition_flags(parser, argv)
    add_flags(parser, SampleConfig)
    args, flags = parse_flags(parser, argv)
    run = Run(args.run)
    own = run.config()
    config = settings_from(own.sample, SampleConfig, flags)
    process = this_process()
    sampler = run.sampler(config)
    values = sampler.values(config)
    if "num_images" not in flags and (number := sampler.number_of_files(config, values)):
        config = config.model_copy(update={"num_images": number})
    job = job_of(sampler, config)
    with process.connected():
        folder = from_main(process, lambda: begin(args.output, run.folder / "images", job))
    bar = shared_bar("sample", "step", config.total_steps // process.of) if process.is_main_process else no_progress
    with kept_if_begun(folder / UNFINISHED):
        number = sample_to_folder(sampler, config, folder, own, bar)
    if number:
        print(f"{number} images: {folder}")
    return 0
