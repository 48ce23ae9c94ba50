"""Fidelity of images to references, image by image: PSNR and SSIM."""

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, WINDOW_STD = 11, 1.5
"""Side and standard deviation, in pixels, of the Gaussian window of SSIM."""
K1, K2 = 0.01, 0.03
"""Constants of SSIM that keep flat windows stable."""


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
    side = min(WINDOW, *(size - (size + 1) % 2 for size in images.shape[-2:]))
    offsets = torch.arange(side, dtype=torch.float64, device=images.device) - side // 2
    window = (-(offsets**2) / (2 * WINDOW_STD**2)).exp()
    window /= window.sum()

    def local_mean(x: Tensor) -> Tensor:
        x = x.flatten(0, 1)[:, None]
        return F.conv2d(F.conv2d(x, window[None, None, :, None]), window[None, None, None])

    x, y = images.double(), reference.double()
    mean_x, mean_y = local_mean(x), local_mean(y)
    variances = local_mean(x * x) - mean_x**2 + local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2) / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))
    return similarity.reshape(len(images), -1).mean(1)
