"""Validation of a model while it trains, cheap enough for every preview. docs/training.md explains how to read it."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from ..core.rng import BatchRNG, fixed_subset
from ..data.dataset import ImageDataset
from ..data.pixels import to_unit
from ..objectives.base import NOISE_BINS, Objective, noise_bins
from .features import PixelFeatures
from .metrics import jackknife_error, kernel_distance

MAX_LOSS_IMAGES = 256
"""Images, at most, for each loss: held-out ones, and as many of those trained on."""
MAX_REAL = 1000
"""Real images, at most, that samples are compared with."""
CHUNK = 64


class Monitor:
    """Metrics of a model with this objective, trained on some images while others were held out.

    Noise and images are the same every time, so steps of a run, and runs, are comparable.
    """

    def __init__(
        self,
        objective: Objective,
        trained: ImageDataset,
        held_out: ImageDataset,
        real: ImageDataset | None = None,
    ):
        """real: the images of `trained` where those are latents; None: `trained` has the images."""
        self.objective = objective
        self.bit_depth = trained.config.bit_depth
        self.plain = trained.plain()
        number = min(MAX_LOSS_IMAGES, len(held_out), len(trained))
        self.held_out, self.trained = _fixed_batch(held_out, number), _fixed_batch(trained, number)
        self.real = _fixed_batch(real or trained, MAX_REAL)["image"]

    def __call__(self, model: Callable, samples: Tensor, device: torch.device) -> dict[str, float]:
        """Return numbers for the log, of a model on a device and its samples, integers (N, C, H, W).

        val_loss, train_eval_loss: unweighted, of held-out images and of images trained on; val_loss_error: standard
        error of their difference; val_loss_noise0-25, ...: by noise, in percent.
        mean_shift/0, ...: mean of the samples minus that of real images, by channel, pixels from 0 to 1;
        std_ratio/0, ...: quotient of their standard deviations.
        kernel_distance, kernel_distance_error: of the pixels of `sampled_images` samples and of real images.
        monitor_seconds: time that these metrics took.
        """
        started = time.monotonic()
        metrics = self.losses(model, device) | self.colors(samples) | self.distance(samples)
        return metrics | {"monitor_seconds": round(time.monotonic() - started, 2)}

    def losses(self, model: Callable, device: torch.device) -> dict[str, float]:
        """Return the losses, or nothing without held-out images."""
        if not len(self.held_out["image"]):
            return {}
        by_noise = self._errors(model, self.held_out, device)  # (NOISE_BINS, N)
        val, train = by_noise.mean(0), self._errors(model, self.trained, device).mean(0)
        found = {"val_loss": float(val.mean())}
        middles = (torch.arange(NOISE_BINS) + 0.5) / NOISE_BINS
        for noise, errors in zip(noise_bins(middles), by_noise, strict=True):
            found[f"val_loss_{noise}"] = float(errors.mean())
        found["train_eval_loss"] = float(train.mean())
        if len(val) > 1:
            found["val_loss_error"] = float((val.var() / len(val) + train.var() / len(train)) ** 0.5)
        return found

    @torch.no_grad()
    def _errors(self, model: Callable, batch: dict[str, Tensor], device: torch.device) -> Tensor:
        """Return (NOISE_BINS, N): the error of each image once in each bin of u, evenly spaced within the bin.

        Noise and whatever is random in conditions have generators of their own, so neither shifts the other.
        """
        generator = torch.Generator().manual_seed(0)
        values = self.plain.prepare(batch, BatchRNG(torch.Generator().manual_seed(1)))
        image = values.pop("image")
        within = (torch.arange(len(image)) + 0.5) / len(image)
        bins = []
        for number in range(NOISE_BINS):
            u, noise = (number + within) / NOISE_BINS, torch.randn(image.shape, generator=generator)
            errors = []
            for rows in torch.arange(len(image)).split(CHUNK):
                noisy = self.objective.add_noise(*(part[rows].to(device) for part in (image, noise, u)))
                conditions = {name: value[rows].to(device) for name, value in values.items()}
                errors.append(self.objective.error(model, noisy, **conditions).cpu())
            bins.append(torch.cat(errors))
        return torch.stack(bins)

    def colors(self, samples: Tensor) -> dict[str, float]:
        """Return the shift of the mean and the ratio of the standard deviations, by channel."""
        sets = [to_unit(images, self.bit_depth).transpose(0, 1).flatten(1) for images in (samples, self.real)]
        (mean, std), (real_mean, real_std) = ((pixels.mean(1), pixels.std(1)) for pixels in sets)
        shifts, ratios = mean - real_mean, std / real_std.clamp(min=1e-6)
        found = {f"mean_shift/{channel}": float(shift) for channel, shift in enumerate(shifts)}
        return found | {f"std_ratio/{channel}": float(ratio) for channel, ratio in enumerate(ratios)}

    def distance(self, samples: Tensor) -> dict[str, float]:
        """Return the kernel distance and its error, or nothing with fewer than four images."""
        if len(samples) < 4 or len(self.real) < 4:
            return {}
        a, b = map(PixelFeatures(self.bit_depth), (samples, self.real))
        return {
            "kernel_distance": kernel_distance(a, b),
            "kernel_distance_error": float(jackknife_error(kernel_distance, a, b)),
            "sampled_images": len(samples),
        }


def _fixed_batch(images: ImageDataset, limit: int) -> dict[str, Tensor]:
    """Return a batch of at most `limit` images, always the same."""
    indices = fixed_subset(len(images), limit, seed=1).tolist()
    return images.__getitems__(indices) if indices else {"image": torch.empty(0)}
