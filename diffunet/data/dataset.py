"""Datasets of images: integers of the files' bit depth until `prepare` makes them batches of fp32 in [-1, 1]."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.progress import no_progress
from ..core.rng import BatchRNG, fixed_subset
from .augmentation import distort
from .columns import Column
from .config import DataConfig
from .decoding import UNREADABLE, decode, describe_unreadable, inspect, resize, values_of
from .digits import digit_images, digit_table, load_digits
from .pixels import normalize, pixel_dtype
from .quiet import quiet
from .sources import Table, encoded_images, fingerprint, load_rows

if TYPE_CHECKING:
    from datasets import Dataset

HELD_OUT_LIMIT = 1000
"""Maximum number of held-out images."""
SURVEY_LIMIT = 1000
"""Maximum number of images inspected for channels, bit depth and sizes, and hashed for the fingerprint."""


@dataclass(frozen=True)
class ImageDataset:
    """A dataset ready for training: batches of integers by index, and their preparation.

    `config` is resolved: resolution, channels and bit depth are those of the images.
    """

    config: DataConfig
    images: "Tensor | LazyImages"
    """(N, C, H, W) integers, or an object that returns such for a list of indices."""
    columns: Mapping[str, Column] = field(default_factory=dict)
    """The values of each condition."""
    conditions: Mapping[str, Any] = field(default_factory=dict)
    """The configuration of each condition, completed from the data."""
    indices: Tensor | None = None
    """The images in use, (n,) int64; None: all."""
    fingerprint: str = ""
    """Equal for equal files and conditions, wherever they are and however they are decoded."""

    def __len__(self) -> int:
        return len(self.images) if self.indices is None else len(self.indices)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """Return a batch: `image`, integers (B, C, H, W), and each condition. Called by torch's `DataLoader`."""
        if indices and not 0 <= min(indices) <= max(indices) < len(self):
            raise IndexError(f"indices {min(indices)} to {max(indices)} of a dataset of {len(self)} images")
        chosen = torch.tensor(indices) if self.indices is None else self.indices[indices]
        if self.device.type == "cuda":
            chosen = chosen.pin_memory().to(self.device, non_blocking=True)
        image = self.images[chosen if isinstance(self.images, Tensor) else chosen.tolist()]
        return {"image": image, **{name: column[chosen] for name, column in self.columns.items()}}

    def split_held_out(self) -> tuple["ImageDataset", "ImageDataset"]:
        """Return the training images and the held-out ones: always the same for the same number of images."""
        number = min(HELD_OUT_LIMIT, int(self.config.held_out * len(self)))
        order = fixed_subset(len(self), len(self))
        held_out, trained = order[:number].sort().values, order[number:].sort().values
        return replace(self, indices=trained), replace(self, indices=held_out)

    @property
    def device(self) -> torch.device:
        """The device of the batches."""
        return self.images.device if isinstance(self.images, Tensor) else torch.device("cpu")

    def to(self, device: torch.device) -> "ImageDataset":
        """Return the dataset on a GPU if it is decoded and leaves three quarters of the free memory, else itself."""
        if device.type != "cuda" or not isinstance(self.images, Tensor):
            return self
        if self.images.nbytes > torch.cuda.mem_get_info(device)[0] / 4:
            return self
        columns = {name: column.to(device) for name, column in self.columns.items()}
        return replace(self, images=self.images.to(device), columns=columns)

    def plain(self) -> "ImageDataset":
        """Return the dataset without flips, augmentation and dropped words, for validation."""
        config = self.config.model_copy(update={"random_flip": False, "augmentation": 0.0})
        return replace(self, config=config, columns={name: column.plain() for name, column in self.columns.items()})

    @property
    def workers(self) -> int:
        """The number of processes worth starting to fetch batches."""
        return 0 if isinstance(self.images, Tensor) else self.config.workers

    def prepare(self, batch: dict[str, Tensor], rng: BatchRNG) -> dict[str, Tensor]:
        """Return the batch as the network takes it: images in [-1, 1], flipped and augmented as configured, conditions.

        Conditions that are images themselves are flipped and distorted with their image.
        """
        image = normalize(batch["image"], self.config.bit_depth)
        aligned = {name: column.aligned(batch[name]) for name, column in self.columns.items()}
        aligned = {name: source for name, source in aligned.items() if source is not None}
        widths = [part.shape[1] for part in (image, *aligned.values())]
        image = torch.cat([image, *aligned.values()], dim=1) if aligned else image
        if self.config.random_flip:
            flip = rng.uniform_like(image) < 0.5
            image = torch.where(flip[:, None, None, None], image.flip(-1), image)
        if self.config.augmentation:
            image, augment_labels = distort(image, self.config.augmentation, rng)
            batch = {**batch, "augmentation": augment_labels}
        image, *sources = image.split(widths, dim=1)
        batch = {**batch, "image": image, **dict(zip(aligned, sources, strict=True))}
        return {**batch, **{name: column.prepare(batch[name], image, rng) for name, column in self.columns.items()}}


def load_images(
    config: DataConfig,
    conditions: Mapping[str, Any] = {},
    folder: Path | None = None,
    log: Callable[[str], None] = print,
    progress: Callable = no_progress,
) -> ImageDataset:
    """Return the images of a config with the values of its conditions, each a `conditions.base.ConditionConfig`.

    `folder` is the model/ folder of a run that is resumed or evaluated. A condition without a column of its own name
    is logged and left out. The findings are logged; `progress` wraps the decoding. Raise UserError if nothing usable is
    found.
    """
    if config.path == "digits":
        config, images, table, surveyed = _load_digits(config)
    else:
        rows = load_rows(config.path, config.split, log)
        files = encoded_images(rows, config.image_column, config.path)
        surveyed = files.select(_survey(len(files)))["image"]
        config = _resolve(config, files, log)
        images, table = LazyImages(files, config), Table(config.path, rows)
    table.format = config
    columns, resolved = {}, {}
    for name, condition in conditions.items():
        if found := condition.read(name, table, folder):
            resolved[name], columns[name] = found
        else:
            log(f"conditions.{name}: no column {name} in {config.path}; training without it")
    digest = fingerprint(len(images), columns, surveyed)
    dataset = ImageDataset(config, images, columns, resolved, fingerprint=digest)
    if isinstance(images, Tensor):
        return dataset
    values = len(images) * config.channels * math.prod(config.size)
    gibibytes = values * pixel_dtype(config.bit_depth).itemsize / 2**30
    if gibibytes > config.memory_budget:
        log(f"{len(images):,} images ({gibibytes:.1f} GiB decoded, over data.memory_budget): decoded as needed")
        return dataset
    decoded, kept = _decode_all(images, log, progress)
    return replace(dataset, images=decoded, columns={name: column.select(kept) for name, column in columns.items()})


def _survey(number: int) -> np.ndarray:
    """Return at most SURVEY_LIMIT evenly spaced indices of `number` images."""
    return np.unique(np.linspace(0, number - 1, min(SURVEY_LIMIT, number)).astype(int))


def _load_digits(config: DataConfig) -> tuple[DataConfig, Tensor, Table, list[dict]]:
    """Return the completed config, the built-in digits, their columns, and some of them for the fingerprint."""
    if config.channels not in (None, 1) or config.bit_depth not in (None, 8):
        raise UserError("data: the built-in digits are gray with 8 bits; leave channels and bit_depth out")
    config = config.model_copy(update={"resolution": config.resolution or 8, "channels": 1, "bit_depth": 8})
    levels, _ = load_digits()
    surveyed = [{"bytes": levels[index].numpy().tobytes(), "path": None} for index in _survey(len(levels))]
    return config, resize(digit_images(), config.size), digit_table(), surveyed


class LazyImages:
    """Images in their files, decoded when they are indexed."""

    def __init__(self, files: "Dataset", config: DataConfig):
        self.files = files
        self.config = config
        self.reported = torch.zeros(len(files), dtype=torch.bool).share_memory_()
        """Unreadable images reported so far, shared between loader workers so that each is reported once."""

    def __len__(self) -> int:
        return len(self.files)

    def decode(self, row: dict | None) -> Tensor:
        """Return one image, (C, H, W), in the size and bit depth of the config. Raise UNREADABLE."""
        config = self.config
        return resize(decode(row, config.channels, config.bit_depth, config.value_range), config.size)

    @quiet()
    def __getitem__(self, indices: list[int]) -> Tensor:
        """Return (B, C, H, W). An unreadable image is reported and replaced by the next readable one."""
        return torch.stack([self._readable(index) for index in indices])

    def _readable(self, index: int) -> Tensor:
        for offset in range(len(self)):
            place = (index + offset) % len(self)
            row = self.files[place]["image"]
            try:
                return self.decode(row)
            except UNREADABLE as error:
                if not self.reported[place]:
                    print(f"skipped {describe_unreadable(row, place, error)}")
                self.reported[place] = True
        raise UserError(f"data.path: none of the {len(self)} images in {self.config.path} is readable any more")


@quiet()
def _resolve(config: DataConfig, files: "Dataset", log: Callable[[str], None]) -> DataConfig:
    """Return the config with channels, bit depth and size taken from the files where they are null."""
    if config.value_range and not config.value_range[0] < config.value_range[1]:
        raise UserError(f"data.value_range: not increasing (got {list(config.value_range)}); give [least, greatest]")
    surveyed = _survey(len(files))
    kinds, sizes, broken = Counter(), Counter(), []
    for index, row in zip(surveyed, files.select(surveyed)["image"], strict=True):
        try:
            kind = inspect(row)
            kinds[kind.channels, kind.bit_depth, kind.name] += 1
            sizes[kind.size] += 1
        except UNREADABLE as error:
            broken.append(describe_unreadable(row, index, error))  # logged when it is decoded
    if not kinds:
        inspected = f"{len(surveyed)} inspected of {len(files)}" if len(surveyed) < len(files) else f"{len(files)}"
        raise UserError(f"data.path: none of the {inspected} images in {config.path} is readable: {broken[0]}")
    channels = {c for c, _, _ in kinds}
    low, high = min(sizes), max(sizes)
    if config.resolution is None and len(sizes) > 1:
        raise UserError(
            f"data.resolution: the images in {config.path} have {len(sizes)} sizes, {low[0]}×{low[1]} to "
            f"{high[0]}×{high[1]} (height×width); choose one, such as 64 or [48, 64]"
        )
    update = {
        "resolution": config.resolution or (low[0] if low[0] == low[1] else low),
        "channels": config.channels or (3 if len(channels) > 1 else max(channels)),
        "bit_depth": config.bit_depth or min(d for _, d, _ in kinds),
    }
    if config.value_range is None and min(d for _, d, _ in kinds) == 32:
        update["value_range"] = _value_range(files, surveyed)
    config = config.model_copy(update=update)
    modes = ", ".join(f"{n} {mode}{' 16-bit' * (d == 16)}" for (_, d, mode), n in kinds.most_common())
    spread = f"{low[0]}×{low[1]}" if len(sizes) == 1 else f"{len(sizes)} sizes"
    inspected = "" if len(surveyed) == len(files) else f"{len(surveyed):,} inspected: "
    log(
        f"{len(files):,} images ({inspected}{modes}; {spread}) -> {config.size[0]}×{config.size[1]} pixels, "
        f"{config.channels} channel{'s' * (config.channels > 1)}, {config.bit_depth} bits"
    )
    if 4 in channels and config.channels != 4:
        log("transparent images are composited on white; --data.channels 4 keeps the transparency")
    return config


def _value_range(files: "Dataset", surveyed: np.ndarray) -> tuple[float, float]:
    """Return the least and the greatest value of the readable files among those surveyed."""
    values = []
    for row in files.select(surveyed)["image"]:
        with suppress(UNREADABLE):  # logged when it is decoded
            values.extend(values_of(row))
    low, high = min(values, default=0.0), max(values, default=1.0)
    return low, high if high > low else low + 1


@quiet()
def _decode_all(images: LazyImages, log: Callable[[str], None], progress: Callable) -> tuple[Tensor, Tensor]:
    """Return all readable images, (N, C, H, W), and their indices. The others are logged."""
    config = images.config
    try:
        pixels = torch.empty(len(images), config.channels, *config.size, dtype=pixel_dtype(config.bit_depth))
    except RuntimeError:
        raise UserError(f"data.memory_budget: {config.memory_budget:g} GiB exceed the memory; lower it") from None

    def attempt(row: dict | None) -> Tensor | Exception:
        try:
            return images.decode(row)
        except UNREADABLE as error:
            return error

    def decoded() -> Iterator[tuple[dict | None, Tensor | Exception]]:
        with ThreadPoolExecutor() as pool:
            for chunk in images.files.iter(batch_size=256):
                yield from zip(chunk["image"], pool.map(attempt, chunk["image"]), strict=True)

    kept, broken = [], []
    for index, (row, result) in enumerate(progress(decoded(), total=len(images))):
        if isinstance(result, Exception):
            broken.append(describe_unreadable(row, index, result))
        else:
            pixels[len(kept)] = result
            kept.append(index)
    if not kept:
        raise UserError(f"data.path: none of the {len(images)} images in {config.path} is readable: {broken[0]}")
    if broken:
        more = f" and {len(broken) - 10} more" if len(broken) > 10 else ""
        log(f"skipped {len(broken)} of {len(images)} images: {', '.join(broken[:10])}{more}")
    return pixels[: len(kept)], torch.tensor(kept)
