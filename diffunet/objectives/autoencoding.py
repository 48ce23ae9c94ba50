"""Autoencoding: the error of reconstructed images, and the divergence of their latents from a normal distribution."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from ..core.rng import BatchRNG
from ..core.settings import Settings

SCALES = (0.25, 0.5, 0.75, 1.0)
"""Sides of the transformed latents, as shares of their own."""
Distance = Callable[[Tensor, Tensor], Tensor]
"""(images, references) -> (B,)."""


class AutoencodingConfig(Settings):
    """Reconstruction by a variational autoencoder (Kingma & Welling 2013), weighted as in latent diffusion."""

    type: Literal["autoencoding"] = "autoencoding"
    l1: float = Field(1.0, ge=0)
    """Factor of the absolute error of a pixel."""
    l2: float = Field(0.0, ge=0)
    """Factor of the squared error of a pixel."""
    perceptual: float = Field(0.0, ge=0)
    """Factor of LPIPS (Zhang et al. 2018), for sharper images; 1 is usual. It needs pip install lpips."""
    perceptual_weights: str = "vgg16"
    """The network of LPIPS, VGG16: a file in the format of torchvision's, or vgg16, which torchvision downloads."""
    kl: float = Field(1e-6, ge=0)
    """Factor of the KL divergence in nats, summed over a latent, beside an error that is summed over the image."""
    kl_warmup: float = Field(0.1, ge=0, le=1)
    """Share of the training in which that factor rises from 0, linearly."""
    equivariance: float = Field(0.5, ge=0, le=1)
    """Share of the examples whose latents are scaled and turned, all of a batch alike, and whose images have to follow
    (EQ-VAE, Kouzelis et al. 2025): latents become smoother, and diffusion on them easier; 0: none."""

    @model_validator(mode="after")
    def _some_error_counts(self):
        if not (self.l1 or self.l2 or self.perceptual):
            raise ValueError("l1, l2 and perceptual: all 0, so that nothing is learned; raise one")
        return self


@dataclass(frozen=True)
class Transformed:
    """Some examples of a batch whose latents are transformed alike."""

    rows: Tensor
    """Indices (n,) int64."""
    turns: int = 0
    """Quarter turns."""
    scale: float = 1.0
    """Share of the sides."""

    def __call__(self, values: Tensor, step: int = 1) -> Tensor:
        """Return these rows of values (B, C, H, W), turned and scaled to multiples of `step`, at least one."""
        values = values[self.rows].rot90(self.turns, (2, 3))
        if self.scale == 1:
            return values
        size = [max(1, round(side / step * self.scale)) * step for side in values.shape[2:]]
        return F.interpolate(values, size, mode="bilinear", antialias=True)


class Autoencoding:
    """The loss of an autoencoder.

        objective.loss(autoencoder, image)                            # {"loss": (B,), ...}

    With the number P of values of an image, that of an example is

        (sum_p |x_p - x̂_p| + kl D(N(mean, variance) || N(0, 1))) / P

    and for a linear autoencoder and squared errors instead, its minimum is that of probabilistic PCA (Lucas et al.
    2019, "Don't blame the ELBO").
    """

    def __init__(self, config: AutoencodingConfig, distance: Distance | None = None):
        """distance: what `perceptual` is the factor of, of images in [-1, 1]."""
        self.config = config
        self.distance = distance
        self.kl = config.kl

    def at(self, progress: float) -> Self:
        """Return the objective after this share of the training: the weight of the divergence rises at first."""
        changed = copy.copy(self)
        changed.kl = self.config.kl * min(1.0, progress / self.config.kl_warmup if self.config.kl_warmup else 1.0)
        return changed

    def loss(
        self, model: Callable[..., Any], image: Tensor, rng: BatchRNG = BatchRNG(), **ignored: Any
    ) -> dict[str, Tensor]:
        """Return `loss`, its terms and `kl`, the divergence in nats, (B,) each, of images (B, C, H, W) in [-1, 1].

        model: `models.autoencoder.Autoencoder`, called with the image and how to sample from mean and log-variance.
        """
        groups = self._groups(rng.uniform_like(image) < self.config.equivariance, rng)

        def sample(mean: Tensor, log_variance: Tensor | None) -> list[Tensor]:
            noise = rng.normal_like(mean)
            latent = mean if log_variance is None else mean + (0.5 * log_variance).exp() * noise
            return [group(latent) for group in groups]

        mean, log_variance, reconstructed = model(image, sample)
        factor = image.shape[-1] // mean.shape[-1]
        terms: dict[str, Tensor] = {}
        for group, images in zip(groups, reconstructed, strict=True):
            for name, values in self.terms(images.to(image.dtype), group(image, factor)).items():
                terms.setdefault(name, image.new_zeros(len(image)))
                terms[name] = terms[name].index_copy(0, group.rows, values)
        divergence = _divergence(mean.to(image.dtype), log_variance)
        losses = {"loss": self._total(terms) + self.kl * divergence / image[0].numel()}
        return losses | {f"loss_{name}": values for name, values in terms.items()} | {"kl": divergence}

    def _groups(self, apart: Tensor, rng: BatchRNG) -> list[Transformed]:
        """Return the examples that stay, and those that are `apart`, (B,) bool, with one transformation for them."""
        turns, scale = (int(rng.uniform() * number) for number in (4, len(SCALES)))
        groups = [Transformed((~apart).nonzero()[:, 0]), Transformed(apart.nonzero()[:, 0], turns, SCALES[scale])]
        return [group for group in groups if len(group.rows)]

    def error(self, images: Tensor, reference: Tensor) -> Tensor:
        """Return the error of reconstructed images (B, C, H, W), without the divergence, (B,)."""
        return self._total(self.terms(images, reference))

    def _total(self, terms: dict[str, Tensor]) -> Tensor:
        return torch.stack([getattr(self.config, name) * values for name, values in terms.items()]).sum(0)

    def terms(self, images: Tensor, reference: Tensor) -> dict[str, Tensor]:
        """Return the error of each term with a factor, (B,)."""
        errors = {}
        if self.config.l1:
            errors["l1"] = (images - reference).abs().flatten(1).mean(1)
        if self.config.l2:
            errors["l2"] = (images - reference).square().flatten(1).mean(1)
        if self.config.perceptual and self.distance:
            errors["perceptual"] = self.distance(images, reference)
        return errors


def _divergence(mean: Tensor, log_variance: Tensor | None) -> Tensor:
    """Return the KL divergence of normal distributions (B, ...) from the standard one, in nats, (B,)."""
    if log_variance is None:
        return mean.new_zeros(len(mean))
    log_variance = log_variance.to(mean.dtype)
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1)
