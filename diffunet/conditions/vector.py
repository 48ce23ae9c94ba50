"""Numbers as conditions: a measurement, a pose, the strength of an attribute."""

import math
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, Strict
from torch import Tensor

from ..core.errors import UserError, printable
from ..data.columns import Column, VectorColumn
from ..data.sources import Table
from ..models.conditioning import VectorEmbedding
from ..models.config import UNetConfig
from .base import ABSENT, NONE, ConditionConfig, Value

MAX_WIDTH = 100_000


class VectorConfig(ConditionConfig):
    """Numbers about an image as a condition, standardized by the mean and standard deviation over all images."""

    type: Literal["vector"] = "vector"
    column: str | Annotated[tuple[str, ...], Strict(False), Field(min_length=1)] | None = None
    """Column of numbers or of lists of numbers, or several columns of numbers; null: the condition's own name."""
    width: int | None = Field(default=None, ge=1, le=MAX_WIDTH)
    """How many numbers; null: as many as the columns have."""
    mean: Annotated[tuple[float, ...], Strict(False)] = ()
    """Mean of each number; filled in from all images, the held-out ones included."""
    std: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Strict(False)] = ()
    """Standard deviation of each number, 1 for a constant; filled in like the mean."""

    @property
    def is_complete(self) -> bool:
        return self.width is not None

    @property
    def summary(self) -> str:
        return "1 number" if self.width == 1 else f"{self.width} numbers"

    @property
    def help(self) -> str:
        names = f": {', '.join(self.column)}" if isinstance(self.column, tuple) else ""
        return f"{self.summary}, separated by commas{names}; several vectors by semicolons; none: unconditional"

    def read(self, name: str, table: Table, folder: Path | None) -> tuple[Self, Column] | None:
        """Return the config with width, mean and standard deviation, and the standardized numbers of all images.

        An image that lacks one of its numbers (null or NaN) lacks all. Mean and standard deviation are taken over the
        other images, unless the config has them already.
        """
        if self.column is None and name not in table.column_names:
            return None
        place, columns = f"conditions.{name}.column", self._columns(name)
        for column in columns:
            table.check_column(column, place)
        numbers = torch.cat([_read_column(table, column, place) for column in columns], dim=1)
        given, width = numbers[~numbers.isnan().any(1)], numbers.shape[1]
        if not len(given):
            lacking = "has no values" if len(columns) == 1 else "have no image with all values"
            raise UserError(f"{place}: {', '.join(columns)} of {table.path} {lacking}; choose another column")
        constant = given.amax(0) == given.amin(0)
        std = torch.where(constant, 1.0, given.std(0, correction=0))
        mean, std = self.mean or tuple(given.mean(0).tolist()), self.std or tuple(std.tolist())
        for key, length in (("width", self.width or width), ("mean", len(mean)), ("std", len(std))):
            if length != width:
                found = f"{', '.join(columns)} of {table.path}: {width}"
                raise UserError(f"conditions.{name}.{key}: {length} numbers expected (got {found}); leave {key} out")
        config = self.model_copy(update={"width": width, "mean": mean, "std": std})
        return config, VectorColumn(config._standardize(numbers), mean, std)

    def build_embedding(self, name: str, unet: UNetConfig) -> VectorEmbedding:
        if self.width is None:
            raise ValueError(f"conditions.{name}.width: not set; give how many numbers it has")
        return VectorEmbedding(unet.vector_dim, self.width)

    def parse(self, name: str, words: Any, folder: Path, size: tuple[int, int]) -> list[Value]:
        """Return vectors: `"7.1, 300"`, several separated by semicolons; or a list of such words, lists or numbers.

        A list of as many numbers as the vector has, if more than one, is a single vector: `[7.1, 300]` in YAML.
        """
        if isinstance(words, str):
            return [self._value(name, word) for word in words.split(";")]
        several = isinstance(words, list) and (self.width == 1 or not all(isinstance(w, int | float) for w in words))
        return [self._value(name, word) for word in (words if several else [words])]

    def _value(self, name: str, word: Any) -> Value:
        if word is None or (isinstance(word, str) and word.strip() == NONE):
            return ABSENT
        parts = word.split(",") if isinstance(word, str) else word if isinstance(word, list) else [word]
        numbers = [_as_number(part) for part in parts]
        if len(parts) != self.width or not all(map(math.isfinite, numbers)):
            example = ", ".join(f"{mean:.3g}" for mean in self.mean[:4]) + ", ..." * (len(self.mean) > 4)
            expected = f"{self.summary} ({', '.join(self._columns(name))})"
            raise UserError(f"{name}: not {expected} (got {printable(word)}); give {example}, for instance")
        vector = self._standardize(torch.tensor([numbers], dtype=torch.float64))[0]
        return Value(vector, numbers)

    def _columns(self, name: str) -> tuple[str, ...]:
        return self.column if isinstance(self.column, tuple) else (self.column or name,)

    def _standardize(self, numbers: Tensor) -> Tensor:
        """Return fp64 numbers (N, width) with mean 0 and standard deviation 1, in fp32."""
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (self.mean, self.std))
        return ((numbers - mean) / std).float()


def _read_column(table: Table, column: str, place: str) -> Tensor:
    """Return the numbers of a column, or of its lists, fp64 (N, width), NaN where they are missing."""
    place = f"{place}: column {column} of {table.path}"
    rows = [value if isinstance(value, list | tuple) else [value] for value in table.values(column)]
    for value in chain.from_iterable(rows):
        if not isinstance(value, int | float | None):
            raise UserError(f"{place} contains {printable(repr(value), 40)}; choose a column of numbers")
    widths = {len(row) for row in rows if row not in ([], [None])}
    if len(widths) > 1:
        raise UserError(f"{place} has lists of {min(widths)} to {max(widths)} numbers; make them equally long")
    width = max(widths, default=1)
    filled = [[None] * width if row in ([], [None]) else row for row in rows]
    numbers = torch.tensor([[math.nan if v is None else v for v in row] for row in filled], dtype=torch.float64)
    if numbers.isinf().any():
        raise UserError(f"{place} has infinite values; replace them by null")
    return numbers


def _as_number(text: Any) -> float:
    """Return a number of a user, NaN if it is none."""
    try:
        return math.nan if isinstance(text, bool) else float(text)
    except (TypeError, ValueError, OverflowError):
        return math.nan
