"""A U-Net seen from outside: what its levels say, how far it sees, what it costs."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .conditioning import Conditioning
from .layers import SelfAttention
from .meta import on_meta
from .unet import UNet, UNetConfig, build_probe, min_input_size


def features(unet: UNet, x: Tensor, cond: Conditioning = Conditioning()) -> dict[str, Tensor]:
    """What each level says, by name, in the order in which it is said, each (B, C, *S).

    `down.0` is the end of the finest level's way down, `down.1` of the next coarser one's; `middle` follows
    the coarsest; `up.0` is the end of the finest way up; `output` is the answer.
    """
    found = {}

    def named(name: str) -> Callable:
        return lambda module, inputs, *output: found.update({name: output[0] if output else inputs[0]})

    with ExitStack() as hooks:
        for depth, level in enumerate(unet.levels):
            hooks.callback(level.inner.register_forward_pre_hook(named(f"down.{depth}")).remove)
            hooks.callback(level.exit.register_forward_pre_hook(named(f"up.{depth}")).remove)
        hooks.callback(unet.levels[-1].inner.register_forward_hook(named("middle")).remove)
        output = unet(x, cond)
    return found | {"output": output}


def receptive_field(config: UNetConfig) -> int:
    """The side of the square (cube) of input places that one place of the output can depend on, over the
    convolutions and resamplings of the way down and up (Loos et al. 2024 measure what it does to a segmentation).

    Attention and group norms see the whole input; what they add is not counted.
    """
    return receptive_fields(config)["output"]


def receptive_fields(config: UNetConfig) -> dict[str, int]:
    """The receptive field of each of the `features`.

    Found on the network's twin along one axis, with one channel: an input place is poisoned with a NaN, and
    lies in the field of each place that becomes NaN. Places of different phase behind the resamplings see
    differently far; the largest field counts.
    """
    path, coarsest = build_probe(config), len(config.levels) - 1
    depths = {f"{way}.{depth}": depth for way in ("down", "up") for depth in range(coarsest + 1)}
    depths |= {"middle": coarsest, "output": 0}
    period = 2**coarsest
    side = min_input_size(config) + 2 * period
    while True:
        poisoned = torch.zeros(period, 1, side, dtype=torch.float64)
        for phase in range(period):
            poisoned[phase, 0, side // 2 + phase] = torch.nan
        with torch.no_grad():
            reached = {name: said[:, 0].isnan() for name, said in features(path, poisoned).items()}
        if not any(reach[:, [0, -1]].any() for reach in reached.values()):
            return {name: _widest(reach, period, period >> depths[name]) for name, reach in reached.items()}
        side *= 2


def _widest(reach: Tensor, period: int, places: int) -> int:
    """The largest field. reach: (poisoned phase, place) bool; `places` of them to each `period` of the input."""
    phase, place = reach.nonzero().unbind(dim=1)
    seen = phase - place // places * period                                       # as seen from the first such place
    fields = [seen[place % places == like] for like in range(places)]
    return int(max(field.max() - field.min() for field in fields)) + 1


@dataclass(frozen=True)
class Part:
    """One line of a network's description; a level counts what it adds around the coarser ones."""

    name: str
    size: tuple[int, ...]
    """Of what it says; a level's is that of its way down."""
    channels: int
    attention: bool
    parameters: int
    flops: int
    """For one example, forward; a multiplication and its addition are two, as torch counts."""
    receptive_field: int


def describe(config: UNetConfig, size: tuple[int, ...]) -> list[Part]:
    """Stem, levels, middle and head, and last the whole network, for an input of this size.

    The network is built without memory, and nothing is computed. ValueError where the size is too small.
    """
    from torch.utils.flop_counter import FlopCounterMode  # a tenth of a second, which `--help` need not wait for

    with on_meta():
        unet = UNet(config).eval()
        x, planes, vector = torch.empty(1, config.in_channels, *size), None, None
        if config.plane_channels:
            planes = torch.empty(1, config.plane_channels, *size)
        if config.vector_dim:
            vector = torch.empty(1, config.vector_dim)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            said = features(unet, x, Conditioning(vector=vector, planes=planes))
    flops = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    fields = receptive_fields(config)

    def part(name: str, feature: str, outside: str, inside: str | None = None) -> Part:
        around, within = unet.get_submodule(outside), unet.get_submodule(inside) if inside else nn.Identity()
        return Part(
            name=name,
            size=tuple(said[feature].shape[2:]),
            channels=said[feature].shape[1],
            attention=_attends(around) > _attends(within),
            parameters=_parameters(around) - _parameters(within),
            flops=flops.get(f"UNet.{outside}".rstrip("."), 0) - flops.get(f"UNet.{inside}", 0),
            receptive_field=fields[feature],
        )

    paths = ["body" + ".inner" * depth for depth in range(len(config.levels) + 1)]
    levels = [part(f"level {d}", f"down.{d}", *paths[d : d + 2]) for d in range(len(config.levels))]
    whole = part("network", "output", "")
    middle = [part("middle", "middle", paths[-1])] if config.middle_blocks else []
    rest = [*levels, *middle]
    ends = replace(
        whole,
        name="stem, head",
        attention=False,
        parameters=whole.parameters - sum(p.parameters for p in rest),
        flops=whole.flops - sum(p.flops for p in rest),
    )
    return [*rest, ends, whole]


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _attends(module: nn.Module) -> int:
    return sum(isinstance(part, SelfAttention) for part in module.modules())
