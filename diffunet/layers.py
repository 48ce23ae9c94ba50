"""The parts of a U-Net: convolution, norms, residual block, attention, resampling, join.

Only `convolution` and the two resamplings know the dimension and the border; every other part works on
(B, C, *S) with one, two or three spatial axes. Every block is called `block(x, conditioning)`.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import pack, rearrange, unpack
from torch import Tensor, nn

from .conditioning import Conditioning

# Builders handed down by the U-Net: (in_channels, out_channels[, kernel_size[, stride]]) and (channels).
Conv = Callable[..., nn.Module]
Norm = Callable[[int], nn.Module]


def convolution(
    dims: int, padding: str, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1
) -> nn.Module:
    """A convolution over `dims` axes; `"same"` keeps the size (at stride 1), `"valid"` reads no border."""
    border = kernel_size // 2 if padding == "same" else 0
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    return initialised(layer(in_channels, out_channels, kernel_size, stride, border))


def group_norm(groups: int, eps: float, channels: int) -> nn.GroupNorm:
    """Group normalisation (Wu & He 2018); fewer groups where `groups` does not divide the channels."""
    return nn.GroupNorm(math.gcd(groups, channels), channels, eps)


def initialised(layer: nn.Module) -> nn.Module:
    """DDPM's start: uniform, variance 1 / fan_avg (that is Glorot & Bengio 2010), and no bias."""
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def zeroed(layer: nn.Module) -> nn.Module:
    """For the last layer of a residual branch: at zero, the block starts as the identity."""
    nn.init.zeros_(layer.weight)
    return layer


def centre(x: Tensor, like: Tensor) -> Tensor:
    """The middle of x in the size of `like`; x itself where the sizes agree, as with `"same"` borders."""
    for axis in range(2, x.ndim):
        spare = x.shape[axis] - like.shape[axis]
        x = x.narrow(axis, spare // 2, like.shape[axis]) if spare else x
    return x


def join(x: Tensor, skip: Tensor) -> Tensor:
    """A skip connection: the skip's centre stacked on x, (B, C + C', *S)."""
    return torch.cat([x, centre(skip, x)], dim=1)


def _per_channel(vector: Tensor, like: Tensor) -> Tensor:
    return vector.reshape(*vector.shape, *[1] * (like.ndim - 2))               # (B, C, 1, ...)


class Shift(nn.Module):
    """The vector enters by addition before the norm (DDPM 2020): norm(h + W v)."""

    def __init__(self, channels: int, vector_dim: int, norm: Norm):
        super().__init__()
        self.norm = norm(channels)
        self.project = initialised(nn.Linear(vector_dim, channels))

    def forward(self, h: Tensor, vector: Tensor | None) -> Tensor:
        if vector is not None:
            h = h + _per_channel(self.project(F.silu(vector)), h)
        return self.norm(h)


class ScaleShift(nn.Module):
    """The vector scales and shifts what the norm gives (AdaGN, Dhariwal & Nichol 2021, equation 10)."""

    def __init__(self, channels: int, vector_dim: int, norm: Norm):
        super().__init__()
        self.norm = norm(channels)
        self.project = initialised(nn.Linear(vector_dim, 2 * channels))

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


class ResidualBlock(nn.Module):
    """Two convolutions around which x passes unchanged; the vector modulates between them."""

    def __init__(
        self, in_channels: int, out_channels: int, conv: Conv, norm: Norm, modulated: Norm, dropout: float
    ):
        super().__init__()
        self.norm = norm(in_channels)
        self.conv_1 = conv(in_channels, out_channels)
        self.modulated = modulated(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv_2 = zeroed(conv(out_channels, out_channels))
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else conv(in_channels, out_channels, 1)

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        h = self.conv_1(F.silu(self.norm(x)))
        h = self.modulated(h, cond.vector)
        h = self.conv_2(self.dropout(F.silu(h)))
        return centre(self.shortcut(x), h) + h


def _attended(q: Tensor, k: Tensor, v: Tensor, to_out: nn.Module, places: list) -> Tensor:
    """What the queries (B, heads, N, D) read, back in the shape of the image, (B, C, *S)."""
    h = rearrange(F.scaled_dot_product_attention(q, k, v), "b heads n d -> b n (heads d)")
    return unpack(rearrange(to_out(h), "b n c -> b c n"), places, "b c *")[0]


class SelfAttention(nn.Module):
    """Every place of x attends to every other (Vaswani et al. 2017), as a residual branch."""

    def __init__(self, channels: int, heads: int, norm: Norm):
        super().__init__()
        self.heads = heads
        self.norm = norm(channels)
        self.to_qkv = initialised(nn.Linear(channels, 3 * channels))
        self.to_out = zeroed(initialised(nn.Linear(channels, channels)))

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        h, places = pack([self.norm(x)], "b c *")
        qkv = self.to_qkv(rearrange(h, "b c n -> b n c"))
        q, k, v = rearrange(qkv, "b n (three heads d) -> three b heads n d", three=3, heads=self.heads)
        return x + _attended(q, k, v, self.to_out, places)


class CrossAttention(nn.Module):
    """Every place of x reads the tokens, as a residual branch; without tokens, nothing is read."""

    def __init__(self, channels: int, heads: int, norm: Norm, token_dim: int):
        super().__init__()
        self.heads = heads
        self.norm = norm(channels)
        self.to_q = initialised(nn.Linear(channels, channels))
        self.to_kv = initialised(nn.Linear(token_dim, 2 * channels))
        self.to_out = zeroed(initialised(nn.Linear(channels, channels)))

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        if cond.tokens is None:
            return x
        h, places = pack([self.norm(x)], "b c *")
        q = rearrange(self.to_q(rearrange(h, "b c n -> b n c")), "b n (heads d) -> b heads n d", heads=self.heads)
        k, v = rearrange(self.to_kv(cond.tokens), "b m (two heads d) -> two b heads m d", two=2, heads=self.heads)
        return x + _attended(q, k, v, self.to_out, places)


class Stack(nn.ModuleList):
    """Blocks one after the other, each told the same."""

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        for block in self:
            x = block(x, cond)
        return x


class Downsample(nn.Module):
    """Half the size by a convolution with stride 2, centred on every second place."""

    def __init__(self, channels: int, conv: Conv):
        super().__init__()
        self.conv = conv(channels, channels, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class DownsampleEndPadded(nn.Module):
    """The same with one place added at the end of each axis and none at the start, as in DDPM 2020."""

    def __init__(self, channels: int, dims: int):
        super().__init__()
        self.border = (0, 1) * dims
        self.conv = convolution(dims, "valid", channels, channels, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.border))


class Upsample(nn.Module):
    """Twice the size: each place repeated, then a convolution."""

    def __init__(self, channels: int, conv: Conv):
        super().__init__()
        self.conv = conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
