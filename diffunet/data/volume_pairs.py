"""Volumes with their targets, resampled to one spacing."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..core.errors import UserError
from .decoding import UNREADABLE, finite, reason_of
from .pair_files import PairFiles, digest_of
from .pairs import Pair, PairConfig, Source, find_pairs, split_fold
from .volumes.files import FORMATS, inspect_volume, read_volume
from .volumes.grids import Grid, Volume, grid_distance
from .volumes.layouts import find_published, names_in
from .volumes.resampling import resample

ALIKE = 0.01
"""Relative difference of spacings below which a volume is left as it is."""
SAME_PLACE = 1e-3
"""Voxels by which the corners of an image and of its target may differ."""


def find_volume_pairs(config: PairConfig, log: Callable[[str], None]) -> list[Pair]:
    """Return the cases of a folder of volumes, also in the layouts of BRATS and SLIVER07."""
    folder = Path(config.path).expanduser()
    published = find_published(folder, log) if config.targets is None and folder.is_dir() else []
    return published or find_pairs(config, log, FORMATS)


class VolumeFolder(PairFiles):
    """Pairs of files with a volume each."""

    def __init__(self, config: PairConfig, pairs: list[Pair]):
        self.pairs, self.names = pairs, [pair.name for pair in pairs]
        self.weighted = any(pair.weight for pair in pairs)
        found = {source.path: _inspect(source) for pair in pairs for source in pair.image}
        self.grids = [found[pair.image[0].path][1] for pair in pairs]
        trained, _ = split_fold(self.names, config)
        names = names_in(Path(config.path).expanduser()) if config.class_names is None else None
        update = {"spacing": _settled(config, [self.grids[i] for i in trained]), "class_names": names}
        self.config = config.model_copy(update={key: value for key, value in update.items() if value is not None})
        self.changed = [os.stat(source.path).st_mtime_ns for pair in pairs for source in (*pair.image, pair.target)]

    def image(self, index: int) -> Tensor:
        volume = read_volumes(self.pairs[index].image, self.config.channels)
        return self._resampled(volume, nearest=False)

    def codes(self, index: int) -> np.ndarray:
        values = self._target(index).values
        if len(values) > 1 or (values.is_floating_point() and not torch.equal(values, values.floor())):
            what = f"{len(values)} channels" if len(values) > 1 else "fractions"
            raise UserError(f"{self.place(index)}: {what}, not labels; a regression's targets are numbers")
        grid = self.grids[index]
        return self._resampled(Volume(values.to(torch.int32), grid), nearest=True)[0].numpy().astype(np.int64)

    def values(self, index: int) -> Tensor:
        target = self._target(index)
        return self._resampled(Volume(target.values.float(), target.grid), nearest=False)

    def weight(self, index: int) -> Tensor | None:
        source = self.pairs[index].weight
        if source is None:
            return None
        weight = read_volumes([source], 1)
        return self._resampled(Volume(weight.values.float(), self.grids[index]), nearest=False)[0]

    def spacing(self, index: int) -> tuple[float, ...] | None:
        if isinstance(self.config.spacing, tuple) and self.grids[index] is not None:
            return self.config.spacing
        grid = self.grids[index]
        return None if grid is None else grid.spacing

    def place(self, index: int) -> str:
        return str(self.pairs[index].target)

    def digest(self) -> bytes:
        return digest_of(self.pairs)

    def _resampled(self, volume: Volume, nearest: bool) -> Tensor:
        return at_spacing(volume, self.config.spacing, nearest).values

    def _target(self, index: int) -> Volume:
        """Return the target of a case. Raise UserError unless it is where the image is."""
        pair, grid = self.pairs[index], self.grids[index]
        target = read_volumes([pair.target], None)
        if grid is not None and target.grid is not None:
            shape = _inspect(pair.image[0])[0][1:]
            if tuple(target.values.shape[1:]) == shape:
                off = grid_distance(grid, shape, target.grid, shape)
                if off > SAME_PLACE:
                    raise UserError(
                        f"{pair.target}: is {off:.3g} voxels from where {pair.image[0].path} is; resample one to the "
                        "grid of the other"
                    )
        return target


def read_volumes(sources: Sequence[Source], channels: int | None) -> Volume:
    """Return a volume, (C, D, H, W), in the units of its files: one, or one for each channel.

    Raise UserError if a file cannot be read, or if the channels have different sizes or places.
    """
    found: list[Volume] = []
    for source in sources:
        try:
            volume = read_volume(Path(source.path), channels if len(sources) == 1 else None)
            found.append(Volume(finite(volume.values), volume.grid))
        except UNREADABLE as error:
            raise UserError(f"{source}: {reason_of(error)}") from None
    first = found[0]
    for source, other in zip(sources, found, strict=True):
        shapes = [tuple(each.values.shape[1:]) for each in (first, other)]
        if shapes[0] != shapes[1]:
            sizes = ["×".join(map(str, shape)) for shape in shapes]
            raise UserError(f"{source}: has {sizes[1]} voxels, {sources[0].path} {sizes[0]}; resample one")
        if first.grid and other.grid and grid_distance(first.grid, shapes[0], other.grid, shapes[1]) > SAME_PLACE:
            raise UserError(f"{source}: is not where {sources[0].path} is; resample one to the grid of the other")
    values = first.values if len(found) == 1 else torch.cat([each.values.float() for each in found])
    return Volume(values, first.grid)


def at_spacing(volume: Volume, spacing: tuple[float, ...] | str | None, nearest: bool) -> Volume:
    """Return a volume resampled to a spacing (z, y, x) in millimeters.

    It remains as it is if it has no spacing of its own, or about the same.
    """
    if volume.grid is None or not isinstance(spacing, tuple) or _alike(volume.grid.spacing, spacing):
        return volume
    return Volume(*resample(volume.values, volume.grid, spacing, nearest))


def _alike(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(abs(a / b - 1) <= ALIKE for a, b in zip(one, other, strict=True))


def _settled(config: PairConfig, grids: Sequence[Grid | None]) -> tuple[float, ...] | str | None:
    """Return the spacing to which volumes are resampled, that of the config or the median of the training cases."""
    known = [grid.spacing for grid in grids if grid is not None]
    if config.spacing is not None or not known:
        return config.spacing
    return tuple(float(f"{side:.4g}") for side in np.median(known, axis=0))


def _inspect(source: Source) -> tuple[tuple[int, ...], Grid | None]:
    try:
        return inspect_volume(Path(source.path))
    except UNREADABLE as error:
        raise UserError(f"{source}: {reason_of(error)}") from None
