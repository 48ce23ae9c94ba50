"""The U-Net: a level around a coarser level around ... the middle."""

import operator
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, Strict, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .conditioning import Conditioning
from .layers import (
    Conv,
    CrossAttention,
    Downsample,
    DownsampleEndPadded,
    PlainBlock,
    ResidualBlock,
    ScaleShift,
    SelfAttention,
    Shift,
    Stack,
    Unmodulated,
    IgnoreCond,
    Upsample,
    average_pool,
    batch_norm,
    convolution,
    group_norm,
    join,
    max_pool,
    no_norm,
    transposed_convolution,
    zero_init,
)
from .presets import PRESETS
from ..core.settings import Settings
from ..core.errors import did_you_mean

MAX_CHANNELS, LONGEST = 65_536, 100
"""Channels and blocks, at most: more is a slip, and would be built for hours before it failed."""
Widths = Annotated[tuple[Annotated[int, Field(gt=0, le=MAX_CHANNELS)], ...], Field(max_length=2 * LONGEST), Strict(False)]


class LevelConfig(Settings):
    """One resolution of the U-Net."""

    channels: int = Field(gt=0, le=MAX_CHANNELS)
    """Channels of every block of the level."""
    blocks: int = Field(2, ge=1, le=LONGEST)
    """Blocks on the way down."""
    attention: bool = False
    """Self-attention (and cross-attention, if there are tokens) after each block."""
    gradient_checkpointing: bool = False
    """Recompute the level's blocks in the backward pass: less memory, about a third more time."""
    down: Annotated[Widths, Field(min_length=1)] | None = None
    """Channels of each block on the way down, in order; null: `blocks` times `channels`."""
    up: Widths | None = None
    """Channels of each block on the way up, in order; null: `channels`, as often as on the way down, and once more
    where each block has a skip."""
    from_coarser: int | None = Field(None, gt=0, le=MAX_CHANNELS)
    """Channels in which the coarser level's output arrives here; null: as many as it has."""


class UNetConfig(Settings):
    """The whole network; reads like its picture."""

    preset: str | None = Field(None, exclude=True)
    """A published network to start from (unet2015, unet3d, ternaus11, ddpm_cifar10, adm_64); other keys go over it."""
    levels: Annotated[tuple[LevelConfig, ...], Field(max_length=16), Strict(False)] = ()
    """Finest level first; each further level has half the resolution. [] in a run's config: as the pictures need."""
    in_channels: int = Field(3, ge=1, le=MAX_CHANNELS)
    """Channels of the input, without planes."""
    out_channels: int = Field(3, ge=1, le=MAX_CHANNELS)
    """Channels of the output."""
    dims: Literal[1, 2, 3] = 2
    """Spatial axes: 1 signals, 2 images, 3 volumes."""
    padding: Literal["same", "valid"] = "same"
    """same: the output has the input's size; valid: no border is invented, the output is smaller."""
    block: Literal["residual", "plain"] = "residual"
    """residual: norm, SiLU, convolution, twice (DDPM, ADM); plain: convolution, norm, ReLU (2015)."""
    skips: Literal["block", "level"] = "block"
    """How much crosses over: what each block on the way down says, or one skip per level (lighter; 2015)."""
    resampling: Literal["conv", "conv_end_padded", "pool", "pool_relu", "average", "residual"] = "conv"
    """conv: strided convolution, and nearest with a convolution; conv_end_padded: the same, padded at the end only
    (DDPM 2020); pool: max-pool, and transposed convolution (2015); pool_relu: the same with kernel 3 and ReLU
    (TernausNet); average: average pool and nearest; residual: these two inside residual blocks (ADM)."""
    transposed_bias: bool = True
    """The transposed convolutions of resampling pool have a bias."""
    vector_dim: int = Field(0, ge=0, le=MAX_CHANNELS)
    """Width of the vector that modulates each block; 0: there is none."""
    token_dim: int = Field(0, ge=0, le=MAX_CHANNELS)
    """Width of the tokens that cross-attention reads; 0: there are none."""
    plane_channels: int = Field(0, ge=0, le=MAX_CHANNELS)
    """Channels stacked on the input as a condition."""
    modulation: Literal["shift", "scale_shift"] = "scale_shift"
    """How the vector enters a block: added before the norm (DDPM), or scaling and shifting after it (ADM)."""
    head_channels: int | None = Field(None, ge=1, le=MAX_CHANNELS)
    """Channels per attention head; null: one head."""
    middle_blocks: int = Field(2, ge=0, le=LONGEST)
    """Blocks between the way down and the way up."""
    middle_attention: bool = True
    """Self-attention between the middle blocks."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of zeroing a channel's value inside each block."""
    norm: Literal["group", "batch", "none"] = "group"
    """The norm of every block and attention."""
    norm_groups: int = Field(32, ge=1, le=MAX_CHANNELS)
    """Groups of each group norm; where they do not divide the channels, their greatest common divisor."""
    norm_eps: float = Field(1e-5, gt=0, le=1)
    """Added to the variance in each norm."""

    @model_validator(mode="before")
    @classmethod
    def _lay_over_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("preset"), str):
            return values
        name = values["preset"]
        if name not in PRESETS:
            raise ValueError(f"preset {name} is not one of {', '.join(PRESETS)}{did_you_mean(str(name), PRESETS)}")
        return PRESETS[name] | {key: value for key, value in values.items() if key != "preset"}

    @model_validator(mode="after")
    def _fits_together(self):
        for depth, level in enumerate(self.levels):
            down, up = self.widths(depth)
            attended = {*down, *up} if level.attention else set()
            if depth == len(self.levels) - 1 and self.middle_attention and self.middle_blocks > 1:
                attended.add(down[-1])
            for channels in sorted(attended):
                if channels % (self.head_channels or 1):
                    raise ValueError(f"head_channels {self.head_channels} does not divide {channels} channels")
            if self.skips == "block" and len(up) > len(down) + 1:
                raise ValueError(f"level {depth} has {len(up)} blocks up, but only {len(down) + 1} skips")
            if self.resampling == "average" and level.from_coarser:
                raise ValueError("from_coarser: resampling average cannot change the channels")
        if self.padding == "valid" and self.resampling == "conv_end_padded":
            raise ValueError("resampling conv_end_padded invents a border, padding valid forbids it; use conv")
        return self

    def widths(self, depth: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The channels of each block of a level, on the way down and on the way up."""
        level = self.levels[depth]
        down = level.down or (level.channels,) * level.blocks
        up = (level.channels,) * (len(down) + (self.skips == "block")) if level.up is None else level.up
        return down, up

    def up_in(self, depth: int) -> int:
        """Channels in which the way up of a level begins, without the skip."""
        if depth == len(self.levels) - 1:
            return self.widths(depth)[0][-1]
        return self.levels[depth].from_coarser or self.up_out(depth + 1)

    def up_out(self, depth: int) -> int:
        """Channels in which the way up of a level ends."""
        _, up = self.widths(depth)
        return up[-1] if up else self.up_in(depth)


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

    Its parts come ready-made, and each is called `block(x, conditioning)`: `enter` and `exit` change the
    resolution (or nothing at the top), `inner` is another Level or the middle, and so a whole U-Net at half
    the resolution. A skip is what each block of `down` says, so with a whole Stack as its one block there is
    one skip per level; those that `up` does not take are left. `run` calls a block, or checkpoints it.
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
        x = self.enter(x, cond)
        skips = [x]
        for block in self.down:
            x = self.run(block, x, cond)
            skips.append(x)
        x = self.inner(x, cond)
        for block in self.up:
            x = self.run(block, join(x, skips.pop()), cond)
        return self.exit(x, cond)


def _resampling(config: UNetConfig, conv: Conv, parts: dict) -> tuple[Callable, Callable]:
    """(channels) -> half the size, and (in_channels, out_channels) -> twice the size; `parts` are those of a block."""
    transposed = partial(transposed_convolution, config.dims, config.padding)
    return {
        "conv": (
            partial(Downsample, conv=conv),
            partial(Upsample, conv=conv),
        ),
        "conv_end_padded": (
            partial(DownsampleEndPadded, dims=config.dims),
            partial(Upsample, conv=conv),
        ),
        "pool": (
            lambda n: IgnoreCond(max_pool(config.dims)),
            lambda n, m: IgnoreCond(transposed(n, m, bias=config.transposed_bias)),
        ),
        "pool_relu": (
            lambda n: IgnoreCond(max_pool(config.dims)),
            partial(PlainBlock, conv=partial(transposed, kernel_size=3), **parts),
        ),
        "average": (
            lambda n: IgnoreCond(average_pool(config.dims)),
            lambda n, m: IgnoreCond(nn.Upsample(scale_factor=2)),
        ),
        "residual": (
            lambda n: ResidualBlock(n, n, conv, resize=average_pool(config.dims), **parts),
            lambda n, m: ResidualBlock(n, m, conv, resize=nn.Upsample(scale_factor=2), **parts),
        ),
    }[config.resampling]


class UNet(nn.Module):
    """A U-Net (Ronneberger et al. 2015), by default of residual blocks with attention (Ho et al. 2020).

    Told nothing it is a plain U-Net from (B, in_channels, *S) to (B, out_channels, *S) for any size S;
    with `padding="valid"` the output is smaller than the input, and `min_input_size` is the least side of an input.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        if not config.levels:
            raise ValueError("a U-Net needs at least one level")
        self.config = config
        conv = partial(convolution, config.dims, config.padding)
        norm = {
            "group": partial(group_norm, config.norm_groups, config.norm_eps),
            "batch": partial(batch_norm, config.dims, config.norm_eps),
            "none": no_norm,
        }[config.norm]
        modulation = {"shift": Shift, "scale_shift": ScaleShift}[config.modulation]
        modulated = partial(modulation if config.vector_dim else Unmodulated, vector_dim=config.vector_dim, norm=norm)
        parts = {"norm": norm, "modulated": modulated, "dropout": config.dropout}
        make = partial({"residual": ResidualBlock, "plain": PlainBlock}[config.block], conv=conv, **parts)
        downsample, upsample = _resampling(config, conv, parts)
        skipped_after = {
            "block": lambda widths: [(width,) for width in widths],
            "level": lambda widths: [widths] if widths else [],
        }[config.skips]

        def attend(channels: int) -> list[nn.Module]:
            heads = channels // (config.head_channels or channels)
            parts = [SelfAttention(channels, heads, norm)]
            if config.token_dim:
                parts.append(CrossAttention(channels, heads, norm, config.token_dim))
            return parts

        def block(in_channels: int, out_channels: int, attention: bool) -> list[nn.Module]:
            return [make(in_channels, out_channels), *(attend(out_channels) if attention else [])]

        def blocks(in_channels: int, widths: Sequence[int], attention: bool) -> Stack:
            return Stack(part for n, m in pairwise([in_channels, *widths]) for part in block(n, m, attention))

        def middle(channels: int) -> Stack:
            between = [config.middle_attention] * (config.middle_blocks - 1) + [False]
            return Stack(part for a in between[: config.middle_blocks] for part in block(channels, channels, a))

        def level(depth: int, in_channels: int, to_finer: int | None = None) -> Level:
            here = config.levels[depth]
            widths_down, widths_up = map(skipped_after, config.widths(depth))
            skips = [in_channels, *(widths[-1] for widths in widths_down)]
            below = [config.up_in(depth), *(widths[-1] for widths in widths_up)]
            coarsest = depth == len(config.levels) - 1
            return Level(
                enter=downsample(in_channels) if depth else Stack(),
                down=[blocks(n, widths, here.attention) for n, widths in zip(skips, widths_down, strict=False)],
                inner=middle(skips[-1]) if coarsest else level(depth + 1, skips[-1], below[0]),
                up=[blocks(n + skips.pop(), w, here.attention) for n, w in zip(below, widths_up, strict=False)],
                exit=upsample(below[-1], to_finer) if depth else Stack(),
                run=partial(checkpoint, use_reentrant=False) if here.gradient_checkpointing else operator.call,
            )

        given, width = config.in_channels + config.plane_channels, config.up_out(0)
        if config.block == "residual":
            self.stem = conv(given, config.levels[0].channels)
            self.body = level(0, config.levels[0].channels)
            self.head = nn.Sequential(norm(width), nn.SiLU(), zero_init(conv(width, config.out_channels)))
        else:
            self.stem = nn.Identity()
            self.body = level(0, given)
            self.head = conv(width, config.out_channels, 1)
        self.min_input_size = min_input_size(config)

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
            x = torch.cat([x, cond.planes.expand(len(x), -1, *size)], dim=1)
        if self.config.padding == "valid":
            return self.head(self.body(self.stem(x), cond))
        h = self.head(self.body(self.stem(self._padded(x)), cond))
        return h[(..., *map(slice, size))]

    def output_size(self, *size: int) -> tuple[int, ...]:
        """The sides of the output for an input with these sides. ValueError if that is too small."""
        self._refuse_too_small(size)
        return size if self.config.padding == "same" else tuple(_output_side(self.config, side) for side in size)

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
        self._refuse_too_small(x.shape[2:])
        for name, width, axis in (("vector", config.vector_dim, 1), ("tokens", config.token_dim, 2)):
            told = getattr(cond, name)
            if told is not None and told.shape[axis] != width:
                raise ValueError(f"built for {name} of width {width}, got {tuple(told.shape)}")
        expected = (len(x), config.plane_channels, *x.shape[2:]) if config.plane_channels else None
        told = None if cond.planes is None else tuple(cond.planes.shape)
        if not _broadcastable(told, expected):
            raise ValueError(f"built for planes of shape {expected}, got {told}")

    def _refuse_too_small(self, size: Sequence[int]) -> None:
        if min(size) < self.min_input_size:
            raise ValueError(f"an input of {tuple(size)} is too small; each side needs {self.min_input_size}")


def _broadcastable(told: tuple[int, ...] | None, expected: tuple[int, ...] | None) -> bool:
    """Whether planes of one shape can stand for another: equal, or 1 along the batch or an axis of space."""
    if told is None or expected is None or len(told) != len(expected):
        return told == expected
    same = [there == here for there, here in zip(told, expected, strict=True)]
    return same[1] and all(agree or there == 1 for agree, there in zip(same, told, strict=True))


def probe_config(config: UNetConfig) -> UNetConfig:
    """The same path of convolutions and resamplings along one axis, in one channel, without all that sees everything.

    What it does to sizes and to the reach of a place, the network does along each of its axes.
    """
    widths = [config.widths(depth) for depth in range(len(config.levels))]
    levels = [LevelConfig(channels=1, down=(1,) * len(down), up=(1,) * len(up)) for down, up in widths]
    kept = {name: getattr(config, name) for name in ("padding", "block", "skips", "resampling", "middle_blocks")}
    alone = {"in_channels": 1, "out_channels": 1, "dims": 1, "norm": "none", "middle_attention": False}
    return UNetConfig(levels=levels, **alone, **kept)


@cache
def min_input_size(config: UNetConfig) -> int:
    """The least side of an input; a twin refuses nothing, since it is there to find it out."""
    if config.padding == "same" or config == probe_config(config):
        return 1
    enough = next(2**n for n in range(32) if _output_side(config, 2**n))
    return bisect_left(range(enough), True, lo=1, key=lambda side: _output_side(config, side) > 0)


def _output_side(config: UNetConfig, side: int) -> int:
    """What is left of a side; 0 if the network cannot take it."""
    try:
        with torch.no_grad():
            return build_probe(config)(torch.zeros(1, 1, side, dtype=torch.float64)).shape[2]
    except RuntimeError:
        return 0


@cache
def build_probe(config: UNetConfig) -> UNet:
    """The network of `twin`, in fp64: fast fp32 kernels let neighbours mix."""
    with torch.device("cpu"), torch.random.fork_rng([]):                          # leaves no trace in other networks
        return UNet(probe_config(config)).double()
