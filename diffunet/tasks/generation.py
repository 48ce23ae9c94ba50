"""Training a model that generates images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import UserError, ran_out_of_memory
from ..core.runtime import prepare_for
from ..core.settings import merge, settings_from
from ..core.storage import load_strictly, load_tensors, tensors_to_bytes
from ..data.captions import TextColumn, mentions_sides
from ..data.dataset import load_images
from ..evaluation.monitor import Monitor
from ..models.denoiser import Denoiser
from ..models.lora import add_lora
from ..models.lora import merge as merge_lora
from ..objectives.consistency import Consistency
from ..runs.config import Config, config_file
from ..runs.examples import EXAMPLES, example_files, save_example_comparison
from ..runs.figures import plot_curves, save_grid, save_timeline
from ..runs.run import Run
from ..runs.samples import grid_columns
from ..sampling.generate import SampleBatch, check_sample_config
from ..training.config import TrainConfig
from ..training.ema import list_snapshots
from .finetuning import INITIAL_WEIGHTS, Pretrained, configure, describe_memorization, initial_weights, teacher
from .fit import fit, make_accelerator
from .start import begin, resume
from .task import Task

UNET = {"dims": 2, "padding": "same"}
"""Settings that an image generator fixes; the U-Net alone, as a library, supports others."""


def train(
    config: Config | Mapping[str, Any] | str | Path = "configs/digits.yaml",
    *,
    resumed: bool = False,
    overwrite: bool = False,
    **sections: Mapping[str, Any],
) -> Run:
    """Train as `python train.py` does, and return the run.

        run = train("configs/digits.yaml", train={"steps": 200, "output": "runs/short"})

    `config` is a YAML file, nested values or a `Config`; `sections` are laid over it. With `resumed`, a run at
    `train.output` is resumed if there is one; with `overwrite`, it is replaced. KeyboardInterrupt ends a training
    after a checkpoint. Raise UserError for a mistake in the configuration or the data.
    """
    if isinstance(config, Mapping | Config):
        given = config.model_dump(mode="json") if isinstance(config, Config) else config
        config, pretrained = configure(None, changes=merge(given, sections))
    else:
        config, pretrained = configure(config_file(str(config)), changes=sections)
    run = Run(config.train.output)
    if resumed and run.exists:
        changed = partial(settings_from, settings=Config, transform=lambda values: merge(values, sections))
        (config, start), pretrained = resume(run.folder, Config, changed), None
    else:
        start = begin(config, overwrite)
    if fit(generation(config, pretrained), start):
        raise KeyboardInterrupt
    return run


def generation(config: Config, pretrained: Pretrained | None = None) -> Task:
    """Return the task of training a generator of images, beginning with the weights of `pretrained` if there is one.

    A finetuning that is resumed has those weights in its folder. Raise UserError where config and data disagree.
    """
    for key, needed in UNET.items():
        if (found := getattr(config.unet, key)) != needed:
            raise UserError(f"unet.{key}: a generator of images needs {needed} (got {found})")
    accelerator = make_accelerator(config.train)
    from accelerate.utils import tqdm  # a bar in the main process only

    log = accelerator.print
    run = Run(config.train.output)
    decoding = partial(tqdm, desc="decode", unit="image", leave=False)
    folder = pretrained.folder if pretrained and pretrained.folder else run.folder / "model"
    images = load_images(config.data, config.inputs, folder, log, decoding)
    config = config.resolve(images)
    initial = run.folder / INITIAL_WEIGHTS
    weights = {}
    if config.finetune.pretrained:
        weights = initial_weights(config, pretrained, log) if pretrained else load_tensors(initial)
    objective = config.build_objective()
    if isinstance(objective, Consistency) and objective.config.guidance_scale is not None:
        objective = Consistency(objective.config, objective.dropout, teacher(config, weights, accelerator.device))
    check_sample_config(config.inputs, objective, config.sample)
    training, held_out = images.split_held_out()
    texts = [text for column in images.columns.values() for text in column.files.items()]
    files = {f"model/{name}": text.encode() for name, text in texts}
    files |= {INITIAL_WEIGHTS: tensors_to_bytes(weights)} if pretrained else {}
    if config.data.random_flip or config.data.augmentation:
        for name, column in images.columns.items():
            if isinstance(column, TextColumn) and mentions_sides(column.distinct):
                log(f"conditions.{name}: captions distinguish left from right, which flips and augmentation contradict")
    preview = Preview(run, config, Monitor(objective, training, held_out), accelerator.device, log)

    def build(train: TrainConfig) -> Denoiser:
        denoiser = config.build_denoiser()
        if weights:
            load_strictly(denoiser, weights, initial)
        if rank := config.finetune.lora_rank:
            add_lora(denoiser, rank)
        prepare_for(denoiser.unet, train.runtime)
        return denoiser

    def publish(ema: Denoiser) -> None:
        run.publish(merge_lora(ema, config.build_denoiser()) if config.finetune.lora_rank else ema)
        plot_curves(run.folder)

    def report(ema: Denoiser) -> str:
        outputs = f"samples: {run.folder}/samples, curves: {run.folder}/curves.png"
        lines = [f"{outputs}; sample more with python sample.py {run.folder}"]
        if config.finetune.pretrained and (sampled := preview.sample(ema, "memorization")):
            lines.insert(0, describe_memorization(sampled[0], images))
        return "\n".join(lines)

    kept = f" ({len(held_out):,} held out)" if len(held_out) else ""
    height, width = config.data.size
    conditions = ", ".join(condition.summary for condition in config.inputs.values()) or "unconditional"
    return Task(
        config=config,
        accelerator=accelerator,
        build_model=build,
        objective=objective,
        data=training.to(accelerator.device),
        preview=preview,
        publish=publish,
        summary=f"{len(images):,} images of {height}×{width}{kept}, {conditions}",
        report=report,
        files={**files, **example_files(held_out if len(held_out) else training)},
    )


@dataclass(frozen=True)
class Preview:
    """Writes samples by the section `sample` to RUN/samples, and validates. A failure is logged; training continues."""

    run: Run
    config: Config
    monitor: Monitor
    device: torch.device
    log: Callable[[str], None]

    def __call__(self, step: int, ema: Denoiser) -> dict[str, float]:
        """Return numbers for the log; none if sampling failed. Raise OSError if the folder cannot be written to."""
        if (sampled := self.sample(ema, f"preview at step {step}")) is None:
            return {}
        pixels, columns = sampled
        folder = self.run.folder / "samples"
        bit_depth = self.config.data.bit_depth or 8
        save_grid(pixels, bit_depth, folder / f"step_{step:08d}.png", columns)
        save_timeline(folder, self.config.data.size)
        if not self.config.sample.conditions:
            save_example_comparison(self.run.folder / EXAMPLES, pixels, self.config, folder / "comparison.png")
        return self.monitor(ema, pixels, self.device)

    def sample(self, ema: Denoiser, purpose: str) -> tuple[Tensor, int | None] | None:
        """Return samples, integers (N, C, H, W), and the columns of their grid, if fixed; None if sampling failed."""
        config = self.config.sample
        if config.guide and not list_snapshots(self.run.folder):  # nothing to guide with yet
            config = config.model_copy(update={"guide": None, "guidance_scale": 1.0})
        try:
            sampler = self.run.sampler(config, ema)
            return SampleBatch.concatenate(sampler.sample(config)).pixels, grid_columns(sampler.values(config))
        except (UserError, RuntimeError, MemoryError) as error:
            if not isinstance(error, UserError) and not ran_out_of_memory(error):
                raise
            memory = f"out of memory with sample.batch_size {config.batch_size}"
            self.log(f"skipped {purpose}: {error if isinstance(error, UserError) else memory}")
            return None
