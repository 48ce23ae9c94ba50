"""Feature maps, receptive field and cost of a U-Net."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor, nn

from .conditioning import Conditioning
from .config import LevelConfig, UNetConfig, min_input_size
from .layers import SelfAttention
from .meta import on_meta
from .unet import UNet

MAX_POSITIONS = 2**28
"""Largest input of `describe`: 16,384 x 16,384, or 645 cubed. Beyond it, torch cannot count attention's operations."""


def features(unet: UNet, x: Tensor, cond: Conditioning = Conditioning()) -> dict[str, Tensor]:
    """Return the feature maps of each level by name, in order of computation, each (B, C, *S).

    `down.0` is the end of the finest level's way down, `down.1` that of the next coarser one; `middle` follows the
    coarsest; `up.0` is the end of the finest way up; `output` is the network's output.
    """
    found = {}

    def store(name: str) -> Callable:
        return lambda module, inputs, *output: found.update({name: output[0] if output else inputs[0]})

    with ExitStack() as hooks:
        for depth, level in enumerate(unet.levels):
            hooks.callback(level.inner.register_forward_pre_hook(store(f"down.{depth}")).remove)
            hooks.callback(level.exit.register_forward_pre_hook(store(f"up.{depth}")).remove)
        hooks.callback(unet.levels[-1].inner.register_forward_hook(store("middle")).remove)
        output = unet(x, cond)
    return found | {"output": output}


# ── receptive field ───────────────────────────────────────────────────────────────────────────────


def receptive_field(config: UNetConfig, axis: int = -1) -> int:
    """Return the side along an axis of the box of input positions that one output position can depend on.

    Counts convolutions and resamplings (Loos et al. 2024 measure its effect on segmentation). Attention and group norm
    depend on the whole input and are not counted.
    """
    return receptive_fields(config, axis)["output"]


def receptive_fields(config: UNetConfig, axis: int = -1) -> dict[str, int]:
    """Return the receptive field of each of the `features` along an axis.

    A NaN at one input position of the probe spreads to exactly the positions that depend on it. Positions of different
    phase relative to the resamplings have different fields; the largest one counts.
    """
    probe, coarsest = build_probe(config, axis), len(config.levels) - 1
    halvings = [sum(config.halved(finer)[axis] for finer in range(depth + 1)) for depth in range(coarsest + 1)]
    strides = [config.unshuffle << number for number in halvings]
    stride = {f"{way}.{depth}": strides[depth] for way in ("down", "up") for depth in range(coarsest + 1)}
    stride |= {"middle": strides[coarsest], "output": 1}
    period = probe.config.max_stride
    side = min_input_size(config, axis) + 2 * period
    while True:
        poisoned = torch.zeros(period, 1, side, dtype=torch.float64)
        for phase in range(period):
            poisoned[phase, 0, side // 2 + phase] = torch.nan
        with torch.no_grad():
            reached = {name: feature[:, 0].isnan() for name, feature in features(probe, poisoned).items()}
        if not any(reach[:, [0, -1]].any() for reach in reached.values()):
            return {name: _widest(reach, period, period // stride[name]) for name, reach in reached.items()}
        side *= 2


def _widest(reach: Tensor, period: int, positions: int) -> int:
    """Return the largest field. reach: (poisoned phase, position) bool, with `positions` to each `period` of inputs."""
    phase, position = reach.nonzero().unbind(dim=1)
    offset = phase - position // positions * period  # from the first of this kind
    fields = [offset[position % positions == like] for like in range(positions)]
    return int(max(field.max() - field.min() for field in fields)) + 1


def build_probe(config: UNetConfig, axis: int = -1) -> UNet:
    """Return the same convolutions and resamplings along one axis, in one channel, without norms and attention.

    Sizes and receptive fields are the same as those of the network along that axis. The probe is in fp64: in
    fast fp32 kernels a NaN spreads to unrelated positions.
    """
    counts = [[sum(len(stack.widths) for stack in way) for way in (level.down, level.up)] for level in config.plan()]
    halves = [None if depth == 0 or config.halved(depth)[axis] else () for depth in range(len(counts))]
    levels = [
        LevelConfig(channels=1, down=(1,) * down, up=(1,) * up, halves=axes)
        for (down, up), axes in zip(counts, halves, strict=True)
    ]
    kept = {
        name: getattr(config, name)
        for name in ("padding", "block", "skips", "resampling", "middle_blocks", "unshuffle")
    }
    minimal = {"in_channels": 1, "out_channels": 1, "dims": 1, "norm": "none", "middle_attention": False}
    with torch.device("cpu"), torch.random.fork_rng([]):  # leaves the global generator as it is
        return UNet(UNetConfig.model_validate({"levels": levels, **minimal, **kept})).double()


# ── cost ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Part:
    """One line of a network's description; a level excludes the coarser levels inside it."""

    name: str
    size: tuple[int, ...]
    """Spatial size of the output; for a level, at the end of its way down."""
    channels: int
    attention: bool
    parameters: int
    flops: int
    """Of one example, forward; a multiply-add counts as two, as in torch."""
    receptive_field: tuple[int, ...]
    """Along each axis."""


def describe(config: UNetConfig, size: tuple[int, ...]) -> list[Part]:
    """Return the levels, the middle, stem and head, and last the whole network, for an input of this size.

    Built on the meta device: no memory, no computation. Raise ValueError for a size that is too small, or that has
    more than MAX_POSITIONS positions.
    """
    from torch.utils.flop_counter import FlopCounterMode  # takes 0.1 s, not needed by `--help`

    if prod(size) > MAX_POSITIONS:
        raise ValueError(f"size {size}: {prod(size):,} positions; use at most {MAX_POSITIONS:,}")
    with on_meta():
        unet = UNet(config).eval()
        x = torch.empty(1, config.in_channels, *size)
        planes = torch.empty(1, config.plane_channels, *size) if config.plane_channels else None
        vector = torch.empty(1, config.vector_dim) if config.vector_dim else None
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            outputs = features(unet, x, Conditioning(vector=vector, planes=planes))
    flops = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    fields = [receptive_fields(config, axis) for axis in range(config.dims)]

    def part(name: str, feature: str, outside: str, inside: str | None = None) -> Part:
        outer, inner = unet.get_submodule(outside), unet.get_submodule(inside) if inside else nn.Identity()
        return Part(
            name=name,
            size=tuple(outputs[feature].shape[2:]),
            channels=outputs[feature].shape[1],
            attention=_attention_layers(outer) > _attention_layers(inner),
            parameters=_parameters(outer) - _parameters(inner),
            flops=flops.get(f"UNet.{outside}".rstrip("."), 0) - flops.get(f"UNet.{inside}", 0),
            receptive_field=tuple(along[feature] for along in fields),
        )

    paths = ["body" + ".inner" * depth for depth in range(len(config.levels) + 1)]
    parts = [part(f"level {d}", f"down.{d}", *paths[d : d + 2]) for d in range(len(config.levels))]
    if config.middle_blocks:
        parts.append(part("middle", "middle", paths[-1]))
    whole = part("network", "output", "")
    parameters, operations = (sum(getattr(p, key) for p in parts) for key in ("parameters", "flops"))
    rest = {"parameters": whole.parameters - parameters, "flops": whole.flops - operations}
    return [*parts, replace(whole, name="stem, head", attention=False, **rest), whole]


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _attention_layers(module: nn.Module) -> int:
    return sum(isinstance(part, SelfAttention) for part in module.modules())
