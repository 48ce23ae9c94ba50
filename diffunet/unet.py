"""The U-Net: a level around a coarser level around ... the middle."""

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, Strict, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .conditioning import Conditioning
from .layers import (
    CrossAttention,
    Downsample,
    DownsampleEndPadded,
    ResidualBlock,
    ScaleShift,
    SelfAttention,
    Shift,
    Stack,
    Unmodulated,
    Upsample,
    convolution,
    group_norm,
    join,
    zeroed,
)
from .settings import Settings


class LevelConfig(Settings):
    """One resolution of the U-Net."""

    channels: int = Field(gt=0)
    """Channels of every block of the level."""
    blocks: int = Field(2, ge=1)
    """Blocks on the way down; the way up has one more."""
    attention: bool = False
    """Self-attention (and cross-attention, if there are tokens) after each block."""
    gradient_checkpointing: bool = False
    """Recompute the level's blocks in the backward pass: less memory, about a third more time."""


class UNetConfig(Settings):
    """The whole network; reads like its picture."""

    levels: Annotated[tuple[LevelConfig, ...], Strict(False)] = ()
    """Finest level first; each further level has half the resolution. [] in a run's config: as the pictures need."""
    in_channels: int = Field(3, ge=1)
    """Channels of the input, without planes."""
    out_channels: int = Field(3, ge=1)
    """Channels of the output."""
    dims: Literal[1, 2, 3] = 2
    """Spatial axes: 1 signals, 2 images, 3 volumes."""
    padding: Literal["same", "valid"] = "same"
    """same: the output has the input's size; valid: no border is invented, the output is smaller."""
    vector_dim: int = Field(0, ge=0)
    """Width of the vector that modulates each block; 0: there is none."""
    token_dim: int = Field(0, ge=0)
    """Width of the tokens that cross-attention reads; 0: there are none."""
    plane_channels: int = Field(0, ge=0)
    """Channels stacked on the input as a condition."""
    modulation: Literal["shift", "scale_shift"] = "scale_shift"
    """How the vector enters a block: added before the norm (DDPM), or scaling and shifting after it (ADM)."""
    head_channels: int | None = Field(None, ge=1)
    """Channels per attention head; null: one head."""
    middle_attention: bool = True
    """Self-attention between the two middle blocks."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of zeroing a channel's value inside each residual block."""
    norm_groups: int = Field(32, ge=1)
    """Groups of each group norm; where they do not divide the channels, their greatest common divisor."""
    norm_eps: float = Field(1e-5, gt=0)
    """Added to the variance in each norm."""
    downsample_padding: Literal[0, 1] = 1
    """1: strided convolutions are centred; 0: padded at the end only, as in DDPM 2020."""

    @model_validator(mode="after")
    def _heads_divide(self):
        for level in self.levels:
            if level.attention and level.channels % (self.head_channels or 1):
                raise ValueError(f"head_channels {self.head_channels} does not divide {level.channels} channels")
        return self


def levels_for(size: int) -> tuple[LevelConfig, ...]:
    """Levels for images whose shorter side has `size` pixels, in the proportions of DDPM and ADM.

    The coarsest has 4 to 8 pixels; attention where there are 16 or 8; 64 channels up to 16 pixels, else 128.
    """
    sides = [size]
    while sides[-1] >= (8 if size <= 32 else 16):
        sides.append(-(-sides[-1] // 2))
    base = 64 if size <= 16 else 128
    widths = [1, 2, 2, 2] if len(sides) <= 4 else [1, 1, 2, 2, 4, 4]
    return tuple(
        LevelConfig(channels=base * widths[min(depth, len(widths) - 1)], attention=6 <= side <= 16)
        for depth, side in enumerate(sides)
    )


class Level(nn.Module):
    """One resolution of a U-Net, around everything coarser than it.

        x ─ enter ─ down ───────── skips ────────▶ up ─ exit
                       └────▶ inner (coarser) ────┘

    Its parts come ready-made. `inner` is another Level or the middle: `block(x, conditioning)` like
    every block, and so a whole U-Net at half the resolution. `run` calls a block, or checkpoints it.
    """

    def __init__(
        self,
        enter: nn.Module,
        down: Sequence[nn.Module],
        inner: nn.Module,
        up: Sequence[nn.Module],
        exit: nn.Module,
        run: Callable = operator.call,
    ):
        super().__init__()
        self.enter = enter
        self.down = nn.ModuleList(down)
        self.inner = inner
        self.up = nn.ModuleList(up)
        self.exit = exit
        self.run = run

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        x = self.enter(x)                                # downsample, or nothing at the top
        skips = [x]
        for block in self.down:
            x = self.run(block, x, cond)
            skips.append(x)
        x = self.inner(x, cond)
        for block in self.up:
            x = self.run(block, join(x, skips.pop()), cond)
        return self.exit(x)                              # upsample, or nothing at the top


class UNet(nn.Module):
    """A U-Net (Ronneberger et al. 2015) of residual blocks with attention (Ho et al. 2020).

    Told nothing it is a plain U-Net from (B, in_channels, *S) to (B, out_channels, *S) for any size S;
    with `padding="valid"` the output is smaller than the input.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        if not config.levels:
            raise ValueError("a U-Net needs at least one level")
        self.config = config
        conv = partial(convolution, config.dims, config.padding)
        norm = partial(group_norm, config.norm_groups, config.norm_eps)
        modulation = {"shift": Shift, "scale_shift": ScaleShift}[config.modulation]
        modulated = partial(modulation if config.vector_dim else Unmodulated, vector_dim=config.vector_dim, norm=norm)
        downsample = {
            1: partial(Downsample, conv=conv),
            0: partial(DownsampleEndPadded, dims=config.dims),
        }[config.downsample_padding]

        def attend(channels: int) -> list[nn.Module]:
            heads = channels // (config.head_channels or channels)
            parts = [SelfAttention(channels, heads, norm)]
            if config.token_dim:
                parts.append(CrossAttention(channels, heads, norm, config.token_dim))
            return parts

        def block(in_channels: int, out_channels: int, attention: bool) -> Stack:
            residual = ResidualBlock(in_channels, out_channels, conv, norm, modulated, config.dropout)
            return Stack([residual, *(attend(out_channels) if attention else [])])

        def middle(channels: int) -> Stack:
            return Stack([*block(channels, channels, config.middle_attention), *block(channels, channels, False)])

        def level(depth: int, in_channels: int) -> Level:
            here = config.levels[depth]
            channels = here.channels
            coarser = config.levels[depth + 1 :]
            skips = [in_channels] + [channels] * here.blocks
            below = [coarser[0].channels if coarser else channels] + [channels] * here.blocks
            return Level(
                enter=downsample(in_channels) if depth else nn.Identity(),
                down=[block(n, channels, here.attention) for n in skips[:-1]],
                inner=level(depth + 1, channels) if coarser else middle(channels),
                up=[block(n + skips.pop(), channels, here.attention) for n in below],
                exit=Upsample(channels, conv) if depth else nn.Identity(),
                run=partial(checkpoint, use_reentrant=False) if here.gradient_checkpointing else operator.call,
            )

        width = config.levels[0].channels
        self.stem = conv(config.in_channels + config.plane_channels, width)
        self.body = level(0, width)
        self.head = nn.Sequential(norm(width), nn.SiLU(), zeroed(conv(width, config.out_channels)))

    @property
    def levels(self) -> list[Level]:
        """All levels, finest first, for hooks and feature taps."""
        found = [self.body]
        while len(found) < len(self.config.levels):
            found.append(found[-1].inner)
        return found

    def forward(self, x: Tensor, cond: Conditioning = Conditioning()) -> Tensor:
        """x: (B, in_channels, *S). ValueError when x, or what it is told, is not what the network was built for."""
        self._refuse_misfits(x, cond)
        size = x.shape[2:]
        if self.config.plane_channels:
            x = torch.cat([x, cond.planes], dim=1)
        if self.config.padding == "valid":
            return self.head(self.body(self.stem(x), cond))
        h = self.head(self.body(self.stem(self._padded(x)), cond))
        return h[(..., *map(slice, size))]

    def _padded(self, x: Tensor) -> Tensor:
        """x with its last places repeated until every level halves evenly."""
        multiple = 2 ** (len(self.config.levels) - 1)
        spare = [-size % multiple for size in x.shape[2:]]
        border = [n for extra in reversed(spare) for n in (0, extra)]
        return F.pad(x, border, mode="replicate") if any(spare) else x

    def _refuse_misfits(self, x: Tensor, cond: Conditioning) -> None:
        config = self.config
        if x.ndim != config.dims + 2 or x.shape[1] != config.in_channels:
            axes = ", ".join("DHW"[-config.dims :])
            raise ValueError(f"expected x of shape (B, {config.in_channels}, {axes}), got {tuple(x.shape)}")
        for name, width, axis in (("vector", config.vector_dim, 1), ("tokens", config.token_dim, 2)):
            told = getattr(cond, name)
            if told is not None and told.shape[axis] != width:
                raise ValueError(f"built for {name} of width {width}, got {tuple(told.shape)}")
        planes = (len(x), config.plane_channels, *x.shape[2:]) if config.plane_channels else None
        told = None if cond.planes is None else tuple(cond.planes.shape)
        if told != planes:
            raise ValueError(f"built for planes of shape {planes}, got {told}")
