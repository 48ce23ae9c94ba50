"""Held-out examples of a run: the conditions of its previews and, beside each, the real image.

RUN/examples is an image folder that `datasets` loads: 00000.png, ..., metadata.jsonl with a column for each condition,
and a subfolder for each condition that is an image.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..conditions.base import ConditionConfig
from ..conditions.image import ImageConfig
from ..core.errors import UserError, printable
from ..core.rng import BatchRNG, fixed_subset
from ..data.dataset import ImageDataset
from ..data.decoding import decode, inspect
from .config import Config
from .figures import save_comparison
from .samples import encode_image

EXAMPLES, METADATA = "examples", "metadata.jsonl"
MAX_EXAMPLES = 16
MAX_ROWS = 4
"""Rows of samples in a comparison."""


def example_files(images: ImageDataset) -> dict[str, bytes]:
    """Return the files of at most MAX_EXAMPLES images, by their names in a run; {} if all are sampled anyway."""
    if all(condition.choices is not None for condition in images.conditions.values()):
        return {}
    indices = fixed_subset(len(images), MAX_EXAMPLES).tolist()
    truth, words = examples_of(images, indices)
    bit_depth = images.config.bit_depth or 8
    files, records = {}, [{} for _ in indices]
    for place, pixels in enumerate(truth):
        suffix, content = encode_image(pixels, bit_depth, images.config.value_range)
        records[place]["file_name"] = f"{place:05d}{suffix}"
        files[f"{EXAMPLES}/{records[place]['file_name']}"] = content
        for name, turn in words.items():
            word = turn[place]
            if isinstance(word, Tensor):
                suffix, content = encode_image(
                    word, images.conditions[name].bit_depth, images.conditions[name].value_range
                )
                word = f"{name}/{place:05d}{suffix}"
                files[f"{EXAMPLES}/{word}"] = content
            records[place][name] = word
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    return {**files, f"{EXAMPLES}/{METADATA}": lines.encode()}


def examples_of(images: ImageDataset, indices: list[int]) -> tuple[Tensor, dict[str, list[Any]]]:
    """Return some images, pixels (N, C, H, W), and the words of their conditions.

    A word is what a user would give: a class index, a caption, numbers, None for an absent value; for an image its
    pixels (C, h, w).
    """
    plain, rng = images.plain(), BatchRNG(torch.Generator().manual_seed(0))
    batch = {name: value.cpu() for name, value in plain.__getitems__(indices).items()}
    image = plain.prepare(batch, rng)["image"]
    return batch["image"], {name: column.words(batch[name], image, rng) for name, column in images.columns.items()}


def read_examples(folder: Path, conditions: Mapping[str, ConditionConfig]) -> dict[str, list[Any]]:
    """Return the words of the examples by condition, and as `file_name` the images; files are paths.

    Return {} without examples. Raise UserError if metadata.jsonl is damaged, or names a file outside of the folder.
    """
    images = {"file_name", *(name for name, c in conditions.items() if isinstance(c, ImageConfig))}
    file = folder / METADATA
    if not file.exists():
        return {}
    try:
        records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        words = {name: [record[name] for record in records] for name in ("file_name", *records[0])}
        for name, turn in words.items():
            if name in images:
                words[name] = [None if word is None else str(_inside(folder, word)) for word in turn]
    except (ValueError, LookupError, TypeError, OSError) as error:
        raise UserError(f"{file}: damaged ({error}); python train.py --resume RUN writes it again") from None
    return words


def _inside(folder: Path, word: str) -> Path:
    """Return the path of a file. Raise ValueError if it is outside of the folder: a run may come from a stranger."""
    path = folder / word
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{printable(word)} is outside of the folder")
    return path


def save_example_comparison(folder: Path, samples: Tensor, config: Config, path: Path) -> None:
    """Write a strip with a column for each example of a folder: its sources, samples, and the real image.

    samples: pixels (N, C, H, W), of the examples in turn. No-op without examples.
    """
    words, data = read_examples(folder, config.inputs), config.data
    if not words:
        return
    number, bit_depth = len(words["file_name"]), data.bit_depth or 8
    rows = []
    for name, condition in config.inputs.items():
        if isinstance(condition, ImageConfig) and any(words[name]):
            depth = condition.bit_depth or 8
            rows.append((name, _read_images(words[name], depth, condition.value_range), depth))
    rows += [("sample", part, bit_depth) for part in samples[: MAX_ROWS * number].split(number)]
    save_comparison(path, [*rows, ("truth", _read_images(words["file_name"], bit_depth, data.value_range), bit_depth)])


def _read_images(files: list[str | None], bit_depth: int, value_range: tuple[float, float] | None) -> Tensor:
    """Return images of one size, pixels (N, C, H, W), zeros for None."""
    rows = {file: {"path": file, "bytes": None} for file in files if file is not None}
    pixels = {file: decode(row, inspect(row).channels, bit_depth, value_range) for file, row in rows.items()}
    blank = torch.zeros_like(next(iter(pixels.values())))
    return torch.stack([pixels.get(file, blank) for file in files])
