"""Training an autoencoder of images, whose latents other trainings generate."""

from dataclasses import dataclass
from functools import partial

import torch

from ..core.errors import UserError
from ..core.runtime import prepare_for
from ..data.dataset import ImageDataset, load_images
from ..data.pixels import normalize, to_unit
from ..evaluation.fidelity import psnr
from ..evaluation.references import evenly_spaced
from ..interop.tensor_files import load_encoder
from ..models.autoencoder import Autoencoder
from ..models.perceptual import LPIPS, build_lpips, import_lpips
from ..objectives.autoencoding import Autoencoding
from ..runs.autoencoding import AutoencoderRunConfig, reconstruct
from ..runs.figures import plot_curves, save_comparison
from ..runs.run import Run
from ..training.config import TrainConfig
from .fit import make_accelerator
from .task import Task

VALIDATED = 128
"""Held-out images, at most, on which a preview measures, and as many of those trained on."""
SHOWN = 8
"""Images in a preview's figure."""


def autoencoding(config: AutoencoderRunConfig) -> Task:
    """Return the task of training an autoencoder. Raise UserError where config and data disagree."""
    accelerator = make_accelerator(config.train)
    from accelerate.utils import tqdm  # a bar in the main process only

    images = load_images(
        config.data, log=accelerator.print, progress=partial(tqdm, desc="decode", unit="image", leave=False)
    )
    config = config.resolve(images)
    training, held_out = images.split_held_out()
    run = Run(config.train.output)
    distance = load_lpips(config.objective.perceptual_weights) if config.objective.perceptual else None
    objective = Autoencoding(config.objective, distance and distance.to(accelerator.device))

    def build(train: TrainConfig) -> Autoencoder:
        autoencoder = config.build()
        prepare_for(autoencoder, train.runtime)
        return autoencoder

    def publish(ema: Autoencoder) -> None:
        run.publish(ema.network)
        plot_curves(run.folder)

    height, width = config.data.size
    factor, channels = config.autoencoder.factor, config.autoencoder.latent_channels
    return Task(
        config=config,
        accelerator=accelerator,
        build_model=build,
        objective=objective,
        data=training.to(accelerator.device),
        preview=Preview(run, objective, training.plain(), held_out.plain(), accelerator.device),
        publish=publish,
        summary=f"{len(training):,} images of {height}×{width} to train on, {len(held_out):,} held out, latents of "
        f"{height // factor}×{width // factor} with {channels} channels",
        report=lambda ema: (
            f"reconstructions: {run.folder}/samples; train on the latents with --codec.from {run.folder}"
        ),
        files={"model/config.json": config.build().config_json().encode()},
    )


def load_lpips(name: str, place: str = "objective.perceptual_weights") -> LPIPS:
    """Return LPIPS with the convolutions of a file, or of vgg16, which torchvision downloads. Raise UserError."""
    try:
        import_lpips()  # before a download
        return build_lpips(load_encoder(name))
    except UserError as mistake:
        raise UserError(f"{place}: {mistake}") from None


@dataclass(frozen=True)
class Preview:
    """Measures held-out images, and writes some beside their reconstructions to RUN/samples."""

    run: Run
    objective: Autoencoding
    trained: ImageDataset
    held_out: ImageDataset
    device: torch.device

    @torch.no_grad()
    def __call__(self, step: int, ema: Autoencoder) -> dict[str, float]:
        """Return val_loss and train_eval_loss, the errors of reconstruction without the divergence, and PSNR in dB."""
        found = {}
        for name, images in (("train_eval_loss", self.trained), ("val_loss", self.held_out)):
            if not len(images):
                continue
            pixels = images.__getitems__(evenly_spaced(range(len(images)), VALIDATED))["image"].cpu()
            bit_depth = images.config.bit_depth or 8
            made = reconstruct(ema, pixels, bit_depth)
            pair = made.pixels, pixels
            normalized = (normalize(each, bit_depth).to(self.device) for each in pair)
            found[name] = float(self.objective.error(*normalized).mean())
            found["psnr"] = float(psnr(*(to_unit(each, bit_depth) for each in pair)).mean())
            rows = [("image", pixels[:SHOWN], bit_depth), ("after", made.pixels[:SHOWN], bit_depth)]
            save_comparison(self.run.folder / "samples" / f"step_{step:08d}.png", rows)
        return found
