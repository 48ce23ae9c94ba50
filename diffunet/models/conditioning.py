"""What a U-Net can be told, and the embeddings that say it.

There are three routes into the network. An embedding turns one value (the time, a label) into a
`Conditioning` on one of them and owns what to say when that value is withheld, so the network
itself never asks which conditions exist.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Conditioning:
    """What the network is told; `Conditioning()` is nothing at all, and `+` says both.

    Wherever B stands, 1 means the same for the whole batch; wherever S stands, 1 means the same everywhere.
    """

    vector: Tensor | None = None
    """(B, D): modulates every block. Several vectors add up."""
    tokens: Tensor | None = None
    """(B, N, D): read by cross-attention. Several sets stand one after the other."""
    token_mask: Tensor | None = None
    """(B, N) bool: False for padding, which is not read. None: every token is read."""
    planes: Tensor | None = None
    """(B, C, *S): stacked on the input. Several stand one after the other."""

    def __add__(self, other: "Conditioning") -> "Conditioning":
        masked = self.token_mask is not None or other.token_mask is not None
        return Conditioning(
            vector=_merge(self.vector, other.vector, torch.add),
            tokens=_merge(self.tokens, other.tokens, _concat_broadcast),
            token_mask=_merge(self.mask(), other.mask(), _concat_broadcast) if masked else None,
            planes=_merge(self.planes, other.planes, _concat_broadcast),
        )

    def mask(self) -> Tensor | None:
        """(B, N) bool: which tokens are read; None without tokens."""
        if self.tokens is None or self.token_mask is not None:
            return self.token_mask
        return self.tokens.new_ones(self.tokens.shape[:2], dtype=torch.bool)


def _merge(a, b, both):
    return b if a is None else a if b is None else both(a, b)


def _concat_broadcast(a: Tensor, b: Tensor) -> Tensor:
    """a and b along axis 1, each repeated along the other axes where it has 1."""
    others = torch.broadcast_shapes(a[:, 0].shape, b[:, 0].shape)
    return torch.cat([part.expand(others[:1] + part.shape[1:2] + others[1:]) for part in (a, b)], dim=1)


class TimeEmbedding(nn.Module):
    """The time as a vector: sinusoids (Vaswani et al. 2017, section 3.5), then a small MLP.

    Frequencies fall from 1 to 1/10000 over half the channels; `freq_shift` 1 lets the last one be
    exactly 1/10000, as in DDPM 2020, and 0 stops one place short, as in guided-diffusion.
    """

    def __init__(self, vector_dim: int, channels: int, freq_shift: int = 0):
        super().__init__()
        half = channels // 2
        exponent = torch.arange(half, device="cpu") / (half - freq_shift)         # as a meta tensor it costs seconds
        frequencies = torch.exp(-math.log(10000) * exponent).to(torch.get_default_device())
        self.register_buffer("frequencies", frequencies, persistent=False)
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
        nothing = torch.full((), self.classes, device=self.table.weight.device)   # unlike a copy it waits for nothing
        if label is None:
            label = nothing[None]
        elif told is not None:
            label = torch.where(told, label, nothing)
        return Conditioning(vector=self.table(label))


class VectorEmbedding(nn.Module):
    """Numbers about an example (a pose, a camera, an attribute's strength) as a vector: a small MLP."""

    def __init__(self, vector_dim: int, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, vector_dim), nn.SiLU(), nn.Linear(vector_dim, vector_dim))
        self.nothing = nn.Parameter(torch.zeros(1, vector_dim))

    def forward(self, numbers: Tensor | None, told: Tensor | None = None) -> Conditioning:
        """numbers: (B, width), best of about unit size; told: (B,) bool, False where to withhold them."""
        if numbers is None:
            return Conditioning(vector=self.nothing)
        vector = self.mlp(numbers)
        return Conditioning(vector=vector if told is None else torch.where(told[:, None], vector, self.nothing))


class AugmentationEmbedding(nn.Module):
    """How a training image was distorted, as a vector; nothing said is not distorted, and adds nothing."""

    def __init__(self, vector_dim: int, width: int):
        super().__init__()
        self.project = nn.Linear(width, vector_dim, bias=False)

    def forward(self, augmentation: Tensor | None, told: Tensor | None = None) -> Conditioning:
        """augmentation: (B, width), zeros for an image as it is. Never withheld, whatever `told` is: it happened."""
        return Conditioning() if augmentation is None else Conditioning(vector=self.project(augmentation))


class TokenEmbedding(nn.Module):
    """What an encoder of texts, or of anything in pieces, says: its tokens in the width of cross-attention."""

    def __init__(self, token_dim: int, width: int):
        super().__init__()
        self.project = nn.Linear(width, token_dim)

    def forward(self, tokens: Tensor | tuple[Tensor, Tensor] | None, told: Tensor | None = None) -> Conditioning:
        """tokens: (B, N, width), or with them the encoder's attention mask, (B, N), zero for padding;
        told: (B,) bool, False where to withhold them. What is withheld is not read.
        """
        if tokens is None:
            return Conditioning()
        tokens, mask = tokens if isinstance(tokens, tuple) else (tokens, None)
        said = Conditioning(tokens=self.project(tokens), token_mask=None if mask is None else mask.bool())
        return said if told is None else replace(said, token_mask=said.mask() & told[:, None])


class PlaneEmbedding(nn.Module):
    """An image that the output shall follow (to sharpen, to colour, to fill in) as planes on the input.

    One more plane says where it is told: 1 there, and 0, with the image at 0, where it is withheld.
    So `plane_channels` of the U-Net is `channels + 1`.
    """

    def __init__(self, channels: int, dims: int = 2):
        super().__init__()
        self.register_buffer("nothing", torch.zeros(1, channels + 1, *[1] * dims), persistent=False)

    def forward(self, image: Tensor | None, told: Tensor | None = None) -> Conditioning:
        """image: (B, channels, *S), in the size of x_t; told: (B,) bool, False where to withhold it."""
        if image is None:
            return Conditioning(planes=self.nothing)
        planes = torch.cat([image, torch.ones_like(image[:, :1])], dim=1)
        if told is not None:
            planes = planes * told.reshape(-1, *[1] * (planes.ndim - 1))          # (B, 1, 1, ...)
        return Conditioning(planes=planes)
