"""Class labels as conditions."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, Strict

from ..core.errors import UserError, did_you_mean
from ..data.columns import Column
from ..data.sources import Table
from ..models.conditioning import LabelEmbedding
from ..models.config import UNetConfig
from .base import ABSENT, NONE, ConditionConfig, Value

MAX_CLASSES = 100_000
"""Maximum number of classes in a column."""
LISTED = 12
"""Class names that a message lists."""


class LabelConfig(ConditionConfig):
    """A class label as a condition."""

    type: Literal["label"] = "label"
    column: str | None = None
    """Column of the classes; null: the condition's own name."""
    num_classes: int | None = Field(default=None, ge=1, le=MAX_CLASSES)
    """Number of classes; null: as many as the data have."""
    class_names: Annotated[tuple[str, ...], Strict(False)] = ()
    """Names of the classes; filled in from the data."""

    @property
    def missing(self) -> float:
        return -1

    @property
    def is_complete(self) -> bool:
        return self.num_classes is not None

    @property
    def summary(self) -> str:
        return f"{self.num_classes} classes"

    @property
    def help(self) -> str:
        listed = ", ".join(self.class_names[:LISTED]) + (", ..." if len(self.class_names) > LISTED else "")
        return f"class by number or name, several separated by commas, none: unconditional ({listed})"

    @property
    def choices(self) -> list[Any]:
        return list(range(self.num_classes or 0))

    def read(self, name: str, table: Table, folder: Path | None) -> tuple[Self, Column] | None:
        """Return the config with the classes of its column, integers or strings, and the class of each image.

        A missing value is an absent label, -1.
        """
        column = self.column_in(name, table)
        if column is None:
            return None
        names, classes = class_labels(table, column, name)
        return self.model_copy(update={"num_classes": len(names), "class_names": names}), Column(classes)

    def build_embedding(self, name: str, unet: UNetConfig) -> LabelEmbedding:
        if self.num_classes is None:
            raise ValueError(f"conditions.{name}.num_classes: not set; give the number of classes")
        return LabelEmbedding(unet.vector_dim, self.num_classes)

    def parse(self, name: str, words: Any, folder: Path | None = None, size: tuple[int, int] = (0, 0)) -> list[Value]:
        """Return classes by number or name, several separated by commas or in a list; `none`: unconditional."""
        if words == NONE:
            return [ABSENT]
        if not self.class_names:
            raise UserError(f"{name}: this run has no classes; leave {name} out")
        several = words if isinstance(words, list) else words.split(",") if isinstance(words, str) else [words]
        return [self._value(name, word) for word in several]

    def record(self, name: str, word: Any) -> dict[str, Any]:
        return {f"{name}_name": self.class_names[word]}

    def _value(self, name: str, word: str | int | None) -> Value:
        if word is None:
            return ABSENT
        known = {str(index): index for index in range(len(self.class_names))}
        if isinstance(word, str):  # a name takes precedence
            known |= {class_name: index for index, class_name in enumerate(self.class_names)}
        if str(word) not in known:
            some = ", ".join(self.class_names[:LISTED]) + (", ..." if len(self.class_names) > LISTED else "")
            near = did_you_mean(str(word), known)
            raise UserError(f"{name}: {word} is not one of the {len(self.class_names)} classes: {some}{near}")
        index = known[str(word)]
        return Value(torch.tensor(index), index)


def class_labels(table: Table, column: str, condition: str) -> tuple[tuple[str, ...], torch.Tensor]:
    """Return the names of the classes and (N,) int64, -1 where missing, from a column of integers or strings.

    Raise UserError for a column of another type, or for more than MAX_CLASSES classes.
    """
    place = f"conditions.{condition}.column: column {column} of {table.path}"
    values, names = table.values(column), table.class_names(column)
    given = [value for value in values if value is not None]
    integers = bool(given) and all(isinstance(value, int) and not isinstance(value, bool) for value in given)
    if not given:
        raise UserError(f"{place} has no values; choose another column")
    if names is None and integers and min(given) >= 0:
        names = tuple(map(str, range(min(max(given), MAX_CLASSES) + 1)))
    elif names is None and all(isinstance(value, str) for value in given):
        names = tuple(sorted(set(given)))
        index_of = {name: index for index, name in enumerate(names)}
        values = [None if value is None else index_of[value] for value in values]
    elif names is None:
        raise UserError(f"{place} contains neither class numbers nor strings; choose another column")
    if len(names) > MAX_CLASSES:
        found = f"classes up to {max(given)}" if integers else f"{len(names)} different strings"
        raise UserError(f"{place} has {found} (at most {MAX_CLASSES}); choose another column")
    if unnamed := [value for value in values if value is not None and not 0 <= value < len(names)]:
        raise UserError(f"{place} has classes without a name, such as {unnamed[0]}; choose another column or split")
    return names, torch.tensor([-1 if value is None else value for value in values], dtype=torch.long)
