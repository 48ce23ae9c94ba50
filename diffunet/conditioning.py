"""What a U-Net can be told, and the embeddings that say it.

There are three routes into the network. An embedding turns one value (the time, a label) into a
`Conditioning` on one of them and owns what to say when that value is withheld, so the network
itself never asks which conditions exist.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Conditioning:
    """What the network is told; `Conditioning()` is nothing at all, and `+` says both."""

    vector: Tensor | None = None
    """(B, D) or (1, D): modulates every block. Several vectors add up."""
    tokens: Tensor | None = None
    """(B, N, D): read by cross-attention. Several sets stand one after the other."""
    planes: Tensor | None = None
    """(B, C, *S): stacked on the input."""

    def __add__(self, other: "Conditioning") -> "Conditioning":
        return Conditioning(
            vector=_merge(self.vector, other.vector, torch.add),
            tokens=_merge(self.tokens, other.tokens, lambda a, b: torch.cat([a, b], dim=1)),
            planes=_merge(self.planes, other.planes, lambda a, b: torch.cat([a, b], dim=1)),
        )


def _merge(a, b, both):
    return b if a is None else a if b is None else both(a, b)


class TimeEmbedding(nn.Module):
    """The time as a vector: sinusoids (Vaswani et al. 2017, section 3.5), then a small MLP.

    Frequencies fall from 1 to 1/10000 over half the channels; `freq_shift` 1 lets the last one be
    exactly 1/10000, as in DDPM 2020, and 0 stops one place short, as in guided-diffusion.
    """

    def __init__(self, vector_dim: int, channels: int, freq_shift: int = 0):
        super().__init__()
        half = channels // 2
        exponent = torch.arange(half) / (half - freq_shift)
        self.register_buffer("frequencies", torch.exp(-math.log(10000) * exponent), persistent=False)
        self.mlp = nn.Sequential(
            nn.Linear(channels, vector_dim), nn.SiLU(), nn.Linear(vector_dim, vector_dim)
        )

    def forward(self, t: Tensor) -> Conditioning:
        """t: (B,), or one number for the whole batch."""
        angle = t.reshape(-1, 1).float() * self.frequencies                       # (B, C/2)
        sinusoids = torch.cat([angle.cos(), angle.sin()], dim=1)                  # (B, C)
        return Conditioning(vector=self.mlp(sinusoids.to(self.mlp[0].weight.dtype)))


class LabelEmbedding(nn.Module):
    """A class as a vector, with one more row for "not told"."""

    def __init__(self, vector_dim: int, classes: int):
        super().__init__()
        self.classes = classes
        self.table = nn.Embedding(classes + 1, vector_dim)

    def forward(self, label: Tensor | None, told: Tensor | None = None) -> Conditioning:
        """label: (B,) integers in [0, classes); told: (B,) bool, False where to withhold it."""
        nothing = torch.tensor(self.classes, device=self.table.weight.device)
        if label is None:
            label = nothing[None]
        elif told is not None:
            label = torch.where(told, label, nothing)
        return Conditioning(vector=self.table(label))
