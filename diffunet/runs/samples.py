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

import numpy as np
import torch
from torch import Tensor

from ..conditions.base import ConditionConfig, Value
from ..data.dataset import DataConfig
from ..sampling.generate import SampleBatch
from .figures import save_grid, to_pil

MAX_COLUMNS = 16
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
    records, pixels, names = [], [], Counter()
    bit_depth = data.bit_depth or 8
    for batch in batches:
        folder.mkdir(parents=True, exist_ok=True)
        for place, (image, seed) in enumerate(zip(batch.pixels, batch.seeds, strict=True)):
            suffix, content = encode_image(image, bit_depth, data.value_range)
            words = {name: turn[place] for name, turn in batch.conditions.items() if turn[place] is not None}
            origin = [str(edited[len(records)])] if edited else []
            sources = [word for name, word in words.items() if conditions[name].type == "image"]
            stem = next((Path(file).stem for file in [*origin, *sources]), None)
            names[stem] += 1
            repeat = f"_{names[stem] - 1}" if names[stem] > 1 else ""
            stem = f"{len(records):05d}" if stem is None else stem + repeat
            record: dict = {"file_name": f"{stem}{suffix}", "seed": seed}
            if edited:
                record["image"] = origin[0]
            for name, word in words.items():
                record |= {name: word} | conditions[name].record(name, word)
            (folder / record["file_name"]).write_bytes(content)
            records.append(record)
        pixels.append(batch.pixels)
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")
    if len({images.shape[1:] for images in pixels}) == 1:
        save_grid(torch.cat(pixels), bit_depth, folder / "grid.png", columns)
    return len(records)


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
