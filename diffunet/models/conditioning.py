"""Conditioning inputs of the U-Net, and the embeddings that produce them.

There are three routes into the network. An embedding turns the value of one condition (the time, a label) into a
`Conditioning` on one route and owns the representation of an absent value, so the network does not depend on which
conditions exist.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core.runtime import full_precision


@dataclass(frozen=True)
class Conditioning:
    """The conditioning inputs of a U-Net: `Conditioning()` is unconditional, and `+` combines two.

    A batch axis of 1 stands for the whole batch, a spatial axis of 1 for every position.
    """

    vector: Tensor | None = None
    """(B, D): modulates every block. Several vectors are added."""
    tokens: Tensor | None = None
    """(B, N, D): keys and values of cross-attention. Several sets are concatenated."""
    token_mask: Tensor | None = None
    """(B, N) bool: False for padding, which is not attended to. None: attend to all tokens."""
    planes: Tensor | None = None
    """(B, C, *S): extra input channels. Several are concatenated."""

    def __add__(self, other: "Conditioning") -> "Conditioning":
        masked = self.token_mask is not None or other.token_mask is not None
        return Conditioning(
            vector=_merge(self.vector, other.vector, torch.add),
            tokens=_merge(self.tokens, other.tokens, _concat_broadcast),
            token_mask=_merge(self.mask(), other.mask(), _concat_broadcast) if masked else None,
            planes=_merge(self.planes, other.planes, _concat_broadcast),
        )

    def mask(self) -> Tensor | None:
        """Return the token mask, (B, N) bool, all True if there is none; None without tokens."""
        if self.tokens is None or self.token_mask is not None:
            return self.token_mask
        return self.tokens.new_ones(self.tokens.shape[:2], dtype=torch.bool)


def _merge(a: Tensor | None, b: Tensor | None, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor | None:
    return b if a is None else a if b is None else combine(a, b)


def _concat_broadcast(a: Tensor, b: Tensor) -> Tensor:
    """Return a and b concatenated along axis 1, with the other axes broadcast."""
    others = torch.broadcast_shapes(a[:, 0].shape, b[:, 0].shape)
    return torch.cat([part.expand(others[:1] + part.shape[1:2] + others[1:]) for part in (a, b)], dim=1)


class TimeEmbedding(nn.Module):
    """The time as a vector: sinusoids (Vaswani et al. 2017, section 3.5), then a small MLP.

    Frequencies fall geometrically from 1 to 1/10000 over half the channels. With `freq_shift` 1 the last one is exactly
    1/10000, as in DDPM 2020; with 0 they end one step above it, as in guided-diffusion.
    """

    frequencies: Tensor

    def __init__(self, vector_dim: int, channels: int, freq_shift: int = 0):
        super().__init__()
        half = channels // 2
        exponent = torch.arange(half, device="cpu") / (half - freq_shift)  # as a meta tensor it costs seconds
        frequencies = torch.exp(-math.log(10000) * exponent).to(torch.get_default_device())
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.mlp = _mlp(channels, vector_dim)

    def forward(self, t: Tensor) -> Conditioning:
        """t: (B,), or one number for the whole batch."""
        angle = t.reshape(-1, 1).float() * self.frequencies  # (B, C/2)
        sinusoids = torch.cat([angle.cos(), angle.sin()], dim=1)  # (B, C)
        with full_precision(t.device):  # in 16 bits neighboring times would be one
            return Conditioning(vector=self.mlp(sinusoids.to(next(self.mlp.parameters()).dtype)))


class LabelEmbedding(nn.Module):
    """A class as a vector, with one more row for the null label."""

    def __init__(self, vector_dim: int, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        self.table = nn.Embedding(num_classes + 1, vector_dim)

    def forward(self, label: Tensor | None, keep_mask: Tensor | None = None) -> Conditioning:
        """label: (B,) integers in [0, num_classes), or -1: absent. keep_mask: (B,) bool, False drops the label."""
        null_label = torch.full((), self.num_classes, device=self.table.weight.device)  # unlike a copy, without a sync
        if label is None:
            label = null_label[None]
        else:
            present = label >= 0 if keep_mask is None else (label >= 0) & keep_mask
            label = torch.where(present, label, null_label)
        return Conditioning(vector=self.table(label))


class VectorEmbedding(nn.Module):
    """Numbers about an example (a pose, a camera, the strength of an attribute) as a vector: a small MLP."""

    def __init__(self, vector_dim: int, width: int):
        super().__init__()
        self.mlp = _mlp(width, vector_dim)
        self.nothing = nn.Parameter(torch.zeros(1, vector_dim))  # the null embedding

    def forward(self, numbers: Tensor | None, keep_mask: Tensor | None = None) -> Conditioning:
        """numbers: (B, width), of about unit scale; a row with a NaN is absent. keep_mask: (B,), False drops it."""
        if numbers is None:
            return Conditioning(vector=self.nothing)
        present = ~numbers.isnan().any(dim=1, keepdim=True)  # (B, 1)
        vector = self.mlp(torch.where(present, numbers, 0.0))  # a NaN would reach the gradient, although it is not used
        if keep_mask is not None:
            present = present & keep_mask[:, None]
        return Conditioning(vector=torch.where(present, vector, self.nothing))


class AugmentationEmbedding(nn.Module):
    """The augmentation parameters of a training image as a vector; absent means not augmented, a zero vector."""

    def __init__(self, vector_dim: int, width: int):
        super().__init__()
        self.project = nn.Linear(width, vector_dim, bias=False)

    def forward(self, augmentation: Tensor | None, keep_mask: Tensor | None = None) -> Conditioning:
        """augmentation: (B, width), zeros for an image that is not augmented. Never dropped: keep_mask is ignored."""
        return Conditioning() if augmentation is None else Conditioning(vector=self.project(augmentation))


class TokenEmbedding(nn.Module):
    """The output of a text encoder, or of any other encoder of sequences, as tokens for cross-attention."""

    def __init__(self, token_dim: int, width: int):
        super().__init__()
        self.project = nn.Linear(width, token_dim)

    def forward(self, tokens: Tensor | tuple[Tensor, Tensor] | None, keep_mask: Tensor | None = None) -> Conditioning:
        """tokens: (B, N, width), alone or with the encoder's attention mask, (B, N), zero for padding.

        keep_mask: (B,) bool, False drops all tokens of an example: they are masked out.
        """
        if tokens is None:
            return Conditioning()
        encoded, mask = tokens if isinstance(tokens, tuple) else (tokens, None)
        mask = None if mask is None else mask.bool()
        if keep_mask is not None:
            mask = keep_mask[:, None].expand(-1, encoded.shape[1]) if mask is None else mask & keep_mask[:, None]
        return Conditioning(tokens=self.project(encoded), token_mask=mask)


class TextEmbedding(nn.Module):
    """Text as tokens for cross-attention, and their mean as a vector (Saharia et al. 2022, section 2.1).

    The encoder maps a batch of texts to (hidden states (B, L, width), mask (B, L) bool, False for padding). A text
    without any token is absent: all of its tokens are masked, and the vector is a learned one.
    """

    def __init__(self, encoder: nn.Module, width: int, token_dim: int, vector_dim: int):
        super().__init__()
        self.encoder = encoder
        self.to_tokens = nn.Linear(width, token_dim)
        self.to_vector = nn.Linear(width, vector_dim)
        self.null_vector = nn.Parameter(torch.zeros(1, vector_dim))

    def forward(self, text: Tensor | None, keep_mask: Tensor | None = None) -> Conditioning:
        """text: (B, L, ...), the input of the encoder. keep_mask: (B,) bool, False drops the text."""
        if text is None:
            return Conditioning(vector=self.null_vector)
        hidden, mask = self.encoder(text)
        if keep_mask is not None:
            mask = mask & keep_mask[:, None]
        number = mask.sum(dim=1, keepdim=True)  # (B, 1)
        mean = (hidden * mask[..., None]).sum(dim=1) / number.clamp(min=1)  # (B, width)
        vector = torch.where(number > 0, self.to_vector(mean), self.null_vector)
        return Conditioning(vector=vector, tokens=self.to_tokens(hidden), token_mask=mask)


class PlaneEmbedding(nn.Module):
    """A conditioning image (to upscale, colorize or inpaint) as extra input channels.

    One more plane is 1 where the image is present; both are 0 where it is absent, which NaN stands for, or dropped.
    `plane_channels` of the U-Net is therefore `channels + 1`.
    """

    null_planes: Tensor

    def __init__(self, channels: int, dims: int = 2):
        super().__init__()
        self.register_buffer("null_planes", torch.zeros(1, channels + 1, *[1] * dims), persistent=False)

    def forward(self, image: Tensor | None, keep_mask: Tensor | None = None) -> Conditioning:
        """image: (B, channels, *S), with the size of x_t, NaN where absent. keep_mask: (B,) bool, False drops it."""
        if image is None:
            return Conditioning(planes=self.null_planes)
        present = ~image.isnan().flatten(1).any(1)
        if keep_mask is not None:
            present = present & keep_mask
        planes = torch.cat([image, torch.ones_like(image[:, :1])], dim=1)
        return Conditioning(planes=torch.where(present.reshape(-1, *[1] * (planes.ndim - 1)), planes, 0.0))


def _mlp(width: int, vector_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, vector_dim), nn.SiLU(), nn.Linear(vector_dim, vector_dim))
