"""Configuration of the U-Net, the channels of its blocks and the sizes of its outputs."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, repeat
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, Strict, model_validator

from ..core.errors import did_you_mean
from ..core.settings import Settings
from .presets import PRESETS

MAX_CHANNELS, MAX_BLOCKS = 65_536, 100
"""Upper bounds that catch typos, which would otherwise build a network for hours before it fails."""
Channels = Annotated[int, Field(gt=0, le=MAX_CHANNELS)]
Axis = Literal["x", "y", "z"]
AXES: tuple[Axis, ...] = ("z", "y", "x")
"""Names of the spatial axes in the order of a tensor: the last is x."""
Widths = Annotated[tuple[Channels, ...], Field(max_length=2 * MAX_BLOCKS), Strict(False)]


class LevelConfig(Settings):
    """One resolution of the U-Net."""

    channels: int = Field(gt=0, le=MAX_CHANNELS)
    """Channels of every block of the level."""
    blocks: int = Field(default=2, ge=1, le=MAX_BLOCKS)
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
    from_coarser: int | None = Field(default=None, gt=0, le=MAX_CHANNELS)
    """Channels after upsampling from the coarser level; null: as many as before it."""
    halves: Annotated[tuple[Axis, ...], Strict(False)] | None = None
    """Axes along which the level has half the resolution of the finer one, such as [x, y] while voxels are longer along
    z; null: all."""


def _without_auto(levels: Any) -> Any:
    if isinstance(levels, str) and levels != "auto":
        raise ValueError(f"{levels} is neither a list of levels nor auto")
    return () if levels == "auto" else levels


Levels = Annotated[
    tuple[LevelConfig, ...],
    Field(max_length=16),
    Strict(False),
    BeforeValidator(_without_auto),
    PlainSerializer(lambda levels: list(levels) or "auto", when_used="json"),
]
"""The levels of a network; none: `auto`, which is also what a file has."""


class UNetConfig(Settings):
    """The whole network."""

    preset: str | None = Field(default=None, exclude=True)
    """A published network to start from (unet2015, unet3d, ternaus11, ddpm_cifar10, adm_64); other keys override it."""
    levels: Levels = ()
    """Finest level first; each further level has half the resolution. auto: chosen by the training, which is a matter
    of its length and of the size of the images, and with them `skips`, `resampling`, `norm_groups`, `head_channels`,
    and for large images `unshuffle`."""
    in_channels: int = Field(default=3, ge=1, le=MAX_CHANNELS)
    """Channels of the input, without planes."""
    out_channels: int = Field(default=3, ge=1, le=MAX_CHANNELS)
    """Channels of the output."""
    dims: Literal[1, 2, 3] = 2
    """Spatial axes: 1 signals, 2 images, 3 volumes."""
    unshuffle: int = Field(default=1, ge=1, le=64)
    """Side of the blocks of positions that enter and leave as channels of one position (Shi et al. 2016). Nothing is
    lost, and each level has that much less resolution: 2 makes a step about four times as fast, for large images."""
    padding: Literal["same", "valid"] = "same"
    """same: the output has the input's size; valid: unpadded convolutions, the output is smaller."""
    block: Literal["residual", "plain"] = "residual"
    """residual: norm, SiLU, convolution, twice (DDPM, ADM); plain: convolution, norm, ReLU (2015)."""
    skips: Literal["block", "level", "none"] = "block"
    """Skip connections: one from each block on the way down, or one per level (lighter; 2015), or none."""
    resampling: Literal["conv", "conv_end_padded", "pool", "pool_relu", "average", "residual"] = "conv"
    """conv: strided convolution, and nearest with a convolution; conv_end_padded: the same, padded at the end only
    (DDPM 2020); pool: max-pool, and transposed convolution (2015); pool_relu: the same with kernel 3 and ReLU
    (TernausNet); average: average pool and nearest; residual: these two inside residual blocks (ADM)."""
    transposed_bias: bool = True
    """The transposed convolutions of resampling pool have a bias."""
    vector_dim: int = Field(default=0, ge=0, le=MAX_CHANNELS)
    """Width of the vector that modulates each block; 0: there is none."""
    token_dim: int = Field(default=0, ge=0, le=MAX_CHANNELS)
    """Width of the tokens that cross-attention reads; 0: there are none."""
    plane_channels: int = Field(default=0, ge=0, le=MAX_CHANNELS)
    """Extra input channels for an image condition."""
    modulation: Literal["shift", "scale_shift"] = "scale_shift"
    """How the vector enters a block: added before the norm (DDPM), or scaling and shifting after it (ADM)."""
    heads: int | None = Field(default=None, ge=1, le=MAX_CHANNELS)
    """Attention heads at every level, instead of head_channels; null: as many as head_channels gives."""
    head_channels: int | None = Field(default=None, ge=1, le=MAX_CHANNELS)
    """Channels per attention head; null: one head."""
    middle_blocks: int = Field(default=2, ge=0, le=MAX_BLOCKS)
    """Blocks between the way down and the way up."""
    middle_attention: bool = True
    """Self-attention between the middle blocks."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout probability inside each block."""
    norm: Literal["group", "instance", "batch", "none"] = "group"
    """The norm of every block and attention. instance: a group for each channel, which is batch norm by the statistics
    of the batch, as the 3D U-Net (Çiçek et al. 2016) has it, for batches of one."""
    norm_groups: int = Field(default=32, ge=1, le=MAX_CHANNELS)
    """Groups of each group norm; where they do not divide the channels, their greatest common divisor."""
    norm_eps: float = Field(default=1e-5, gt=0, le=1)
    """Added to the variance in each norm."""

    @model_validator(mode="before")
    @classmethod
    def _override_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("preset"), str):
            return values
        name = values["preset"]
        if name not in PRESETS:
            raise ValueError(f"preset {name} is not one of {', '.join(PRESETS)}{did_you_mean(str(name), PRESETS)}")
        return PRESETS[name] | {key: value for key, value in values.items() if key != "preset"}

    @model_validator(mode="after")
    def _is_consistent(self):
        for depth, level in enumerate(self.levels):
            if strange := set(level.halves or ()) - set(self.axes):
                raise ValueError(f"levels.{depth}.halves: no axis {strange.pop()}; choose from {', '.join(self.axes)}")
            if level.halves is not None and depth == 0:
                raise ValueError("levels.0.halves: there is no finer level; leave it out")
            skips = len(level.down or range(level.blocks)) + 1
            if self.skips == "block" and level.up and len(level.up) > skips:
                raise ValueError(f"levels.{depth}.up: {len(level.up)} blocks, but only {skips} skips; remove some")
            if self.resampling == "average" and level.from_coarser:
                raise ValueError(f"levels.{depth}.from_coarser: resampling average cannot change the channels")
        if self.heads and self.head_channels:
            raise ValueError(f"heads: given with head_channels ({self.heads}, {self.head_channels}); set one to null")
        name, divisor = ("heads", self.heads) if self.heads else ("head_channels", self.head_channels)
        for channels in sorted(self.attention_channels()):
            if channels % (divisor or 1):
                raise ValueError(f"{name}: {divisor} does not divide {channels} channels")
        if self.padding == "valid" and self.unshuffle > 1:
            raise ValueError(f"unshuffle: {self.unshuffle} needs padding, and padding is valid; use 1")
        if self.padding == "valid" and self.resampling == "conv_end_padded":
            raise ValueError("resampling: conv_end_padded needs padding, and padding is valid; use conv")
        return self

    def plan(self) -> "tuple[LevelPlan, ...]":
        """Return the channels of each block by level, finest first."""
        residual = self.block == "residual" and self.levels
        in_channels = self.levels[0].channels if residual else self.block_positions * self.input_planes
        return _plan_levels(self.levels, in_channels, self.skips)

    @property
    def input_planes(self) -> int:
        """Channels of the input with planes."""
        return self.in_channels + self.plane_channels

    @property
    def block_positions(self) -> int:
        """Positions that enter as one, by `unshuffle`."""
        return self.unshuffle**self.dims

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Names of the spatial axes, in the order of a tensor."""
        return AXES[-self.dims :]

    def halved(self, depth: int) -> tuple[bool, ...]:
        """Return for each axis whether a level has half the resolution of the finer one."""
        names = self.levels[depth].halves
        return tuple(depth > 0 and (names is None or axis in names) for axis in self.axes)

    @property
    def strides(self) -> tuple[int, ...]:
        """Input positions per position of the coarsest level, along each axis."""
        halved = [self.halved(depth) for depth in range(len(self.levels))]
        return tuple(self.unshuffle * 2 ** sum(along) for along in zip(*halved, strict=True)) or (1,) * self.dims

    @property
    def max_stride(self) -> int:
        """The greatest of the strides."""
        return max(self.strides)

    def attention_channels(self) -> set[int]:
        """Return the widths at which there is attention."""
        plan = self.plan()
        attended = [here for here, level in zip(plan, self.levels, strict=True) if level.attention]
        widths = {width for here in attended for stack in (*here.down, *here.up) for width in stack.widths}
        if plan and self.middle_attention and self.middle_blocks > 1:
            widths.add(plan[-1].down_channels)
        return widths

    def num_heads(self, channels: int) -> int:
        """Return the number of attention heads at this width."""
        return self.heads or channels // (self.head_channels or channels)


# ── the channel plan ──────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class StackPlan:
    """Channels of consecutive blocks without a skip connection between them."""

    in_channels: int
    skip_channels: int
    """Channels of the skip that is joined to the input; 0 on the way down."""
    widths: tuple[int, ...]
    """Output channels of each block."""

    def blocks(self) -> Iterable[tuple[int, int]]:
        """Return the input channels (with the skip) and the output channels of each block."""
        return pairwise([self.in_channels + self.skip_channels, *self.widths])


@dataclass(frozen=True)
class LevelPlan:
    """Channels of one level."""

    in_channels: int
    down: tuple[StackPlan, ...]
    inner_channels: int
    """Channels that arrive from the coarser level, or from the middle."""
    up: tuple[StackPlan, ...]

    @property
    def down_channels(self) -> int:
        """Channels at the end of the way down."""
        return self.down[-1].widths[-1]

    @property
    def out_channels(self) -> int:
        """Channels at the end of the way up."""
        return self.up[-1].widths[-1] if self.up else self.inner_channels


def _plan_levels(levels: Sequence[LevelConfig], in_channels: int, skips: str) -> tuple[LevelPlan, ...]:
    """Return the plans of a level with these input channels and of all coarser ones."""
    if not levels:
        return ()
    level, *coarser = levels
    widths = level.down or (level.channels,) * level.blocks
    widths_up = (level.channels,) * (len(widths) + (skips == "block")) if level.up is None else level.up
    down = _plan_stacks(widths, in_channels, repeat(0), skips)
    inner = _plan_levels(coarser, widths[-1], skips)
    inner_channels = (level.from_coarser or inner[0].out_channels) if inner else widths[-1]
    available = [0 if skips == "none" else width for width in (in_channels, *(stack.widths[-1] for stack in down))]
    up = _plan_stacks(widths_up, inner_channels, reversed(available), skips)
    return LevelPlan(in_channels, down, inner_channels, up), *inner


def _plan_stacks(widths: Sequence[int], in_channels: int, taken: Iterable[int], skips: str) -> tuple[StackPlan, ...]:
    """Return the stacks of one way: of one block each, or with at most one skip per level of all blocks."""
    stacks = [(width,) for width in widths] if skips == "block" else [tuple(widths)] if widths else []
    inputs = [in_channels, *(stack[-1] for stack in stacks)]
    return tuple(StackPlan(*parts) for parts in zip(inputs, taken, stacks, strict=False))


# ── the size of the output with valid borders ─────────────────────────────────────────────────────

RESIZED: dict[str, tuple[Callable[[int], int], Callable[[int], int]]] = {
    "conv": (lambda n: (n - 1) // 2, lambda n: 2 * n - 2),
    "pool": (lambda n: n // 2, lambda n: 2 * n),
    "pool_relu": (lambda n: n // 2, lambda n: 2 * n - 1),
    "average": (lambda n: n // 2, lambda n: 2 * n),
    "residual": (lambda n: n // 2 - 4, lambda n: 2 * n - 4),
}
"""The side after downsampling and after upsampling. All are monotone and keep n <= 0, an impossible size, at <= 0."""
KEPT_AXIS = {"conv": 2, "pool": 0, "pool_relu": 0, "average": 0, "residual": 4}
"""By how much each of both shortens an axis that it does not resample."""


def output_side(config: UNetConfig, side: int, axis: int = -1) -> int:
    """Return the side of the output for the side of an input along an axis; 0 or less if the input is too small."""
    if config.padding == "same":
        return side
    plan = config.plan()
    per_block, ends = (4, 2) if config.block == "residual" else (2, 0)  # a 3-convolution takes 2
    halve, double = RESIZED[config.resampling]
    kept = KEPT_AXIS[config.resampling]
    halved = [config.halved(depth)[axis] for depth in range(len(plan))]
    side -= ends
    for depth, level in enumerate(plan):
        if depth:
            side = halve(side) if halved[depth] else side - kept
        side -= per_block * sum(len(stack.widths) for stack in level.down)
    side -= per_block * config.middle_blocks
    for depth, level in reversed(list(enumerate(plan))):
        side -= per_block * sum(len(stack.widths) for stack in level.up)
        if depth:
            side = double(side) if halved[depth] else side - kept
    return side - ends


def min_input_size(config: UNetConfig, axis: int = -1) -> int:
    """Return the smallest side of an input along an axis that the network accepts."""
    return bisect_left(range(2**40), 1, key=partial(output_side, config, axis=axis))
