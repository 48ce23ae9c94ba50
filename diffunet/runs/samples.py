"""Samples as files: one per image, metadata and a grid, as an image folder.

An image of 8 bits with 1, 3 or 4 channels, or gray of 16 bits, is a PNG; any other is a .npy file of (H, W, C), or
(H, W) with one channel: uint8, uint16 or float32. Both keep every pixel exactly.
"""

import io
import json
from collections.abc import Iterable, Mapping
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..sampling.generate import SampleBatch
from .figures import save_grid, to_pil

MAX_COLUMNS = 16
PNG = ((8, 1), (8, 3), (8, 4), (16, 1))
"""Bit depth and channels of the images that Pillow writes as PNG without loss."""
DTYPES = {8: "u1", 16: "u2", 32: "f4"}


def save_samples(
    batches: Iterable[SampleBatch],
    folder: Path,
    bit_depth: int,
    class_names: Mapping[str, tuple[str, ...]],
    value_range: tuple[float, float] | None = None,
) -> int:
    """Write 00000.png, ..., metadata.jsonl with seed and class, and grid.png. Return the number of images.

    value_range: the values of the least and the greatest pixel in files of 32 bits; None: [0, 1].
    Each batch is on the disk before the next is sampled. The folder is made with the first.
    """
    records, pixels = [], []
    for batch in batches:
        folder.mkdir(parents=True, exist_ok=True)
        for place, (image, seed) in enumerate(zip(batch.pixels, batch.seeds, strict=True)):
            suffix, content = encode_image(image, bit_depth, value_range)
            record: dict = {"file_name": f"{len(records):05d}{suffix}", "seed": seed}
            for name, classes in batch.conditions.items():
                if (index := classes[place]) is not None:
                    record |= {name: index, f"{name}_name": class_names[name][index]}
            (folder / record["file_name"]).write_bytes(content)
            records.append(record)
        pixels.append(batch.pixels)
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")
    save_grid(torch.cat(pixels), bit_depth, folder / "grid.png", columns(class_names))
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


def columns(class_names: Mapping[str, tuple[str, ...]]) -> int | None:
    """Return the columns of a grid: one per class, if there are few of them and one label condition; else None."""
    counts = [len(names) for names in class_names.values()]
    return counts[0] if len(counts) == 1 and 2 <= counts[0] <= MAX_COLUMNS else None


def next_folder(folder: Path) -> Path:
    """Return the first of folder/000, folder/001, ... that does not exist."""
    return next(path for number in count() if not (path := folder / f"{number:03d}").exists())
