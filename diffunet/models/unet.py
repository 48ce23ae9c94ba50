"""The U-Net: a level around a coarser level around ... the middle."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..core.runtime import full_precision
from . import layers
from .conditioning import Conditioning
from .config import LevelPlan, StackPlan, UNetConfig, min_input_size, output_side
from .layers import Stack


def call(block: nn.Module, x: Tensor, cond: Conditioning) -> Tensor:
    return block(x, cond)


class Level(nn.Module):
    """One resolution of a U-Net, around everything coarser than it.

        x ─ enter ─ down ───────── skips ────────▶ up ─ exit
                       └────▶ inner (coarser) ────┘

    Its parts are passed in, and each is called `block(x, conditioning)`: `enter` and `exit` change the resolution
    (the identity at the top); `inner` is another Level or the middle, and so a whole U-Net at half the resolution. Each
    block of `down` leaves a skip, so a whole Stack as its one block leaves one skip per level; skips that `up` does not
    take are discarded. `run` calls a block, plainly or with gradient checkpointing; `join` adds a skip to its input.
    """

    def __init__(
        self,
        enter: nn.Module,
        down: Sequence[nn.Module],
        inner: nn.Module,
        up: Sequence[nn.Module],
        exit: nn.Module,
        run: Callable[..., Any] = call,
        join: Callable[[Tensor, Tensor], Tensor] = layers.join,
    ):
        super().__init__()
        self.enter = enter
        self.down = nn.ModuleList(down)
        self.inner = inner
        self.up = nn.ModuleList(up)
        self.exit = exit
        self.run = run
        self.join = join

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        x = self.enter(x, cond)
        skips = [x]
        for block in self.down:
            x = self.run(block, x, cond)
            skips.append(x)
        x = self.inner(x, cond)
        for block in self.up:
            x = self.run(block, self.join(x, skips.pop()), cond)
        return self.exit(x, cond)


class UNet(nn.Module):
    """A U-Net (Ronneberger et al. 2015), by default of residual blocks with attention (Ho et al. 2020).

    Without conditioning it maps (B, in_channels, *S) to (B, out_channels, *S) for any size S. With `padding="valid"`
    the output is smaller than the input, whose sides need at least `min_input_size`.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        if not config.levels:
            raise ValueError("levels: empty; give at least one level")
        self.config = config
        plan, conv, norm = config.plan(), _conv(config), _norm(config)
        residual, width = config.block == "residual", plan[0].out_channels
        positions = config.block_positions
        self.stem = conv(positions * config.input_planes, plan[0].in_channels) if residual else nn.Identity()
        self.body = _build_level(config, plan, 0)
        if residual:
            self.head = nn.Sequential(
                norm(width), nn.SiLU(), layers.zero_init(conv(width, positions * config.out_channels))
            )
        else:
            self.head = conv(width, positions * config.out_channels, 1)
        self.min_input_sizes = tuple(min_input_size(config, axis) for axis in range(config.dims))

    @property
    def levels(self) -> list[Level]:
        """All levels, finest first, for hooks and feature maps."""
        return [module for module in self.body.modules() if isinstance(module, Level)]

    @property
    def min_input_size(self) -> int:
        """The smallest side that is enough along every axis."""
        return max(self.min_input_sizes)

    def forward(self, x: Tensor, cond: Conditioning = Conditioning()) -> Tensor:
        """x: (B, in_channels, *S). Raise ValueError for an input or conditioning that does not fit the config."""
        self._check_inputs(x, cond)
        size = x.shape[2:]
        if cond.planes is not None:
            x = torch.cat([x, cond.planes.expand(len(x), -1, *size)], dim=1)
        if self.config.padding == "valid":
            return self._output(self.body(self.stem(x), cond))
        side = self.config.unshuffle
        x = self._output(self.body(self.stem(layers.unshuffle(self._padded(x), side)), cond))
        return layers.shuffle(x, side)[(..., *map(slice, size))]

    def _output(self, x: Tensor) -> Tensor:
        """Return the output of the head, which mixed precision leaves as exact as its weights are."""
        with full_precision(x.device):
            return self.head(x.to(next(self.head.parameters()).dtype))

    def output_size(self, *size: int) -> tuple[int, ...]:
        """Return the sides of the output for an input with these sides. Raise ValueError if they are too small."""
        self._check_size(size)
        return tuple(output_side(self.config, side, axis) for axis, side in enumerate(size))

    def _padded(self, x: Tensor) -> Tensor:
        """Return x padded at its ends, by replication, until every level halves evenly."""
        spare = [-size % stride for size, stride in zip(x.shape[2:], self.config.strides, strict=True)]
        border = [n for extra in reversed(spare) for n in (0, extra)]
        return F.pad(x, border, mode="replicate") if any(spare) else x

    def _check_inputs(self, x: Tensor, cond: Conditioning) -> None:
        config = self.config
        if x.ndim != config.dims + 2 or x.shape[1] != config.in_channels:
            axes = ", ".join("DHW"[-config.dims :])
            raise ValueError(f"x: expected shape (B, {config.in_channels}, {axes}), got {tuple(x.shape)}")
        self._check_size(x.shape[2:])
        for name, width, axis in (("vector", config.vector_dim, 1), ("tokens", config.token_dim, 2)):
            value = getattr(cond, name)
            if value is not None and value.shape[axis] != width:
                raise ValueError(f"{name}: expected width {width}, got shape {tuple(value.shape)}")
        expected = (len(x), config.plane_channels, *x.shape[2:]) if config.plane_channels else None
        shape = None if cond.planes is None else tuple(cond.planes.shape)
        if not _broadcastable(shape, expected):
            raise ValueError(f"planes: expected shape {expected}, got {shape}")

    def _check_size(self, size: Sequence[int]) -> None:
        if any(side < least for side, least in zip(size, self.min_input_sizes, strict=True)):
            least = self.min_input_size if len(set(self.min_input_sizes)) == 1 else self.min_input_sizes
            raise ValueError(f"an input of {tuple(size)} is too small; each side needs {least}")


def _broadcastable(shape: tuple[int, ...] | None, expected: tuple[int, ...] | None) -> bool:
    """Return whether planes fit: the expected shape, or 1 along the batch or a spatial axis."""
    if shape is None or expected is None or len(shape) != len(expected):
        return shape == expected
    return shape[1] == expected[1] and all(side in (1, full) for side, full in zip(shape, expected, strict=True))


# ── building the parts of a config ────────────────────────────────────────────────────────────────


def _build_level(config: UNetConfig, plan: Sequence[LevelPlan], depth: int) -> Level:
    here, level = plan[depth], config.levels[depth]
    coarsest = depth == len(plan) - 1
    return Level(
        enter=_build_downsample(config, here.in_channels, _factors(config, depth)) if depth else Stack(),
        down=[_build_stack(config, stack, level.attention) for stack in here.down],
        inner=_build_middle(config, here.down_channels) if coarsest else _build_level(config, plan, depth + 1),
        up=[_build_stack(config, stack, level.attention) for stack in here.up],
        exit=_build_upsample(config, here.out_channels, plan[depth - 1].inner_channels, _factors(config, depth))
        if depth
        else Stack(),
        run=partial(checkpoint, use_reentrant=False) if level.gradient_checkpointing else call,
        join=layers.without_skip if config.skips == "none" else layers.join,
    )


def _build_stack(config: UNetConfig, plan: StackPlan, attention: bool) -> Stack:
    return Stack(part for n, m in plan.blocks() for part in _build_block(config, n, m, attention))


def _build_middle(config: UNetConfig, channels: int) -> Stack:
    between = [config.middle_attention] * (config.middle_blocks - 1) + [False]
    return Stack(part for a in between[: config.middle_blocks] for part in _build_block(config, channels, channels, a))


def _build_block(config: UNetConfig, in_channels: int, out_channels: int, attention: bool) -> list[nn.Module]:
    """Return a block, followed by its attention."""
    kind = layers.ResidualBlock if config.block == "residual" else layers.PlainBlock
    parts: list[nn.Module] = [kind(in_channels, out_channels, _conv(config), **_block_parts(config))]
    if attention:
        heads, norm = config.num_heads(out_channels), _norm(config)
        parts.append(layers.SelfAttention(out_channels, heads, norm))
        if config.token_dim:
            parts.append(layers.CrossAttention(out_channels, heads, norm, config.token_dim))
    return parts


def _factors(config: UNetConfig, depth: int) -> layers.Factors:
    """Return by how much a level is coarser than the finer one along each axis."""
    return tuple(2 if halved else 1 for halved in config.halved(depth))


def _build_downsample(config: UNetConfig, channels: int, factors: layers.Factors) -> nn.Module:
    """Return a block from `channels` to `channels` at a size smaller by the factors."""
    match config.resampling:
        case "conv":
            return layers.Downsample(channels, _conv(config), factors)
        case "conv_end_padded":
            return layers.DownsampleEndPadded(channels, factors)
        case "pool" | "pool_relu":
            return layers.IgnoreCond(layers.by_dims("MaxPool", config.dims)(factors))
        case "average":
            return layers.IgnoreCond(layers.by_dims("AvgPool", config.dims)(factors))
        case "residual":
            pool = layers.by_dims("AvgPool", config.dims)(factors)
            return layers.ResidualBlock(channels, channels, _conv(config), resize=pool, **_block_parts(config))


def _build_upsample(config: UNetConfig, in_channels: int, out_channels: int, factors: layers.Factors) -> nn.Module:
    """Return a block from `in_channels` to `out_channels` at a size larger by the factors."""
    transposed, parts = partial(layers.transposed_convolution, factors, config.padding), _block_parts(config)
    match config.resampling:
        case "conv" | "conv_end_padded":
            return layers.Upsample(in_channels, out_channels, _conv(config), factors)
        case "pool":
            return layers.IgnoreCond(transposed(in_channels, out_channels, bias=config.transposed_bias))
        case "pool_relu":
            return layers.PlainBlock(in_channels, out_channels, partial(transposed, kernel_size=3), **parts)
        case "average":
            return layers.IgnoreCond(layers.nearest(factors))
        case "residual":
            enlarged = layers.nearest(factors)
            return layers.ResidualBlock(in_channels, out_channels, _conv(config), resize=enlarged, **parts)


def _conv(config: UNetConfig) -> layers.Conv:
    return partial(layers.convolution, config.dims, config.padding)


def _norm(config: UNetConfig) -> layers.Norm:
    return {
        "group": partial(layers.group_norm, config.norm_groups, config.norm_eps),
        "instance": partial(layers.instance_norm, config.norm_eps),
        "batch": partial(layers.by_dims("BatchNorm", config.dims), eps=config.norm_eps),
        "none": nn.Identity,
    }[config.norm]


def _block_parts(config: UNetConfig) -> dict[str, Any]:
    """Return the arguments that every kind of block takes."""
    norm = _norm(config)
    modulated = partial(layers.Modulated, vector_dim=config.vector_dim, norm=norm, modulation=config.modulation)
    return {"norm": norm, "modulated": modulated, "dropout": config.dropout}
