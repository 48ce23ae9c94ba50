"""ImageDataset as batches: decoded once where they fit in memory, augmented as a batch.

Inside the program a picture is integers of its files' depth, (C, H, W), until `prepare` makes it
floating point in [-1, 1]; `denormalize` is the way back.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, Strict
from torch import Tensor

from .augmentation import distort
from .decoding import (
    UNREADABLE,
    channels_of,
    convert,
    depth_of,
    name_of,
    open_image,
    pixel_type,
    reason_of,
    resized,
)
from ..core.rng import BatchRNG
from ..core.settings import Settings
from ..core.errors import UserError
from ..core.progress import no_progress
from .sources import class_labels, fingerprint, load_rows, undecoded

Side = Annotated[int, Field(strict=True, ge=1, le=65_536)]
HELD_OUT = 1000
"""ImageDataset, at most, that are kept from training."""
SURVEYED = 1000
"""ImageDataset, at most, that are looked at to learn channels, depth and sizes, and to know the set again."""


class DataConfig(Settings):
    """Which pictures, and in what shape the network sees them."""

    path: str = "digits"
    """An image folder, a parquet file or folder, a data set's hub id, or digits (scikit-learn's, built in)."""
    split: str = "train"
    """Split of the data set."""
    image_column: str | None = None
    """Column of the pictures; null: the only one that holds pictures."""
    label_column: str | None = None
    """Column of the classes; null: the one called label, if there is one. Class folders make one."""
    resolution: Side | Annotated[tuple[Side, Side], Strict(False)] | None = None
    """Size in pixels, or [height, width]; scaled to cover it, then cropped. null: the size all pictures have."""
    channels: Literal[1, 3, 4] | None = None
    """1 grey, 3 colour, 4 with transparency; null: what the files have."""
    bit_depth: Literal[8, 16] | None = None
    """Bits per channel; null: 16 if every file has 16."""
    random_flip: bool = False
    """Show each picture mirrored left to right half of the time."""
    augmentation: float = Field(0.0, ge=0, le=1)
    """Probability of each kind of distortion, told to the network; 0.12 or so helps small sets (EDM, 2022)."""
    held_out: float = Field(0.05, ge=0, lt=1)
    """Share of the pictures, at most 1,000 of them, never trained on: they show what is learnt and what memorization."""
    memory_budget: float = Field(2.0, ge=0)
    """GiB up to which all pictures are decoded once and kept; beyond it they are decoded as they are needed."""
    workers: int = Field(2, ge=0, le=1000)
    """Processes that decode, where pictures are decoded as they are needed."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of a resolved `resolution`."""
        return self.resolution if isinstance(self.resolution, tuple) else (self.resolution,) * 2


@dataclass(frozen=True)
class ImageDataset:
    """A data set ready for training: batches of integers by index, and what to make of them.

    `config` is resolved: its resolution, channels and bit depth are those of the pictures.
    """

    config: DataConfig
    images: "Tensor | LazyImages"
    """(N, C, H, W) integers, or what answers to a list of indices with such."""
    labels: Tensor | None
    """(N,) int64, or None."""
    class_names: tuple[str, ...] = ()
    places: Tensor | None = None
    """Which of them count, (n,) int64; None: all."""
    fingerprint: str = ""
    """The same for the same files and labels, wherever they lie and however they are decoded."""

    def __len__(self) -> int:
        return len(self.images) if self.places is None else len(self.places)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """A batch as torch's `DataLoader` asks for it: integers (B, C, H, W) and labels (B,)."""
        chosen = torch.tensor(indices) if self.places is None else self.places[indices]
        if self.device.type == "cuda":
            chosen = chosen.pin_memory().to(self.device, non_blocking=True)
        batch = {"image": self.images[chosen if isinstance(self.images, Tensor) else chosen.tolist()]}
        if self.labels is not None:
            batch["label"] = self.labels[chosen]
        return batch

    def split_held_out(self) -> tuple["ImageDataset", "ImageDataset"]:
        """The pictures to train on, and the `held_out` ones: always the same for the same number of pictures."""
        number = min(HELD_OUT, int(self.config.held_out * len(self)))
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))
        kept, trained = order[:number].sort().values, order[number:].sort().values
        return replace(self, places=trained), replace(self, places=kept)

    @property
    def device(self) -> torch.device:
        """Where the batches lie."""
        return self.images.device if isinstance(self.images, Tensor) else torch.device("cpu")

    def on(self, device: torch.device) -> "ImageDataset":
        """The same, lying on a GPU if they are decoded and leave three quarters of it free: batches need not travel."""
        if device.type != "cuda" or not isinstance(self.images, Tensor):
            return self
        if self.images.nbytes > torch.cuda.mem_get_info(device)[0] / 4:
            return self
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, images=self.images.to(device), labels=labels)

    @property
    def workers(self) -> int:
        """Processes worth starting to fetch batches."""
        return 0 if isinstance(self.images, Tensor) else self.config.workers

    def prepare(self, batch: dict[str, Tensor], rng: BatchRNG) -> dict[str, Tensor]:
        """The batch as the network sees it: images in [-1, 1], at random flipped and distorted if asked for."""
        image = normalize(batch["image"], self.config.bit_depth)
        if self.config.random_flip:
            flip = rng.uniform_like(image) < 0.5
            image = torch.where(flip[:, None, None, None], image.flip(-1), image)
        if self.config.augmentation:
            image, told = distort(image, self.config.augmentation, rng)
            batch = {**batch, "augmentation": told}
        return {**batch, "image": image}


def normalize(pixels: Tensor, bit_depth: int) -> Tensor:
    """Integers from 0 to 2^bit_depth - 1 as fp32 in [-1, 1]."""
    return pixels.float() * (2 / (2**bit_depth - 1)) - 1


def denormalize(image: Tensor, bit_depth: int) -> Tensor:
    """The way back, clipped and rounded: uint8, or int32 for 16 bits. UserError if not finite, never black."""
    if not image.isfinite().all():
        raise UserError("the network gave values that are not finite; it is broken, or has not been trained")
    pixels = (image.clamp(-1, 1) + 1) * ((2**bit_depth - 1) / 2)
    return pixels.round().to(pixel_type(bit_depth))


def load_images(
    config: DataConfig, labelled: bool, say: Callable = print, progress: Callable = no_progress
) -> ImageDataset:
    """The pictures that a config names. `say` is told what was found, `progress` wraps the decoding.

    With `labelled`, their classes too. UserError where nothing usable is found.
    """
    if config.path == "digits":
        return _digits(config, labelled)
    rows = load_rows(config.path, config.split, say)
    files = undecoded(rows, config.image_column, config.path)
    names, labels = class_labels(rows, config.label_column, config.path) if labelled else ((), None)
    mark = fingerprint(len(files), labels, files.select(_surveyed(len(files)))["image"])
    config = _resolved(config, files, say)
    reader = LazyImages(files, config)
    height, width = config.size
    gibibytes = len(files) * config.channels * height * width * pixel_type(config.bit_depth).itemsize / 2**30
    if gibibytes > config.memory_budget:
        say(f"{len(files):,} pictures ({gibibytes:.1f} GiB decoded, over data.memory_budget): decoded as needed")
        return ImageDataset(config, reader, labels, names, fingerprint=mark)
    images, kept = _decode_all(reader, config.path, say, progress)
    return ImageDataset(config, images, labels if labels is None else labels[kept], names, fingerprint=mark)


def _surveyed(number: int) -> np.ndarray:
    """Indices of at most SURVEYED of so many pictures, evenly spaced."""
    return np.unique(np.linspace(0, number - 1, min(SURVEYED, number)).astype(int))


def _digits(config: DataConfig, labelled: bool) -> ImageDataset:
    """1,797 handwritten digits of 8×8 pixels in 17 levels, from scikit-learn's wheel (UCI, Alpaydin & Kaynak 1998)."""
    # The file that sklearn.datasets.load_digits reads, without two seconds of imports.
    file = Path(find_spec("sklearn").origin).parent / "datasets" / "data" / "digits.csv.gz"
    rows = np.loadtxt(file, delimiter=",")
    levels, classes = rows[:, :64].reshape(-1, 8, 8).astype(np.uint8), rows[:, 64].astype(np.int64)
    images = torch.from_numpy((levels * (255 / 16)).round()).to(torch.uint8)[:, None]
    config = config.model_copy(
        update={
            "resolution": config.resolution or 8,
            "channels": config.channels or 1,
            "bit_depth": config.bit_depth or 8,
        }
    )
    if (config.channels, config.bit_depth) != (1, 8):
        raise UserError("data: the built-in digits are grey with 8 bits; leave channels and bit_depth out")
    images = resized(images, config.size)
    labels = torch.from_numpy(classes) if labelled else None
    surveyed = [{"bytes": levels[index].tobytes(), "path": None} for index in _surveyed(len(levels))]
    mark = fingerprint(len(levels), labels, surveyed)
    return ImageDataset(config, images, labels, tuple(map(str, range(10))) if labelled else (), fingerprint=mark)


class LazyImages:
    """ImageDataset in their files, decoded when asked for."""

    def __init__(self, files, config: DataConfig):
        self.files = files
        self.config = config
        self.named: set[int] = set()

    def __len__(self) -> int:
        return len(self.files)

    def decode(self, row: dict | None) -> Tensor:
        """One picture in the shape and depth of the config. Raises UNREADABLE."""
        pixels = convert(open_image(row), self.config.channels, self.config.bit_depth)
        return resized(pixels, self.config.size)

    def __getitem__(self, indices: list[int]) -> Tensor:
        """(B, C, H, W). A picture that cannot be read is named, and the next readable one stands in for it."""
        return torch.stack([self._readable(index) for index in indices])

    def _readable(self, index: int) -> Tensor:
        for tried in range(len(self)):
            place = (index + tried) % len(self)
            row = self.files[place]["image"]
            try:
                return self.decode(row)
            except UNREADABLE as error:
                if place not in self.named:
                    print(f"left out {name_of(row, place)} ({reason_of(error)})")
                self.named.add(place)
        raise UserError(f"data.path: not one of the {len(self)} pictures in {self.config.path} can be read any more")


def _resolved(config: DataConfig, files, say: Callable) -> DataConfig:
    """The config with channels, depth and size as the files have them, where it leaves them open."""
    surveyed = _surveyed(len(files))
    kinds, sizes, broken = Counter(), Counter(), []
    for index, row in zip(surveyed, files.select(surveyed)["image"], strict=True):
        try:
            with open_image(row) as image:
                kind = channels_of(image), depth_of(image), image.mode
                turned = image.getexif().get(0x0112, 1) >= 5           # may decode, after which the depth is lost
                kinds[kind] += 1
                sizes[image.size if turned else image.size[::-1]] += 1
        except UNREADABLE as error:
            broken.append(f"{name_of(row, index)} ({reason_of(error)})")                  # said when it is decoded
    if not kinds:
        looked_at = f"{len(surveyed)} looked at, of {len(files)}," if len(surveyed) < len(files) else f"{len(files)}"
        raise UserError(f"data.path: none of the {looked_at} pictures in {config.path} can be read; {broken[0]}")
    channels = {c for c, _, _ in kinds}
    found = channels.pop() if len(channels) == 1 else 3
    depth = min(d for _, d, _ in kinds)
    low, high = min(sizes), max(sizes)
    if config.resolution is None and len(sizes) > 1:
        raise UserError(
            f"data.resolution: the pictures in {config.path} have {len(sizes)} sizes, {low[0]}×{low[1]} to "
            f"{high[0]}×{high[1]} (height×width); say which to use, such as 64 or [48, 64]"
        )
    height, width = low
    update = {
        "resolution": config.resolution or (height if height == width else low),
        "channels": config.channels or found,
        "bit_depth": config.bit_depth or depth,
    }
    config = config.model_copy(update=update)
    modes = ", ".join(f"{n} {mode}{' 16-bit' * (d == 16)}" for (_, d, mode), n in kinds.most_common())
    spread = f"{low[0]}×{low[1]}" if len(sizes) == 1 else f"{len(sizes)} sizes"
    looked_at = "" if len(surveyed) == len(files) else f"by {len(surveyed):,} of them: "
    say(
        f"{len(files):,} pictures ({looked_at}{modes}; {spread}) -> {config.size[0]}×{config.size[1]} pixels, "
        f"{config.channels} channel{'s' * (config.channels > 1)}, {config.bit_depth} bits"
    )
    if any(c == 4 for c, _, _ in kinds) and config.channels != 4:
        say("transparent pictures are laid on white; --data.channels 4 keeps the transparency")
    return config


def _decode_all(reader: LazyImages, path: str, say: Callable, progress: Callable) -> tuple[Tensor, Tensor]:
    """All readable pictures, (N, C, H, W), and their indices. The others are named and counted."""
    config = reader.config
    try:
        images = torch.empty(len(reader), config.channels, *config.size, dtype=pixel_type(config.bit_depth))
    except RuntimeError:
        raise UserError(f"data.memory_budget: {config.memory_budget:g} GiB are more than there is; lower it") from None
    broken = []

    def attempt(row: dict | None) -> Tensor | Exception:
        try:
            return reader.decode(row)
        except UNREADABLE as error:
            return error

    def decoded() -> Iterator[tuple[dict, Tensor | Exception]]:
        with ThreadPoolExecutor() as pool:
            for chunk in reader.files.iter(batch_size=256):
                yield from zip(chunk["image"], pool.map(attempt, chunk["image"]), strict=True)

    kept = []
    for index, (row, result) in enumerate(progress(decoded(), total=len(reader))):
        if isinstance(result, Exception):
            broken.append(f"{name_of(row, index)} ({reason_of(result)})")
        else:
            images[len(kept)] = result
            kept.append(index)
    if not kept:
        raise UserError(f"data.path: none of the {len(reader)} pictures in {path} can be read; {broken[0]}")
    if broken:
        more = f" and {len(broken) - 10} more" if len(broken) > 10 else ""
        say(f"left out {len(broken)} of {len(reader)} pictures: {', '.join(broken[:10])}{more}")
    return images[: len(kept)], torch.tensor(kept)
