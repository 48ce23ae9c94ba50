"""Pansharpening: pairs by Wald's protocol, and the methods that a network has to surpass.

A panchromatic image is sharp, a multispectral one has the bands. As no sensor has both, the multispectral image is made
coarser by their ratio and is itself the truth (Wald, Ranchin & Mangolini 1997).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def degraded(bands: Tensor, ratio: int = 4) -> Tensor:
    """Return bands (B, H, W) made coarser by a ratio that divides both sides, and enlarged again, by bicubic filters.

    Raise ValueError if the ratio does not divide the sides.
    """
    height, width = bands.shape[-2:]
    if height % ratio or width % ratio:
        raise ValueError(f"ratio {ratio} does not divide {height}×{width} pixels; crop the bands")
    coarse = F.interpolate(bands[None].float(), (height // ratio, width // ratio), mode="bicubic", antialias=True)
    return enlarged(coarse[0], ratio)


def enlarged(bands: Tensor, ratio: int) -> Tensor:
    """Return bands (B, h, w) as (B, ratio h, ratio w), by bicubic interpolation."""
    # Only with antialias is torch's kernel the one of Keys 1981, which keeps linear ramps.
    return F.interpolate(bands[None].float(), scale_factor=ratio, mode="bicubic", antialias=True)[0]


def wald_pair(bands: Tensor, pan: Tensor | None = None, ratio: int = 4) -> tuple[Tensor, Tensor]:
    """Return an image, (1 + B, H, W), the panchromatic one and the coarse bands, and its target, the bands (B, H, W).

    pan: (1, H, W), already as coarse as the bands; None: the mean of the bands.
    """
    pan = bands.float().mean(0, keepdim=True) if pan is None else pan.float()
    return torch.cat([pan, degraded(bands, ratio)]), bands.float()


def brovey(image: Tensor) -> Tensor:
    """Return the coarse bands of `wald_pair` times the sharp image over their mean, (B, H, W) (Gillespie 1987)."""
    pan, coarse = image[:1].float(), image[1:].float()
    return coarse * pan / coarse.mean(0, keepdim=True).clamp(min=1e-6)
