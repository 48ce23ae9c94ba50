"""log.jsonl: one JSON object per line, with means since the line before."""

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core.storage import append_line, atomic_write

if TYPE_CHECKING:
    from accelerate import Accelerator

RENAMED = {
    "held_out_loss": "val_loss",
    "seen_loss": "train_eval_loss",
    "tint_": "mean_shift/",
    "contrast_": "std_ratio/",
    "drawn_images": "sampled_images",
    "health_seconds": "monitor_seconds",
}
"""Prefixes of names in the logs of runs of format 1, and today's."""


class Log:
    """Accumulates means over steps and processes, and appends them to a file."""

    def __init__(self, file: Path):
        self.file = file
        self._sums: dict[str, list] = defaultdict(lambda: [0.0, 0.0])
        self._unwritten: list[str] = []

    def count(self, name: str, values: Tensor) -> None:
        """Add values to the mean of the next line; values that are not finite are left out."""
        finite = values.isfinite()
        total = self._sums[name]
        total[0] = total[0] + values.where(finite, 0).sum()
        total[1] = total[1] + finite.sum()

    def means(self, accelerator: "Accelerator") -> dict[str, float]:
        """Return the means since the last call, without empty ones. Collective: all processes must call it."""
        names = sorted(self._sums)
        exact = torch.float32 if accelerator.device.type == "mps" else torch.float64  # counts beyond 2^24
        sums = torch.stack([torch.stack([part.to(exact) for part in self._sums[name]]) for name in names])
        self._sums.clear()
        sums = accelerator.reduce(sums, "sum").tolist()  # one copy from the device
        return {name: total / count for name, (total, count) in zip(names, sums, strict=True) if count}

    def write(self, line: dict[str, float]) -> None:
        """Append a line without its NaNs. Raise OSError if it cannot be written; the next call tries again."""
        self._unwritten.append(json.dumps({name: value for name, value in line.items() if not math.isnan(value)}))
        while self._unwritten:
            append_line(self.file, self._unwritten[0])
            self._unwritten.pop(0)

    def forget_after(self, step: int) -> None:
        """Remove the lines after `step`, which a resumed run writes again, and damaged ones."""
        kept = [line for line in read_log(self.file) if line["step"] <= step]
        with atomic_write(self.file) as file:
            file.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")


def read_log(file: Path) -> list[dict[str, float]]:
    """Return the lines of a log.jsonl under today's names, without damaged ones; none without a file."""
    lines = []
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and all(isinstance(value, int | float) for value in line.values()) and "step" in line:
            lines.append({_renamed(name): value for name, value in line.items()})
    return lines


def _renamed(name: str) -> str:
    former = next(filter(name.startswith, RENAMED), "")
    return RENAMED.get(former, "") + name.removeprefix(former)
