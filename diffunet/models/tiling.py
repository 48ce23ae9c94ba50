"""A network over images larger than memory, tile by tile (Ronneberger et al. 2015, figure 2).

    Tiled(unet, tile=572)(image)                    # an output for every place of an image of any size
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor, nn

from .conditioning import Conditioning
from ..core.progress import no_progress
from .unet import UNet


class Tiled(nn.Module):
    """A U-Net as one that takes an image of any size, answers for all of it, and needs the memory of one tile.

    With `"valid"` borders, what the network asks for past the image's edge is mirrored, tiles overlap by what
    it eats, and the answer *is* that to the whole mirrored image, to float rounding. Group norms and attention
    are the exception: they see a tile where they would have seen the image.

    With `"same"` borders neighbours overlap by `overlap` places and are blended, with weights that rise
    linearly from a tile's edge. What is lost: a place nearer to that edge than half the receptive field
    (`inspection.receptive_field`) was told of zeros where the image has something else.

    tile: side of what the network is given at once, or one side for each axis. overlap: places; by default
    none for valid borders and a quarter of the tile for others, rounded so that tiles keep the grid of the
    coarsest level. The network may lie on another device than the image.
    ValueError for a tile that some level would not halve evenly, with the nearest that are right.
    """

    def __init__(
        self,
        unet: UNet,
        tile: int | tuple[int, ...],
        overlap: int | None = None,
        progress: Callable = no_progress,
    ):
        super().__init__()
        dims = unet.config.dims
        self.tile = (tile,) * dims if isinstance(tile, int) else tuple(tile)
        if len(self.tile) != dims:
            raise ValueError(f"tile {self.tile}: this network has {dims} axes of space")
        for side in set(self.tile):
            _refuse_uneven(unet, side)
        self.unet = unet
        self.progress = progress
        self.answer = unet.output_size(*self.tile)
        self.margin = [(t - a) // 2 for t, a in zip(self.tile, self.answer, strict=True)]
        if overlap is None:
            overlap = 0 if unet.config.padding == "valid" else min(self.tile) // 4
        grid = _grid(unet)
        self.step = [(a - overlap) // grid * grid for a in self.answer]
        if min(self.step) < grid:
            raise ValueError(f"overlap {overlap}: leaves no step from tile to tile; at most {min(self.answer) - grid}")

    def forward(self, x: Tensor, cond: Conditioning = Conditioning()) -> Tensor:
        """x: (B, in_channels, *S) for any S. Returns (B, out_channels, *S)."""
        size = x.shape[2:]
        starts = [range(0, max(n - a, 0) + s, s) for n, a, s in zip(size, self.answer, self.step, strict=True)]
        covered = [along[-1] + a for along, a in zip(starts, self.answer, strict=True)]
        total = x.new_zeros(len(x), self.unet.config.out_channels, *covered)
        weight = x.new_zeros(covered)
        ramp = self._blend_window(x)
        for corner in self.progress(list(product(*starts))):
            here = (..., *(slice(c, c + a) for c, a in zip(corner, self.answer, strict=True)))
            total[here] += self._answer(corner, x, cond) * ramp
            weight[here] += ramp
        return total[(..., *map(slice, size))] / weight[tuple(map(slice, size))]

    def _answer(self, corner: tuple[int, ...], x: Tensor, cond: Conditioning) -> Tensor:
        """What the network says for the tile whose answer begins at `corner`."""
        device = next(self.unet.parameters()).device
        places = [torch.arange(c - m, c - m + t) for c, m, t in zip(corner, self.margin, self.tile, strict=True)]
        if cond.planes is not None:
            planes = cond.planes.expand(-1, -1, *x.shape[2:])
            cond = replace(cond, planes=mirrored(planes, places).to(device))
        return self.unet(mirrored(x, places).to(device), cond).to(x.device)

    def _blend_window(self, like: Tensor) -> Tensor:
        """How much each place of a tile's answer counts, in the shape of that answer."""
        ramp = like.new_ones(())
        for answer, step in zip(self.answer, self.step, strict=True):
            inwards = torch.arange(1, answer + 1, device=like.device, dtype=like.dtype)
            ramp = ramp[..., None] * torch.minimum(inwards, inwards.flip(0)).clamp(max=answer - step + 1)
        return ramp / ramp.max()


def mirrored(x: Tensor, places: Sequence[Tensor]) -> Tensor:
    """x at these places along each axis of space; past its edges it is mirrored, as often as need be."""
    for axis, place in enumerate(places, start=2):
        period = max(2 * (x.shape[axis] - 1), 1)
        place = place.to(x.device).abs() % period
        x = x.index_select(axis, torch.minimum(place, period - place))
    return x


def valid_tile_sizes(unet: UNet, least: int, most: int) -> list[int]:
    """The sides between these two (inclusive) that every level halves without a rest, so that tiles meet exactly."""
    return [side for side in range(max(least, unet.min_input_size), most + 1) if _is_even(unet, side)]


def _grid(unet: UNet) -> int:
    """Input places to one place of the coarsest level."""
    return 2 ** (len(unet.config.levels) - 1)


def _is_even(unet: UNet, side: int) -> bool:
    if unet.config.padding == "same":
        return side % _grid(unet) == 0

    def answer(side: int) -> int:
        return unet.output_size(*[side] * unet.config.dims)[0] if side >= unet.min_input_size else 0

    return answer(side) >= _grid(unet) and answer(side) > answer(side - 1)        # a rest would have changed nothing


def _refuse_uneven(unet: UNet, side: int) -> None:
    if side >= unet.min_input_size and _is_even(unet, side):
        return
    near = max(side, unet.min_input_size)
    right = valid_tile_sizes(unet, near - 2 * _grid(unet), near + 2 * _grid(unet))
    nearest = sorted(sorted(right, key=lambda other: abs(other - side))[:2])
    raise ValueError(f"tile {side}: some level would not halve it evenly; the nearest right ones: {nearest}")
