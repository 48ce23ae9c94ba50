"""Samples as files: one PNG per image, metadata and a grid, as an image folder that `datasets` loads."""

import json
from collections.abc import Iterable, Mapping
from itertools import count
from pathlib import Path

import torch

from ..sampling.generate import SampleBatch
from .figures import save_grid, to_pil

MAX_COLUMNS = 16


def save_samples(
    batches: Iterable[SampleBatch], folder: Path, bit_depth: int, class_names: Mapping[str, tuple[str, ...]]
) -> int:
    """Write 00000.png, ..., metadata.jsonl with seed and class, and grid.png. Return the number of images.

    Each batch is on the disk before the next is sampled. The folder is made with the first.
    """
    records, pixels = [], []
    for batch in batches:
        folder.mkdir(parents=True, exist_ok=True)
        for place, (image, seed) in enumerate(zip(batch.pixels, batch.seeds, strict=True)):
            record: dict = {"file_name": f"{len(records):05d}.png", "seed": seed}
            for name, classes in batch.conditions.items():
                if (index := classes[place]) is not None:
                    record |= {name: index, f"{name}_name": class_names[name][index]}
            to_pil(image, bit_depth).save(folder / record["file_name"])
            records.append(record)
        pixels.append(batch.pixels)
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")
    save_grid(torch.cat(pixels), bit_depth, folder / "grid.png", columns(class_names))
    return len(records)


def columns(class_names: Mapping[str, tuple[str, ...]]) -> int | None:
    """Return the columns of a grid: one per class, if there are few of them and one label condition; else None."""
    counts = [len(names) for names in class_names.values()]
    return counts[0] if len(counts) == 1 and 2 <= counts[0] <= MAX_COLUMNS else None


def next_folder(folder: Path) -> Path:
    """Return the first of folder/000, folder/001, ... that does not exist."""
    return next(path for number in count() if not (path := folder / f"{number:03d}").exists())
