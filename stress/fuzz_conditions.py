"""Conditions of all types: odd configurations, odd values in their columns, odd words in sampling, damaged files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import yaml
from PIL import Image

from .cases import VALUES, Case

SIDE, NUMBER = 8, 24
NAMES = ("label", "caption", "source", "numbers", "small")
"""The conditions of MIXED."""
MIXED = """
unet: {levels: [{channels: 8, blocks: 1}, {channels: 16, blocks: 1, attention: true}], norm_groups: 8, dropout: 0.1}
conditions:
  label: {type: label}
  caption: {type: text, column: text, width: 16, layers: 1, heads: 2, word_dropout: 0.2, dropout: 0.1}
  source: {type: image, dropout: 0.1}
  numbers: {type: vector, column: [weight, age]}
  small: {type: image, by: [{downscale: 2}]}
data: {path: photos, random_flip: true, augmentation: 0.3, held_out: 0.2}
train: {output: run, steps: 8, batch_size: 8, gradient_accumulation_steps: 2, learning_rate: 1e-3, ema_decay: 0.9,
        log_every: 2, checkpoint_every: 4, preview_every: 8, snapshots: 0,
        runtime: {mixed_precision: no, compile: false}}
sample: {num_images: 4, steps: 3, guidance_scale: 1.5, runtime: {mixed_precision: no}}
"""
"""A run with all types of conditions, on `write_photos`."""


def write_photos(folder: Path) -> None:
    """Write an image folder with columns of all types, each but the label without some values."""
    records = []
    for index in range(NUMBER):
        random = np.random.default_rng(index)
        name, kind = f"{index:02d}.png", ["disk", "ring", "star"][index % 3]
        for path, shape in ((folder / name, (SIDE, SIDE, 3)), (folder / "sources" / name, (SIDE, SIDE))):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(path)
        captions = [f"a small {kind}", f"{kind} number {index}", f"one more {kind}"][: index % 4]
        source = None if index % 7 == 3 else f"sources/{name}"
        weight = None if index % 5 == 2 else index / 2
        record = {"label": kind, "text": captions, "source_file_name": source, "weight": weight, "age": index % 4}
        records.append({"file_name": name, **record})
    write_metadata(folder, records)


def read_metadata(folder: Path) -> list[dict]:
    """Return the lines of metadata.jsonl."""
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def write_metadata(folder: Path, records: list[dict]) -> None:
    """Write metadata.jsonl."""
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
