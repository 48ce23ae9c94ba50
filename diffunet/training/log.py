"""log.jsonl: what a training counted since the last line, a line at a time."""

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


class Log:
    """Means of whatever is counted, over all processes, and the file that keeps them."""

    def __init__(self, file: Path):
        self.file = file
        self._sums: dict[str, list] = defaultdict(lambda: [0.0, 0.0])
        self._unwritten: list[str] = []

    def count(self, name: str, values: Tensor) -> None:
        """Adds to the mean of the next line; values that are not finite do not count."""
        finite = values.isfinite()
        total = self._sums[name]
        total[0] = total[0] + values.where(finite, 0).sum()
        total[1] = total[1] + finite.sum()

    def means(self, accelerator: "Accelerator") -> dict[str, float]:
        """The means since the last call, without those that nothing counts to. To be called by all processes."""
        names = sorted(self._sums)
        sums = torch.tensor([self._sums[name] for name in names], device=accelerator.device)
        self._sums.clear()
        sums = accelerator.reduce(sums, "sum").tolist()
        return {name: total / count for name, (total, count) in zip(names, sums, strict=True) if count}

    def write(self, line: dict[str, float]) -> None:
        """Adds a line. OSError if it cannot be written: it waits for the next call."""
        self._unwritten.append(json.dumps({name: value for name, value in line.items() if not math.isnan(value)}))
        while self._unwritten:
            append_line(self.file, self._unwritten[0])
            self._unwritten.pop(0)

    def forget_after(self, step: int) -> None:
        """Drops the lines that a resumed run will write again, and what is no line."""
        kept = [line for line in read_log(self.file) if line["step"] <= step]
        with atomic_write(self.file) as file:
            file.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")


def read_log(file: Path) -> list[dict[str, float]]:
    """The lines of a log.jsonl, without those that are damaged; none if there is no file."""
    lines = []
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and all(isinstance(value, int | float) for value in line.values()) and "step" in line:
            lines.append(line)
    return lines
