"""Layers of a U-Net: convolutions, norms, blocks, attention, resampling, skip connections.

Only the functions that make convolutions, pools and norms depend on the dimension and the border; every class works on
(B, C, *S) with one, two or three spatial axes. Every block is called `block(x, conditioning)`.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .conditioning import Conditioning

L = TypeVar("L", bound=Any)
"""A layer with a weight and perhaps a bias."""
Conv = Callable[..., nn.Module]
"""(in_channels, out_channels[, kernel_size[, stride]]) -> a convolution in the dimension and border of the network."""
Factors = tuple[int, ...]
"""By how much a resampling changes the size along each axis: 2, or 1 for an axis that keeps it."""
Norm = Callable[[int], nn.Module]
"""(channels) -> a norm, or a modulated norm."""
MAX_PAIRS = 512**2
"""Pairs of a query and a key whose weights may be stored for the backward pass, for each head of an example."""


# ── convolutions, pools and norms by dimension and border ─────────────────────────────────────────


def by_dims(name: str, dims: int) -> Callable[..., nn.Module]:
    """Return the layer of `torch.nn` for `dims` spatial axes, such as Conv2d."""
    return getattr(nn, f"{name}{dims}d")


def convolution(
    dims: int, padding: str, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int | Factors = 1
) -> nn.Module:
    """Return a convolution over `dims` axes; `"same"` keeps the size (at stride 1), `"valid"` is unpadded."""
    border = kernel_size // 2 if padding == "same" else 0
    return xavier_(by_dims("Conv", dims)(in_channels, out_channels, kernel_size, stride, border))


def transposed_convolution(
    factors: Factors, padding: str, in_channels: int, out_channels: int, kernel_size: int = 2, bias: bool = True
) -> nn.Module:
    """Return a transposed convolution with kernel 2 or 3 that doubles the size along the axes of factor 2.

    Except for kernel 3 and `"valid"`: the last position, which would depend on only one of its two neighbors, is then
    omitted. Along other axes the kernel is 1.
    """
    kernel = tuple(kernel_size if factor == 2 else 1 for factor in factors)
    border = tuple((side - 1) // 2 for side in kernel)
    output_padding = tuple(side % 2 if padding == "same" and side > 1 else 0 for side in kernel)
    layer = by_dims("ConvTranspose", len(factors))
    return kaiming_(layer(in_channels, out_channels, kernel, factors, border, output_padding, bias=bias))


def nearest(factors: Factors) -> nn.Upsample:
    """Return an enlargement by repeated positions."""
    return nn.Upsample(scale_factor=tuple(map(float, factors)))


def group_norm(groups: int, eps: float, channels: int) -> nn.GroupNorm:
    """Return a group norm (Wu & He 2018); with fewer groups where `groups` does not divide the channels."""
    return nn.GroupNorm(math.gcd(groups, channels), channels, eps)


def instance_norm(eps: float, channels: int) -> nn.GroupNorm:
    """Return a norm of each channel by itself (Ulyanov et al. 2016), with a scale and an offset."""
    return nn.GroupNorm(channels, channels, eps)


def xavier_(layer: L) -> L:
    """Initialize as DDPM does: uniform, variance 1 / fan_avg (Glorot & Bengio 2010), zero bias."""
    nn.init.xavier_uniform_(layer.weight)
    return _zero_bias(layer)


def kaiming_(layer: L) -> L:
    """Initialize for a ReLU after the layer: normal, variance 2 / fan_in (He et al. 2015), zero bias."""
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return _zero_bias(layer)


def _zero_bias(layer: L) -> L:
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def zero_init(layer: L) -> L:
    """Zero the weight of the last layer of a residual branch, so that the block starts as the identity."""
    nn.init.zeros_(layer.weight)
    return layer


# ── skips ─────────────────────────────────────────────────────────────────────────────────────────


def center_crop(x: Tensor, like: Tensor) -> Tensor:
    """Return the center of x in the size of `like`; x itself where the sizes agree, as with `"same"` borders."""
    for axis in range(2, x.ndim):
        spare = x.shape[axis] - like.shape[axis]
        x = x.narrow(axis, spare // 2, like.shape[axis]) if spare else x
    return x


def join(x: Tensor, skip: Tensor) -> Tensor:
    """Return x with the center of the skip as further channels, (B, C + C', *S)."""
    return torch.cat([x, center_crop(skip, x)], dim=1)


def without_skip(x: Tensor, skip: Tensor) -> Tensor:
    """Return x."""
    return x


# ── modulation of a block by the vector ───────────────────────────────────────────────────────────


def _per_channel(vector: Tensor, like: Tensor) -> Tensor:
    return vector.reshape(*vector.shape, *[1] * (like.ndim - 2))  # (B, C, 1, ...)


class Modulated(nn.Module):
    """A norm, modulated by the vector; the norm alone without one (`vector_dim` 0).

    shift: the vector is added before the norm, norm(h + W v) (DDPM 2020). scale_shift: it scales and shifts the output
    of the norm (AdaGN, Dhariwal & Nichol 2021, equation 10).
    """

    def __init__(self, channels: int, vector_dim: int, norm: Norm, modulation: str):
        super().__init__()
        self.norm = norm(channels)
        self.scales = modulation == "scale_shift"
        if vector_dim:
            self.project = xavier_(nn.Linear(vector_dim, (1 + self.scales) * channels))

    def forward(self, h: Tensor, vector: Tensor | None) -> Tensor:
        if vector is None:
            return self.norm(h)
        modulation = _per_channel(self.project(F.silu(vector)), h)
        if not self.scales:
            return self.norm(h + modulation)
        scale, shift = modulation.chunk(2, dim=1)
        return self.norm(h) * (1 + scale) + shift


# ── blocks ────────────────────────────────────────────────────────────────────────────────────────


class ResidualBlock(nn.Module):
    """Two convolutions with a residual connection; the vector modulates between them.

    `resize`, if given, halves or doubles the size on both branches (ADM 2021, from BigGAN).
    """

    own_shard = True  # its weights are gathered together where they are in shards

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        conv: Conv,
        norm: Norm,
        modulated: Norm,
        dropout: float,
        resize: nn.Module | None = None,
    ):
        super().__init__()
        self.norm = norm(in_channels)
        self.resize = resize or nn.Identity()
        self.conv_1 = conv(in_channels, out_channels)
        self.modulated = modulated(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv_2 = zero_init(conv(out_channels, out_channels))
        self.shortcut = nn.Identity() if in_channels == out_channels else conv(in_channels, out_channels, 1)

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        h = self.modulated(self.conv_1(self.resize(F.silu(self.norm(x)))), cond.vector)
        h = self.conv_2(self.dropout(F.silu(h)))
        return center_crop(self.shortcut(self.resize(x)), h) + h


class PlainBlock(nn.Module):
    """A convolution and ReLU; two of them are the double convolution of the first U-Nets (2015, 2016)."""

    own_shard = True  # its weights are gathered together where they are in shards

    def __init__(self, in_channels: int, out_channels: int, conv: Conv, norm: Norm, modulated: Norm, dropout: float):
        super().__init__()
        self.conv = kaiming_(conv(in_channels, out_channels))
        self.modulated = modulated(out_channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        return self.dropout(F.relu(self.modulated(self.conv(x), cond.vector)))


class Stack(nn.ModuleList):
    """Blocks in sequence, with the same conditioning; an empty one is the identity."""

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        for block in self:
            x = block(x, cond)
        return x


class IgnoreCond(nn.Module):
    """A layer as a block, without conditioning."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        return self.layer(x)


# ── attention ─────────────────────────────────────────────────────────────────────────────────────


def _attention(q: Tensor, k: Tensor, v: Tensor, to_out: nn.Module, like: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return attention of the queries, (B, heads, N, D), projected and in the shape of the feature map, (B, C, *S)."""
    h = rearrange(attend(q, k, v, mask), "b heads n d -> b n (heads d)")
    return rearrange(to_out(h), "b n c -> b c n").reshape(like.shape)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return softmax(q kᵀ / √D) v, (B, heads, N, D), for keys and values (B, heads, M, D).

    mask: bool, broadcast to (B, heads, N, M): which keys a query attends to, one of them at least.
    """
    # torch's kernel for CPUs spends two to six times as long as these products on its backward pass in bf16
    slow = q.requires_grad and q.device.type == "cpu" and q.dtype == torch.bfloat16
    if not slow or q.shape[2] * k.shape[2] > MAX_PAIRS:
        return F.scaled_dot_product_attention(q, k, v, mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return scores.softmax(dim=-1) @ v


class SelfAttention(nn.Module):
    """Every position of x attends to every other (Vaswani et al. 2017), as a residual branch."""

    own_shard = True  # its weights are gathered together where they are in shards

    def __init__(self, channels: int, heads: int, norm: Norm):
        super().__init__()
        self.heads = heads
        self.norm = norm(channels)
        self.to_qkv = xavier_(nn.Linear(channels, 3 * channels))
        self.to_out = zero_init(xavier_(nn.Linear(channels, channels)))

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        qkv = self.to_qkv(rearrange(self.norm(x), "b c ... -> b (...) c"))
        q, k, v = rearrange(qkv, "b n (three heads d) -> three b heads n d", three=3, heads=self.heads)
        return x + _attention(q, k, v, self.to_out, x)


class CrossAttention(nn.Module):
    """Every position of x attends to the tokens, as a residual branch; the identity without tokens."""

    own_shard = True  # its weights are gathered together where they are in shards

    def __init__(self, channels: int, heads: int, norm: Norm, token_dim: int):
        super().__init__()
        self.heads = heads
        self.norm = norm(channels)
        self.to_q = xavier_(nn.Linear(channels, channels))
        self.to_kv = xavier_(nn.Linear(token_dim, 2 * channels))
        self.to_out = zero_init(xavier_(nn.Linear(channels, channels)))

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        if cond.tokens is None:
            return x
        queries = self.to_q(rearrange(self.norm(x), "b c ... -> b (...) c"))
        q = rearrange(queries, "b n (heads d) -> b heads n d", heads=self.heads)
        k, v = rearrange(self.to_kv(cond.tokens), "b m (two heads d) -> two b heads m d", two=2, heads=self.heads)
        k, v = k.expand(len(x), -1, -1, -1), v.expand(len(x), -1, -1, -1)
        if cond.token_mask is None:
            return x + _attention(q, k, v, self.to_out, x)
        any_token = cond.token_mask.any(dim=1)  # a softmax over no token is NaN
        mask = rearrange(cond.token_mask | ~any_token[:, None], "b m -> b 1 1 m")
        return x + _attention(q, k, v, self.to_out, x, mask) * _per_channel(any_token[:, None], x)


# ── resampling ────────────────────────────────────────────────────────────────────────────────────


def unshuffle(x: Tensor, side: int) -> Tensor:
    """Return (B, C, *S) with each block of positions as channels of one: (B, C * side^dims, *(S / side)).

    In two dimensions it is torch's `pixel_unshuffle`, the inverse of the subpixel convolution's (Shi et al. 2016).
    """
    return rearrange(x, _blocks(x.ndim - 2), **dict.fromkeys("pqr"[: x.ndim - 2], side)) if side > 1 else x


def shuffle(x: Tensor, side: int) -> Tensor:
    """Return what `unshuffle` was applied to."""
    if side == 1:
        return x
    apart, together = _blocks(x.ndim - 2).split(" -> ")
    return rearrange(x, f"{together} -> {apart}", **dict.fromkeys("pqr"[: x.ndim - 2], side))


def _blocks(dims: int) -> str:
    """Return the pattern by which blocks of positions become channels."""
    sides, axes = "pqr"[:dims], "xyz"[:dims]
    places = " ".join(f"({axis} {side})" for axis, side in zip(axes, sides, strict=True))
    return f"b c {places} -> b (c {' '.join(sides)}) {' '.join(axes)}"


class Downsample(nn.Module):
    """Half the size, by a convolution with stride 2 centered on every second position; stride 1 along kept axes."""

    def __init__(self, channels: int, conv: Conv, factors: Factors):
        super().__init__()
        self.conv = conv(channels, channels, stride=factors)

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        return self.conv(x)


class DownsampleEndPadded(nn.Module):
    """The same, padded by one position at the end of each axis and none at the start, as in DDPM 2020."""

    def __init__(self, channels: int, factors: Factors):
        super().__init__()
        self.border = tuple(n for factor in reversed(factors) for n in ((0, 1) if factor == 2 else (1, 1)))
        self.conv = convolution(len(factors), "valid", channels, channels, stride=factors)

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        return self.conv(F.pad(x, self.border))


class Upsample(nn.Module):
    """Twice the size: nearest-neighbor interpolation, then a convolution."""

    def __init__(self, in_channels: int, out_channels: int, conv: Conv, factors: Factors):
        super().__init__()
        self.conv = conv(in_channels, out_channels)
        self.factors = tuple(map(float, factors))

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=self.factors, mode="nearest"))
