"""The parts of a U-Net: convolutions, norms, blocks, attention, resampling, join.

Only the functions that make convolutions, pools and norms know the dimension and the border; every class
works on (B, C, *S) with one, two or three spatial axes. Every block is called `block(x, conditioning)`.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .conditioning import Conditioning

# Builders handed down by the U-Net: (in_channels, out_channels[, kernel_size[, stride]]) and (channels).
Conv = Callable[..., nn.Module]
Norm = Callable[[int], nn.Module]


# ── made once, in the dimension and with the border of the network ────────────────────────────────


def convolution(
    dims: int, padding: str, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1
) -> nn.Module:
    """A convolution over `dims` axes; `"same"` keeps the size (at stride 1), `"valid"` reads no border."""
    border = kernel_size // 2 if padding == "same" else 0
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    return xavier_(layer(in_channels, out_channels, kernel_size, stride, border))


def transposed_convolution(
    dims: int, padding: str, in_channels: int, out_channels: int, kernel_size: int = 2, bias: bool = True
) -> nn.Module:
    """A transposed convolution with stride 2 and kernel 2 or 3.

    It doubles the size, but for kernel 3 and `"valid"`: then the last place, which would know only one
    of its two neighbours, is left out.
    """
    layer = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    border, more = (kernel_size - 1) // 2, kernel_size % 2 if padding == "same" else 0
    return kaiming_(layer(in_channels, out_channels, kernel_size, 2, border, more, bias=bias))


def max_pool(dims: int) -> nn.Module:
    return (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[dims - 1](2)


def average_pool(dims: int) -> nn.Module:
    return (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[dims - 1](2)


def group_norm(groups: int, eps: float, channels: int) -> nn.GroupNorm:
    """Group normalisation (Wu & He 2018); fewer groups where `groups` does not divide the channels."""
    return nn.GroupNorm(math.gcd(groups, channels), channels, eps)


def batch_norm(dims: int, eps: float, channels: int) -> nn.Module:
    """Batch normalisation (Ioffe & Szegedy 2015)."""
    return (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1](channels, eps)


def no_norm(channels: int) -> nn.Module:
    return nn.Identity()


def xavier_(layer: nn.Module) -> nn.Module:
    """DDPM's start: uniform, variance 1 / fan_avg (that is Glorot & Bengio 2010), and no bias."""
    nn.init.xavier_uniform_(layer.weight)
    return _bias_at_zero(layer)


def kaiming_(layer: nn.Module) -> nn.Module:
    """The start for a ReLU behind it: normal, variance 2 / fan_in (He et al. 2015), and no bias."""
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return _bias_at_zero(layer)


def _bias_at_zero(layer: nn.Module) -> nn.Module:
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def zero_init(layer: nn.Module) -> nn.Module:
    """For the last layer of a residual branch: at zero, the block starts as the identity."""
    nn.init.zeros_(layer.weight)
    return layer


# ── skips ─────────────────────────────────────────────────────────────────────────────────────────


def centre(x: Tensor, like: Tensor) -> Tensor:
    """The middle of x in the size of `like`; x itself where the sizes agree, as with `"same"` borders."""
    for axis in range(2, x.ndim):
        spare = x.shape[axis] - like.shape[axis]
        x = x.narrow(axis, spare // 2, like.shape[axis]) if spare else x
    return x


def join(x: Tensor, skip: Tensor) -> Tensor:
    """A skip connection: the skip's centre stacked on x, (B, C + C', *S)."""
    return torch.cat([x, centre(skip, x)], dim=1)


# ── how the vector enters a block ─────────────────────────────────────────────────────────────────


def _per_channel(vector: Tensor, like: Tensor) -> Tensor:
    return vector.reshape(*vector.shape, *[1] * (like.ndim - 2))               # (B, C, 1, ...)


class Shift(nn.Module):
    """The vector enters by addition before the norm (DDPM 2020): norm(h + W v)."""

    def __init__(self, channels: int, vector_dim: int, norm: Norm):
        super().__init__()
        self.norm = norm(channels)
        self.project = xavier_(nn.Linear(vector_dim, channels))

    def forward(self, h: Tensor, vector: Tensor | None) -> Tensor:
        if vector is not None:
            h = h + _per_channel(self.project(F.silu(vector)), h)
        return self.norm(h)


class ScaleShift(nn.Module):
    """The vector scales and shifts what the norm gives (AdaGN, Dhariwal & Nichol 2021, equation 10)."""

    def __init__(self, channels: int, vector_dim: int, norm: Norm):
        super().__init__()
        self.norm = norm(channels)
        self.project = xavier_(nn.Linear(vector_dim, 2 * channels))

    def forward(self, h: Tensor, vector: Tensor | None) -> Tensor:
        h = self.norm(h)
        if vector is not None:
            scale, shift = _per_channel(self.project(F.silu(vector)), h).chunk(2, dim=1)
            h = h * (1 + scale) + shift
        return h


class Unmodulated(nn.Module):
    """The norm alone, for a U-Net that is told no vector."""

    def __init__(self, channels: int, vector_dim: int, norm: Norm):
        super().__init__()
        self.norm = norm(channels)

    def forward(self, h: Tensor, vector: Tensor | None) -> Tensor:
        return self.norm(h)


# ── blocks ────────────────────────────────────────────────────────────────────────────────────────


class ResidualBlock(nn.Module):
    """Two convolutions around which x passes unchanged; the vector modulates between them.

    `resize`, if given, halves or doubles the size on both ways (ADM 2021, from BigGAN).
    """

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
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else conv(in_channels, out_channels, 1)

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        h = self.conv_1(self.resize(F.silu(self.norm(x))))
        h = self.modulated(h, cond.vector)
        h = self.conv_2(self.dropout(F.silu(h)))
        return centre(self.shortcut(self.resize(x)), h) + h


class PlainBlock(nn.Module):
    """A convolution and ReLU; two of them are the double convolution of the first U-Nets (2015, 2016)."""

    def __init__(
        self, in_channels: int, out_channels: int, conv: Conv, norm: Norm, modulated: Norm, dropout: float
    ):
        super().__init__()
        self.conv = kaiming_(conv(in_channels, out_channels))
        self.modulated = modulated(out_channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        return self.dropout(F.relu(self.modulated(self.conv(x), cond.vector)))


class Stack(nn.ModuleList):
    """Blocks one after the other, each told the same; none of them is the identity."""

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        for block in self:
            x = block(x, cond)
        return x


class IgnoreCond(nn.Module):
    """A layer as a block: it is told nothing."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        return self.layer(x)


# ── attention ─────────────────────────────────────────────────────────────────────────────────────


def _flatten_spatial(x: Tensor) -> Tensor:
    return rearrange(x, "b c ... -> b (...) c")


def _attended(q: Tensor, k: Tensor, v: Tensor, to_out: nn.Module, like: Tensor, mask: Tensor | None = None) -> Tensor:
    """What the queries (B, heads, N, D) read, back in the shape of the image, (B, C, *S)."""
    h = rearrange(F.scaled_dot_product_attention(q, k, v, mask), "b heads n d -> b n (heads d)")
    return rearrange(to_out(h), "b n c -> b c n").reshape(like.shape)


class SelfAttention(nn.Module):
    """Every place of x attends to every other (Vaswani et al. 2017), as a residual branch."""

    def __init__(self, channels: int, heads: int, norm: Norm):
        super().__init__()
        self.heads = heads
        self.norm = norm(channels)
        self.to_qkv = xavier_(nn.Linear(channels, 3 * channels))
        self.to_out = zero_init(xavier_(nn.Linear(channels, channels)))

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        qkv = self.to_qkv(_flatten_spatial(self.norm(x)))
        q, k, v = rearrange(qkv, "b n (three heads d) -> three b heads n d", three=3, heads=self.heads)
        return x + _attended(q, k, v, self.to_out, x)


class CrossAttention(nn.Module):
    """Every place of x reads the tokens, as a residual branch; without tokens, nothing is read."""

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
        q = rearrange(self.to_q(_flatten_spatial(self.norm(x))), "b n (heads d) -> b heads n d", heads=self.heads)
        k, v = rearrange(self.to_kv(cond.tokens), "b m (two heads d) -> two b heads m d", two=2, heads=self.heads)
        k, v = k.expand(len(x), -1, -1, -1), v.expand(len(x), -1, -1, -1)
        if cond.token_mask is None:
            return x + _attended(q, k, v, self.to_out, x)
        mask = cond.token_mask
        reads = mask.any(dim=1)                                                   # a softmax over no token is NaN
        mask = rearrange(mask | ~reads[:, None], "b m -> b 1 1 m")
        return x + _attended(q, k, v, self.to_out, x, mask) * _per_channel(reads[:, None], x)


# ── resampling: half or twice the size ────────────────────────────────────────────────────────────


class Downsample(nn.Module):
    """Half the size by a convolution with stride 2, centred on every second place."""

    def __init__(self, channels: int, conv: Conv):
        super().__init__()
        self.conv = conv(channels, channels, stride=2)

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        return self.conv(x)


class DownsampleEndPadded(nn.Module):
    """The same with one place added at the end of each axis and none at the start, as in DDPM 2020."""

    def __init__(self, channels: int, dims: int):
        super().__init__()
        self.border = (0, 1) * dims
        self.conv = convolution(dims, "valid", channels, channels, stride=2)

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        return self.conv(F.pad(x, self.border))


class Upsample(nn.Module):
    """Twice the size: each place repeated, then a convolution."""

    def __init__(self, in_channels: int, out_channels: int, conv: Conv):
        super().__init__()
        self.conv = conv(in_channels, out_channels)

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
