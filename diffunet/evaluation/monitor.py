"""Signs of how a run is doing, cheap enough to look at while it trains. docs/training.md says how to read them."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from ..data.dataset import ImageDataset, normalize
from .features import PixelFeatures
from .metrics import jackknife_error, kernel_distance
from ..objectives.base import NOISE_BINS, Objective, noise_bins

LOOKED_AT = 256
"""ImageDataset, at most, on which the losses are measured: held out, and as many trained on."""
COMPARED = 1000
"""Real pictures, at most, that drawn ones are compared with."""
CHUNK = 64


class Monitor:
    """What to measure of a model with this objective, trained on some pictures while others were held out.

    The noise is the same every time, so that two moments of a run, or two runs, can be compared.
    """

    def __init__(self, objective: Objective, trained: ImageDataset, held_out: ImageDataset):
        self.objective = objective
        self.bit_depth = trained.config.bit_depth
        number = min(LOOKED_AT, len(held_out), len(trained))
        self.looked_at = {"val_loss": _some(held_out, number), "train_eval_loss": _some(trained, number)}
        self.real = _some(trained, COMPARED)["image"]

    def __call__(self, model: Callable, drawn: Tensor, device: torch.device) -> dict[str, float]:
        """Numbers for the log, of a model on a device and pictures that it drew, integers (N, C, H, W).

        val_loss, train_eval_loss: unweighted, of pictures it never saw and of such as it did; `_error`: standard
        error of their difference; val_loss_noise0-25, ...: by noise, in percent.
        tint_0, ...: mean of drawn less real, by channel, from 0 to 1; contrast_0, ...: their spreads' quotient.
        kernel_distance, ..._error: of the pixels of the `drawn_images` drawn ones and of real ones; 0 is best.
        health_seconds: what all this took.
        """
        began = time.monotonic()
        signs = self.losses(model, device) | self.colours(drawn) | self.distance(drawn)
        return signs | {"health_seconds": round(time.monotonic() - began, 2)}

    def losses(self, model: Callable, device: torch.device) -> dict[str, float]:
        found: dict[str, float] = {}
        errors = {}
        for name, batch in self.looked_at.items():
            if not len(batch["image"]):
                return {}
            by_band = self._errors(model, batch, device)                          # (NOISE_BINS, N)
            errors[name] = by_band.mean(0)
            found[name] = float(errors[name].mean())
            if name == "val_loss":
                middles = (torch.arange(NOISE_BINS) + 0.5) / NOISE_BINS
                for band, values in zip(noise_bins(middles), by_band, strict=True):
                    found[f"{name}_{band}"] = float(values.mean())
        if len(errors["train_eval_loss"]) > 1:
            variance = sum(error.var() / len(error) for error in errors.values())
            found["val_loss_error"] = float(variance**0.5)
        return found

    @torch.no_grad()
    def _errors(self, model: Callable, batch: dict[str, Tensor], device: torch.device) -> Tensor:
        """(NOISE_BINS, N): each picture once in each range of u, evenly spread within."""
        generator = torch.Generator().manual_seed(0)
        image = normalize(batch["image"], self.bit_depth)
        within = (torch.arange(len(image)) + 0.5) / len(image)
        bands = []
        for band in range(NOISE_BINS):
            u, noise = (band + within) / NOISE_BINS, torch.randn(image.shape, generator=generator)
            errors = []
            for rows in torch.arange(len(image)).split(CHUNK):
                asked = self.objective.add_noise(*(part[rows].to(device) for part in (image, noise, u)))
                conditions = {"label": batch["label"][rows].to(device)} if "label" in batch else {}
                errors.append(self.objective.error(model, asked, **conditions).cpu())
            bands.append(torch.cat(errors))
        return torch.stack(bands)

    def colours(self, drawn: Tensor) -> dict[str, float]:
        brightest = 2**self.bit_depth - 1
        sets = [pictures.float().div(brightest).transpose(0, 1).flatten(1) for pictures in (drawn, self.real)]
        (mean, spread), (real_mean, real_spread) = ((pixels.mean(1), pixels.std(1)) for pixels in sets)
        found = {f"tint_{channel}": float(off) for channel, off in enumerate(mean - real_mean)}
        ratio = spread / real_spread.clamp(min=1e-6)
        return found | {f"contrast_{channel}": float(times) for channel, times in enumerate(ratio)}

    def distance(self, drawn: Tensor) -> dict[str, float]:
        if len(drawn) < 4 or len(self.real) < 4:
            return {}
        a, b = map(PixelFeatures(self.bit_depth), (drawn, self.real))
        return {
            "kernel_distance": kernel_distance(a, b),
            "kernel_distance_error": float(jackknife_error(kernel_distance, a, b)),
            "drawn_images": len(drawn),
        }


def _some(pictures: ImageDataset, most: int) -> dict[str, Tensor]:
    """A batch of at most so many, always the same."""
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(1))[:most].tolist()
    return pictures.__getitems__(order) if order else {"image": torch.empty(0)}
