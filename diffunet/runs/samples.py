"""Samples as files: one per image, metadata and a grid, as an image folder.

An image of 8 bits with 1, 3 or 4 channels, or gray of 16 bits, is a PNG; any other is a .npy file of (H, W, C), or
(H, W) with one channel: uint8, uint16 or float32. Both keep every pixel exactly.
"""

import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..conditions.base import ConditionConfig, Value
from ..data.config import DataConfig
from ..sampling.generate import SampleBatch
from .figures import save_grid, to_pil

MAX_COLUMNS = 16
GRID = 1024
"""Images of grid.png, at most: the first."""
PNG = ((8, 1), (8, 3), (8, 4), (16, 1))
"""Bit depth and channels of the images that Pillow writes as PNG without loss."""
DTYPES = {8: "u1", 16: "u2", 32: "f4"}


def save_samples(
    batches: Iterable[SampleBatch],
    folder: Path,
    data: DataConfig,
    conditions: Mapping[str, ConditionConfig],
    columns: int | None = None,
    edited: Sequence[Path] = (),
) -> int:
    """Write 00000.png, ..., metadata.jsonl with seed and conditions, and grid.png. Return the number of images.

    Samples of a source have its name instead of a number, as have those made from files, `edited`, one for each sample.
    `data` and `conditions` are those of the run, `columns` those of the grid. Each batch is on the disk before the next
    is sampled. The folder is made with the first.
    """
    records, pixels, names = [], [], Names()
    for batch in batches:
        origins = [str(file) for file in edited[len(records) : len(records) + len(batch.seeds)]]
        turns = ({name: turn[place] for name, turn in batch.conditions.items()} for place in range(len(batch.seeds)))
        stems = [names(origins[place : place + 1] + sources_of(turn, conditions)) for place, turn in enumerate(turns)]
        records += write_images(batch, stems, folder, data, conditions, origins)
        pixels.append(batch.pixels)
        write_metadata(records, folder)
    if len({images.shape[1:] for images in pixels}) == 1:
        save_grid(torch.cat(pixels)[:GRID], data.bit_depth or 8, folder / "grid.png", columns)
    return len(records)


class Names:
    """The names of samples in order: numbers, or the names of their sources, which are numbered where they repeat."""

    def __init__(self):
        self._number, self._seen = 0, Counter()

    def __call__(self, sources: Sequence[str]) -> str:
        """Return the name of the next sample, without a suffix; sources: files that it is made from, if any."""
        number, stem = self._number, Path(sources[0]).stem if sources else None
        repeat = self._seen[stem]
        self._number += 1
        self._seen[stem] += 1
        return f"{number:05d}" if stem is None else f"{stem}_{repeat}" if repeat else stem


def sources_of(words: Mapping[str, Any], conditions: Mapping[str, ConditionConfig]) -> list[str]:
    """Return the source files among what a sample is sampled for."""
    return [word for name, word in words.items() if word is not None and conditions[name].type == "image"]


def write_images(
    batch: SampleBatch,
    stems: Sequence[str],
    folder: Path,
    data: DataConfig,
    conditions: Mapping[str, ConditionConfig],
    edited: Sequence[str] = (),
) -> list[dict]:
    """Write the images of a batch by their names, and return their lines of metadata.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for place, (image, seed, stem) in enumerate(zip(batch.pixels, batch.seeds, stems, strict=True)):
        suffix, content = encode_image(image, data.bit_depth or 8, data.value_range)
        record: dict = {"file_name": f"{stem}{suffix}", "seed": seed}
        if edited:
            record["image"] = edited[place]
        for name, turn in batch.conditions.items():
            if (word := turn[place]) is not None:
                record |= {name: word} | conditions[name].record(name, word)
        (folder / record["file_name"]).write_bytes(content)
        records.append(record)
    return records


def write_metadata(records: Iterable[dict], folder: Path) -> None:
    """Write metadata.jsonl, a line for each image."""
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")


def encode_image(pixels: Tensor, bit_depth: int, value_range: tuple[float, float] | None = None) -> tuple[str, bytes]:
    """Return the suffix and the content of a file that holds the pixels, (C, H, W), without loss.

    value_range: the values of the least and the greatest pixel of 32 bits, as in `data.decoding.decode`.
    """
    file = io.BytesIO()
    if (bit_depth, len(pixels)) in PNG:
        to_pil(pixels, bit_depth).save(file, format="PNG")
        return ".png", file.getvalue()
    if bit_depth == 32:
        low, high = value_range or (0, 1)
        pixels = low + pixels.double() * (high - low)
    values = pixels.permute(1, 2, 0).numpy().astype(f"<{DTYPES[bit_depth]}")
    np.save(file, values[..., 0] if len(pixels) == 1 else values, allow_pickle=False)
    return ".npy", file.getvalue()


def grid_columns(values: Mapping[str, list[Value]]) -> int | None:
    """Return the columns of a grid: one for each value in turn, if all conditions have the same few; else None."""
    counts = {len(turn) for turn in values.values() if len(turn) > 1}
    return counts.pop() if len(counts) == 1 and max(counts) <= MAX_COLUMNS else None


def next_folder(folder: Path) -> Path:
    """Return the first of folder/000, folder/001, ... that does not exist."""
    return next(path for number in count() if not (path := folder / f"{number:03d}").exists())
