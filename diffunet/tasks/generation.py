"""Training a model that generates images."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core.errors import UserError, ran_out_of_memory
from ..core.progress import no_progress, shared_bar
from ..core.runtime import prepare_for
from ..core.storage import load_strictly, load_tensors, tensors_to_bytes
from ..data.captions import TextColumn, mentions_sides
from ..data.dataset import ImageDataset, load_images
from ..data.latents import BATCH
from ..evaluation.monitor import Monitor
from ..models.denoiser import Denoiser
from ..models.lora import add_lora
from ..models.lora import merge as merge_lora
from ..models.sizes import Size
from ..objectives.consistency import Consistency
from ..runs.config import Config
from ..runs.examples import EXAMPLES, example_files, save_example_comparison
from ..runs.figures import plot_curves, save_grid, save_timeline
from ..runs.run import Run
from ..runs.samples import grid_columns
from ..sampling.generate import SampleBatch, check_sample_config
from ..training.config import TrainConfig
from ..training.ema import list_snapshots
from .finetuning import INITIAL_WEIGHTS, Pretrained, describe_memorization, initial_weights, teacher
from .fit import make_accelerator
from .latents import encode_dataset
from .sizing import sized
from .task import Task

if TYPE_CHECKING:
    from accelerate import Accelerator

UNET = {"dims": 2, "padding": "same"}
"""Settings that an image generator fixes; the U-Net alone, as a library, supports others."""


@dataclass(frozen=True)
class Loaded:
    """What is read before the network is known."""

    accelerator: "Accelerator"
    images: ImageDataset
    """What the network learns: images or latents."""
    pixels: ImageDataset
    """The images themselves."""
    training: ImageDataset
    """The part of `images` to train on, on the device if it fits there."""
    codec_files: dict[str, bytes]
    pretrained: Pretrained | None


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
    decoding = partial(tqdm, desc="decode", unit="image", leave=False)
    folder = pretrained.folder if pretrained and pretrained.folder else Run(config.train.output).folder / "model"
    images = load_images(config.data, config.inputs, folder, log, decoding)
    pixels, codec_files = images, {}
    if config.codec.pretrained:
        bar = shared_bar("encode", "batch", -(-len(images) // BATCH) // accelerator.num_processes)
        encoding = bar if accelerator.is_main_process else no_progress
        config, images, codec_files = encode_dataset(config, images, folder, accelerator.device, encoding)
    if config.data.random_flip or config.data.augmentation:
        for name, column in images.columns.items():
            if isinstance(column, TextColumn) and mentions_sides(column.distinct):
                log(f"conditions.{name}: captions distinguish left from right, which flips and augmentation contradict")
    training = images.split_held_out()[0].to(accelerator.device)
    loaded = Loaded(accelerator, images, pixels, training, codec_files, pretrained)
    if config.finetune.pretrained:
        return _task(config.resolve(images), loaded)

    def resized(size: Size) -> Task:
        return _task(config.resolve(images, size), loaded)

    task = _task(config.resolve(images), loaded) if config.unet.levels else sized(resized, config.train)
    return replace(task, resized=resized)


def _task(config: Config, loaded: Loaded) -> Task:
    """Return the task of a resolved configuration."""
    images, pixels, pretrained = loaded.images, loaded.pixels, loaded.pretrained
    device, log = loaded.accelerator.device, loaded.accelerator.print
    run = Run(config.train.output)
    initial = run.folder / INITIAL_WEIGHTS
    weights = {}
    if config.finetune.pretrained:
        weights = initial_weights(config, pretrained, log) if pretrained else load_tensors(initial)
    objective = config.build_objective()
    if isinstance(objective, Consistency) and objective.config.guidance_scale is not None:
        objective = config.build_objective(teacher=teacher(config, weights, device))
    check_sample_config(config.inputs, objective, config.sample)
    (trained, held_out), real = images.split_held_out(), pixels.split_held_out()
    texts = [text for column in images.columns.values() for text in column.files.items()]
    files = {f"model/{name}": text.encode() for name, text in texts}
    files |= {**loaded.codec_files, **({INITIAL_WEIGHTS: tensors_to_bytes(weights)} if pretrained else {})}
    preview = Preview(run, config, Monitor(objective, trained, held_out, real[0]), device, log)

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
            lines.insert(0, describe_memorization(sampled[0], pixels))
        return "\n".join(lines)

    kept = f" ({len(held_out):,} held out)" if len(held_out) else ""
    size, latent = ("×".join(map(str, sides)) for sides in (config.data.size, config.sampled_size))
    if config.codec.pretrained:
        size = f"{size} as latents of {latent} with {len(config.codec.scale)} channels"
    conditions = ", ".join(condition.summary for condition in config.inputs.values()) or "unconditional"
    return Task(
        config=config,
        accelerator=loaded.accelerator,
        build_model=build,
        objective=objective,
        data=loaded.training,
        preview=preview,
        publish=publish,
        summary=f"{len(images):,} images of {size}{kept}, {conditions}",
        report=report,
        files={**files, **example_files(real[1] if len(held_out) else real[0])},
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
