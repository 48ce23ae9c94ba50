"""The sample command, and how any command draws from a run."""

import argparse
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch
from torch import nn

from ..runs.run import Run
from ..runs.config import Config
from ..core.runtime import default_device
from .console import next_folder, check_writable, user_friendly
from ..runs.figures import save_grid, to_pil
from ..core.runtime import prepare_for
from .flags import add_flags, parse_flags
from ..core.settings import settings_from
from ..sampling.generate import SampleBatch, SampleConfig, generate
from ..core.errors import UserError
from ..core.progress import no_progress


@user_friendly
def sample(argv: list[str] | None = None) -> int:
    """Draw pictures from a run, from its EMA weights. Without options: what its last preview shows."""
    parser = argparse.ArgumentParser(prog="sample.py", description=sample.__doc__)
    parser.add_argument("run", metavar="RUN", help="a run folder, such as runs/digits")
    add_flags(parser, SampleConfig)
    asked, flags = parse_flags(parser, argv)
    run = Run(asked.run)
    config = run.config()
    wish = settings_from(config.sample, SampleConfig, flags)
    folder = _output_folder(run, wish)
    check_writable(folder)
    records, pixels = [], []
    for drawn in draw(run, run.denoiser().to(default_device()), config, wish, sampling_bar(wish)):
        folder.mkdir(parents=True, exist_ok=True)
        for picture, seed, label in zip(drawn.pixels, drawn.seeds, drawn.labels, strict=True):
            record = {"file_name": f"{len(records):05d}.png", "seed": seed}
            if label is not None:
                record |= {"label": label, "class": config.conditions.class_names[label]}
            to_pil(picture, config.data.bit_depth).save(folder / record["file_name"])
            records.append(record)
        pixels.append(drawn.pixels)
        (folder / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    save_grid(torch.cat(pixels), config.data.bit_depth, folder / "grid.png", columns(config))
    print(f"{len(records)} pictures: {folder}")
    return 0


def _output_folder(run: Run, wish: SampleConfig) -> Path:
    """The folder that was asked for, if it is empty, or the next free one of the run."""
    if wish.output:
        folder = Path(wish.output)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"--output: {folder} is not empty; name another folder")
        return folder
    return next_folder(run.folder / "pictures")


def draw(
    run: Run, denoiser: nn.Module, config: Config, wish: SampleConfig, progress: Callable = no_progress
) -> Iterator[SampleBatch]:
    """The pictures that `wish` asks of a denoiser of a run, batch by batch, on the denoiser's device."""
    objective, guide = config.build_objective(), None
    if wish.guide and wish.guidance_scale != 1:
        guide = run.snapshot(wish.guide).to(next(denoiser.parameters()).device)
    for network in filter(None, (denoiser, guide)):
        prepare_for(network.unet, wish)
    return generate(denoiser, config.conditions.class_names, objective, config.data, wish, guide, progress)


def sampling_bar(wish: SampleConfig) -> Callable:
    """One bar over all steps of all batches, which appears with the first."""
    from tqdm import tqdm

    total = -(-wish.num_images // wish.batch_size) * wish.steps
    bar = cache(lambda: tqdm(total=total, desc="sample", unit="step", leave=False, dynamic_ncols=True))

    def watched(steps):
        for step in steps:
            yield step
            bar().update()

    return watched


def columns(config: Config) -> int | None:
    """One column of a grid for each class, while they are few."""
    classes = len(config.conditions.class_names)
    return classes if 2 <= classes <= 16 else None
