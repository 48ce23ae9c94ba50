"""A run that compresses images: its configuration, and the quality of its reconstructions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.progress import no_progress
from ..core.rng import fixed_subset
from ..core.runtime import default_device
from ..core.settings import Settings
from ..core.storage import sha256_of_tensors
from ..data.config import DataConfig
from ..data.dataset import ImageDataset, load_images
from ..data.pixels import denormalize, normalize, to_unit
from ..evaluation.compressed import compressed_scores
from ..evaluation.features import FeatureExtractor, choose_features
from ..evaluation.fidelity import psnr
from ..evaluation.report import program_version
from ..models.autoencoder import Autoencoder, AutoencoderConfig, load_autoencoder
from ..models.saving import WEIGHTS
from ..objectives.autoencoding import AutoencodingConfig
from ..training.config import TrainConfig
from .config import RunConfig
from .run import Run

BATCH = 32
"""Images encoded and decoded at once."""
MIN_IMAGES, MAX_IMAGES = 4, 1000
"""Images that are scored, at least and at most, and those at most that they are compared with."""
SHOWN = 8
"""Images in the figure of an evaluation."""
COLLAPSED = 0.05
"""Nats per position below which a channel of the latents carries nothing: its distribution is the prior's."""


class AutoencoderRunConfig(RunConfig):
    """Everything that determines a run of an autoencoder."""

    task: ClassVar[str] = "autoencoding"

    objective: AutoencodingConfig = AutoencodingConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()

    def resolve(self, images: ImageDataset) -> Self:
        """Return the config completed from the data. Raise UserError where the sides do not divide."""
        if self.data.augmentation:
            raise UserError("data.augmentation: distorts images, which an autoencoder would learn; use 0")
        check_divides(self.autoencoder.factor, images.config.size, "autoencoder.channels")
        return self.model_copy(update={"data": images.config})

    def build(self) -> Autoencoder:
        """Return the autoencoder with fresh weights."""
        return self.autoencoder.build(self.data.channels or 1)


def check_divides(factor: int, size: tuple[int, int], place: str) -> None:
    """Raise UserError unless images of a size consist of whole blocks of `factor` pixels."""
    if any(side % factor for side in size):
        near = [max(factor, round(side / factor) * factor) for side in size]
        raise UserError(
            f"{place}: latents have 1/{factor} of the side, which does not divide {size[0]}×{size[1]}; "
            f"use --data.resolution {near[0] if near[0] == near[1] else near}"
        )


@dataclass(frozen=True)
class Reconstruction:
    """Some images after encoding to the mean and decoding, with their latents."""

    pixels: Tensor
    """(N, C, H, W), in the bit depth of the images."""
    mean: Tensor
    """(N, C', h, w)"""
    log_variance: Tensor | None
    """(N, C', h, w)"""

    def channels(self) -> dict[str, list[float]]:
        """Return numbers of each channel of the latents.

        mean, std: over images and positions, of a sample; kl: the divergence from the prior in nats per position;
        below COLLAPSED the channel carries nothing (posterior collapse).
        """
        mean, axes = self.mean.double(), (0, 2, 3)
        variance = mean.var(axes)
        found = {"mean": mean.mean(axes).tolist()}
        if self.log_variance is None:
            return found | {"std": variance.sqrt().tolist()}
        log_variance = self.log_variance.double()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean(axes)
        std = (variance + log_variance.exp().mean(axes)).sqrt()
        return found | {"std": std.tolist(), "kl": divergence.tolist()}


@torch.no_grad()
def reconstruct(
    autoencoder: Autoencoder, pixels: Tensor, bit_depth: int, progress: Callable = no_progress
) -> Reconstruction:
    """Return images (N, C, H, W) after compression. Raise UserError if the network's output is not finite."""
    device = next(autoencoder.parameters()).device
    parts: list[tuple[Any, ...]] = []
    for chunk in progress(pixels.split(BATCH)):
        mean, log_variance = autoencoder.encode(normalize(chunk.to(device), bit_depth))
        images = denormalize(autoencoder.decode(mean), bit_depth)
        parts.append((images.cpu(), mean.cpu(), None if log_variance is None else log_variance.cpu()))
    images, means, log_variances = zip(*parts, strict=True)
    return Reconstruction(
        torch.cat(images), torch.cat(means), None if log_variances[0] is None else torch.cat(log_variances)
    )


# ── evaluation ────────────────────────────────────────────────────────────────────────────────────


class AutoencoderEvaluationConfig(Settings):
    """The images that are compressed, and the features in which they are compared."""

    features: str | None = None
    """pixels, inception, dinov2, or a folder of diffunet classifier; null: pixels."""
    weights: str | None = None
    """File or folder of the weights of inception or dinov2; null: downloaded, or from the cache."""
    perceptual_weights: str | None = None
    """VGG16 for LPIPS: a file in the format of torchvision's, or vgg16, which torchvision downloads; null: no LPIPS."""
    data: DataConfig = DataConfig()
    """The images; those of the run, unless set. Scored are those held out, or all if none is."""


def load_trained_autoencoder(run: Run) -> Autoencoder:
    """Return the autoencoder of a run with its newest EMA weights. Raise UserError without any."""
    if not (run.folder / "model" / WEIGHTS).exists():
        raise UserError(f"{run.folder / 'model' / WEIGHTS}: missing; the run has no checkpoint yet")
    return load_autoencoder(run.folder / "model").to(default_device())


def evaluate_autoencoder(
    run: Run,
    config: AutoencoderEvaluationConfig | None = None,
    distance: Callable[[Tensor, Tensor], Tensor] | None = None,
    progress: Callable = no_progress,
    features: FeatureExtractor | None = None,
) -> tuple[dict[str, Any], list[tuple[str, Tensor, int]]]:
    """Return the record of an autoencoder, and the images that it changed most, as rows of a comparison.

    distance: LPIPS, of images in [-1, 1]; None: without. features: other than those of the config. Raise UserError for
    fewer than MIN_IMAGES images.
    """
    own = run.config(AutoencoderRunConfig)
    config = config or AutoencoderEvaluationConfig(data=own.data)
    images = load_images(config.data, log=lambda text: None)
    check_divides(own.autoencoder.factor, images.config.size, "data.resolution")
    trained, held_out = (split.plain() for split in images.split_held_out())
    scored = held_out if len(held_out) else trained
    if len(scored) < MIN_IMAGES:
        raise UserError(f"data.path: {len(scored)} images to compress; give at least {MIN_IMAGES}")
    pixels, others = (
        split.__getitems__(fixed_subset(len(split), MAX_IMAGES).tolist())["image"] for split in (scored, trained)
    )
    bit_depth = images.config.bit_depth or 8
    features = features or choose_features(config.features, config.weights, images, default_device())
    autoencoder = load_trained_autoencoder(run)
    made = reconstruct(autoencoder, pixels, bit_depth, progress)
    channels = made.channels()
    record = {
        "num_images": len(pixels),
        "path": config.data.path,
        "weights_sha256": sha256_of_tensors(autoencoder.network.state_dict()),
        "features": {"name": features.name, "resize": features.resize, "weights_sha256": features.weights},
        "compression": pixels[0].numel() / made.mean[0].numel(),
        "scores": compressed_scores(pixels, made.pixels, others, bit_depth, features, distance),
        "latents": channels,
        "collapsed": [number for number, nats in enumerate(channels.get("kl", ())) if nats < COLLAPSED],
        **program_version(),
    }
    worst = psnr(*(to_unit(each, bit_depth) for each in (made.pixels, pixels))).argsort()[:SHOWN]
    return record, [("image", pixels[worst], bit_depth), ("after", made.pixels[worst], bit_depth)]
