"""Fidelity of images to references, image by image: PSNR, SSIM, errors in the units of the values, spectra."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..objectives.similarity import similarity_map


def psnr(images: Tensor, reference: Tensor, data_range: float = 1.0) -> Tensor:
    """Return the peak signal-to-noise ratio of each image, in dB, (N,); infinite for equal images.

    images, reference: (N, C, H, W) whose values span `data_range`.
    """
    error = (images.double() - reference.double()).square().flatten(1).mean(1)
    return 10 * (data_range**2 / error).log10()


def ssim(images: Tensor, reference: Tensor, data_range: float = 1.0) -> Tensor:
    """Return the structural similarity of each image, at most 1, (N,) (Wang et al. 2004, equation 13).

    It is averaged over channels and all windows inside the image. Images smaller than the window of 11 × 11 pixels are
    compared in a smaller one, as large as fits with an odd side.

    images, reference: (N, C, H, W) whose values span `data_range`.
    """
    return similarity_map(images.double(), reference.double(), data_range).flatten(1).mean(1)


# ── values with a unit ────────────────────────────────────────────────────────────────────────────


def mae(images: Tensor, reference: Tensor) -> Tensor:
    """Return the mean absolute error of each image, in the unit of its values, (N,).

    images, reference: (N, C, H, W).
    """
    return (images.double() - reference.double()).abs().flatten(1).mean(1)


def rmse(images: Tensor, reference: Tensor) -> Tensor:
    """Return the root of the mean squared error of each image, in the unit of its values, (N,).

    images, reference: (N, C, H, W).
    """
    return (images.double() - reference.double()).square().flatten(1).mean(1).sqrt()


def pearson(images: Tensor, reference: Tensor) -> Tensor:
    """Return Pearson's correlation of the pixels of each image with its reference, in [-1, 1], (N,).

    It is averaged over channels, without those that are constant in either, where it is undefined; NaN if all are.

    images, reference: (N, C, H, W).
    """
    x, y = (values.double().flatten(2) for values in (images, reference))
    constant = (x.amax(2) == x.amin(2)) | (y.amax(2) == y.amin(2))  # exact, unlike a variance of 0
    x, y = x - x.mean(2, keepdim=True), y - y.mean(2, keepdim=True)
    correlation = F.cosine_similarity(x, y, dim=2, eps=0).clamp(-1, 1)
    return correlation.masked_fill(constant, torch.nan).nanmean(1)


# ── spectra ───────────────────────────────────────────────────────────────────────────────────────


def sam(images: Tensor, reference: Tensor) -> Tensor:
    """Return the mean angle between the spectra of each image and its reference, in degrees, 0 to 180, (N,).

    The spectrum of a pixel is the vector of its channels (spectral angle mapper, Kruse et al. 1993). Pixels with a
    vector of zeros have no angle and are left out; NaN if all are.

    images, reference: (N, C, H, W).
    """
    x, y = images.double(), reference.double()
    norm_x, norm_y = (torch.linalg.vector_norm(values, dim=1, keepdim=True) for values in (x, y))
    u, v = x / norm_x, y / norm_y  # NaN where a vector is zero
    sine, cosine = (torch.linalg.vector_norm(w, dim=1) for w in (u - v, u + v))  # of half the angle, up to a factor
    return (2 * torch.atan2(sine, cosine)).rad2deg().flatten(1).nanmean(1)


def ergas(images: Tensor, reference: Tensor, ratio: float) -> Tensor:
    """Return the relative error over all channels, at least 0, 0 for equal images, without a unit, (N,).

    It is 100 · h/l · sqrt(mean over channels of (RMSE / mean of the reference)²) (ERGAS, Wald 2000); not finite where
    the mean of a channel is 0.

    images, reference: (N, C, H, W); ratio: l/h, the pixel size of the spectral image over that of the sharp one, 4 for
    most satellites.
    """
    error = (images.double() - reference.double()).square().flatten(2).mean(2)
    mean = reference.double().flatten(2).mean(2)
    return 100 / ratio * (error / mean.square()).mean(1).sqrt()
