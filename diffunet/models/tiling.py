"""Inference on images larger than memory, tile by tile (Ronneberger et al. 2015, figure 2).

Tiled(unet, tile=572)(image)                    # an output for every position of an image of any size
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor, nn

from ..core.progress import no_progress
from ..core.reflect import reflect_index
from .conditioning import Conditioning
from .config import output_side
from .unet import UNet

Box = Sequence[tuple[int, int]]
"""The first position, and that after the last, along each axis."""


class Tiled(nn.Module):
    """A U-Net for images of any size in the memory of one tile; the output has the size of the image.

    With `"valid"` borders, the input beyond the image's edge is the reflected image, tiles overlap by the border that
    the network consumes, and the output *equals* that for the whole reflected image, to float rounding. Group norm and
    attention are the exception: their statistics are those of a tile.

    With `"same"` borders, neighboring tiles overlap by `overlap` positions and are blended, with weights that rise
    linearly from a tile's edge inside the image; the last tile of an axis ends at the image's edge. Positions nearer to
    an edge inside the image than half the receptive field (`inspection.receptive_field`) see zero padding there.

    tile: side of the network's input, or one side for each axis. overlap: in positions; by default none for valid
    borders and a quarter of the tile for others, rounded so that tiles keep the grid of the coarsest level. around:
    called for each tile instead of the U-Net, which it contains; then images may have any type that it takes.
    channels: of what it returns, if not as many as the U-Net's. The network may be on another device than the image.
    Raise ValueError for a tile that some level would not halve evenly, with the nearest valid sides.
    """

    def __init__(
        self,
        unet: UNet,
        tile: int | tuple[int, ...],
        overlap: int | None = None,
        progress: Callable = no_progress,
        around: Callable[..., Tensor] | None = None,
        channels: int | None = None,
    ):
        super().__init__()
        dims = unet.config.dims
        self.tile = (tile,) * dims if isinstance(tile, int) else tuple(tile)
        if len(self.tile) != dims:
            raise ValueError(f"tile {self.tile}: the network has {dims} axes; give one side for each")
        for axis, side in enumerate(self.tile):
            _check_even(unet, side, axis)
        self.unet, self.around = unet, around or unet
        self.channels = channels or unet.config.out_channels
        self.progress = progress
        self.output_size = unet.output_size(*self.tile)
        self.border = [t - n for t, n in zip(self.tile, self.output_size, strict=True)]
        self.reflects = unet.config.padding == "valid"
        self.grid = unet.config.strides
        wanted = [(0 if self.reflects else n // 4) if overlap is None else overlap for n in self.output_size]
        self.step = [(n - w) // g * g for n, w, g in zip(self.output_size, wanted, self.grid, strict=True)]
        if overlap is None:
            self.step = [max(step, grid) for step, grid in zip(self.step, self.grid, strict=True)]
        if any(step < grid for step, grid in zip(self.step, self.grid, strict=True)):
            most = min(n - grid for n, grid in zip(self.output_size, self.grid, strict=True))
            raise ValueError(f"overlap {overlap}: leaves no step from tile to tile; use at most {most}")

    def forward(self, x: Tensor, cond: Conditioning = Conditioning(), box: Box | None = None) -> Tensor:
        """Return (B, out_channels, *S) for x (B, in_channels, *S) of any S; of a box, only what is inside it.

        In memory are the image and the output, so that an output of any size can be computed box by box. Tiles that
        several boxes share are computed for each of them, and give the same values.
        """
        size = x.shape[2:]
        box = box or [(0, side) for side in size]
        axes = [self._layout(axis, side) for axis, side in enumerate(size)]
        tile = [side for _, side in axes]
        covered = [starts[-1] + side for starts, side in axes]
        # also beyond the image, up to the end of the tiles
        inside = [
            (start, end if stop == side else stop) for (start, stop), side, end in zip(box, size, covered, strict=True)
        ]
        sides = [stop - start for start, stop in inside]
        weight = torch.zeros(sides, dtype=x.dtype if x.is_floating_point() else torch.float32, device=x.device)
        total = weight.new_zeros(len(x), self.channels, *sides)
        corners = (_starts_within(*layout, *ends) for layout, ends in zip(axes, inside, strict=True))
        for corner in self.progress(list(product(*corners))):
            window = self._blend_window(corner, tile, covered, weight)
            predicted = self._predict_tile(corner, tile, x, cond)
            here, there = _shared(corner, tile, inside)
            total[..., *here] += predicted[..., *there] * window[there]
            weight[here] += window[there]
        kept = tuple(slice(0, stop - start) for start, stop in box)
        return total[..., *kept] / weight[kept]

    def _layout(self, axis: int, side: int) -> tuple[list[int], int]:
        """Return where the outputs of tiles start along an axis, and their side."""
        output, step = self.output_size[axis], self.step[axis]
        if self.reflects:
            return list(range(0, max(side - output, 0) + step, step)), output
        side = -(-side // self.grid[axis]) * self.grid[axis]  # as the network pads it
        output = min(output, side)
        return [min(start, side - output) for start in range(0, side - output + step, step)], output

    def _predict_tile(self, corner: tuple[int, ...], tile: list[int], x: Tensor, cond: Conditioning) -> Tensor:
        """Return the output, of the sides `tile`, that starts at `corner`."""
        device = next(self.unet.parameters()).device
        indices = []
        for start, side, border, size in zip(corner, tile, self.border, x.shape[2:], strict=True):
            position = torch.arange(side + border, device=x.device) + start - border // 2
            indices.append(reflect_index(position, size) if self.reflects else position.clamp(max=size - 1))
        if cond.planes is not None:
            planes = cond.planes.expand(-1, -1, *x.shape[2:])
            cond = replace(cond, planes=_gather(planes, indices).to(device))
        return self.around(_gather(x, indices).to(device), cond).to(x.device)

    def _blend_window(self, corner: tuple[int, ...], tile: list[int], covered: list[int], like: Tensor) -> Tensor:
        """Return the weight of each position of a tile's output, which rises linearly from edges inside the image."""
        window = like.new_ones(())
        for start, side, end, output, step in zip(corner, tile, covered, self.output_size, self.step, strict=True):
            inwards = torch.arange(1, side + 1, device=like.device, dtype=like.dtype)
            ramp = (inwards / (output - step + 1)).clamp(max=1)
            rise = ramp if start else torch.ones_like(ramp)
            fall = ramp.flip(0) if start + side < end else torch.ones_like(ramp)
            window = window[..., None] * torch.minimum(rise, fall)
        return window


def _starts_within(starts: list[int], side: int, first: int, stop: int) -> list[int]:
    """Return the starts of the tiles along an axis that have positions in [first, stop)."""
    return [start for start in starts if start < stop and start + side > first]


def _shared(corner: tuple[int, ...], tile: list[int], box: Box) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return the positions that a tile and a box share, as slices of the box and of the tile."""
    here, there = [], []
    for start, side, (first, stop) in zip(corner, tile, box, strict=True):
        low, high = max(start, first), min(start + side, stop)
        here.append(slice(low - first, high - first))
        there.append(slice(low - start, high - start))
    return tuple(here), tuple(there)


def _gather(x: Tensor, indices: Sequence[Tensor]) -> Tensor:
    """Return x at these indices along each spatial axis."""
    for axis, index in enumerate(indices, start=2):
        x = x.index_select(axis, index.to(x.device))
    return x


def valid_tile_sizes(unet: UNet, least: int, most: int, axis: int = -1) -> list[int]:
    """Return the sides in [least, most] along an axis that every level halves evenly, so that tiles join exactly."""
    smallest = unet.min_input_sizes[axis]
    return [side for side in range(max(least, smallest), most + 1) if _is_even(unet, side, axis)]


def _is_even(unet: UNet, side: int, axis: int) -> bool:
    grid = unet.config.strides[axis]
    if unet.config.padding == "same":
        return side % grid == 0
    output, shorter = (output_side(unet.config, n, axis) for n in (side, side - 1))
    return output >= grid and output > max(shorter, 0)  # else the last position is unused


def _check_even(unet: UNet, side: int, axis: int) -> None:
    smallest = unet.min_input_sizes[axis]
    if side >= smallest and _is_even(unet, side, axis):
        return
    near, reach = max(side, smallest), 2 * unet.config.strides[axis]
    valid = valid_tile_sizes(unet, near - reach, near + reach, axis)
    nearest = sorted(sorted(valid, key=lambda other: abs(other - side))[:2])
    raise ValueError(f"tile {side}: some level would not halve it evenly; nearest valid sides: {nearest}")
