"""The base of all conditions: named columns of the data that the network is conditioned on.

A type of condition is one class, `ConditionConfig`, with three methods: `read` takes its values from the data, `parse`
from a user, and `build_embedding` makes the module that brings them into the network. Its other keys are filled in by
`read`, so that a run is sampled without its data.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from ..core.settings import Settings
from ..data.columns import Column
from ..data.sources import Table
from ..models.config import UNetConfig

Word = str | int | float | None
"""A value as a user writes it; None: absent."""
NONE = "none"
"""The word for an absent condition."""


@dataclass(frozen=True)
class Value:
    """One value of a condition, for one sample."""

    tensor: Tensor | None
    """As the embedding takes it, without the batch axis; None: absent."""
    word: Any = None
    """As metadata.jsonl records it: a class index, a caption, a file, numbers; None: absent."""
    measurement: Tensor | None = None
    """Of a degraded image: the degraded image itself, (C, h, w) in [-1, 1]."""
    size: tuple[int, int] | None = None
    """(height, width) of the sample, if the value determines it."""


ABSENT = Value(None)


class ConditionConfig(Settings):
    """What all types of conditions share."""

    type: Any
    column: Any = None
    """Column of the values; null: the condition's own name."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of dropping this condition alone in training, besides objective.condition_dropout."""

    @property
    def missing(self) -> float:
        """The number in the place of an absent value."""
        return math.nan

    @property
    def plane_channels(self) -> int:
        """Input channels that it adds to the U-Net."""
        return 0

    @property
    def has_tokens(self) -> bool:
        """Whether it needs cross-attention."""
        return False

    @property
    def is_complete(self) -> bool:
        """Whether everything is known that the data determine."""
        return True

    @property
    def summary(self) -> str:
        """The condition in a few words, such as `10 classes`."""
        return ""

    @property
    def help(self) -> str:
        """The help of its flag of sample.py."""
        return ""

    @property
    def choices(self) -> list[Any] | None:
        """All words, if they are known and few enough to sample each in turn."""
        return None

    def read(self, name: str, table: Table, folder: Path | None) -> tuple[Self, Column] | None:
        """Return the config completed from the data, and the values of all images; None without a column of its name.

        `folder` has the files of a run that is resumed or evaluated. Raise UserError for an unusable column.
        """
        raise NotImplementedError

    def build_embedding(self, name: str, unet: UNetConfig) -> nn.Module:
        """Return the module `embedding(value, keep_mask=None) -> Conditioning` with fresh weights.

        Raise ValueError if the config is not completed.
        """
        raise NotImplementedError

    def parse(self, name: str, words: Any, folder: Path, size: tuple[int, int]) -> list[Value]:
        """Return the values that a user requests, to be sampled in turn, such as `"3,5"` for classes.

        `words` is one word as on the command line, or a list of them, null for absent. `folder` is the model/ folder
        of the run, `size` the (height, width) of its images. Raise UserError for a word that cannot be used.
        """
        raise NotImplementedError

    def stack(self, values: list[Value]) -> Tensor | None:
        """Return the tensors of a batch, absent ones filled with `missing`; None if all are absent."""
        like = next((value.tensor for value in values if value.tensor is not None), None)
        if like is None:
            return None
        absent = torch.full_like(like, self.missing)
        return torch.stack([absent if value.tensor is None else value.tensor for value in values])

    def is_file(self, word: str) -> bool:
        """Return whether a word names a file of values."""
        return False

    def record(self, name: str, word: Any) -> dict[str, Any]:
        """Return what metadata.jsonl holds of a sampled word besides the word."""
        return {}

    def measure(self, images: Tensor, values: list[Value]) -> Tensor | None:
        """Return what images (B, C, H, W) in [-1, 1] measure where the values have a measurement; None if undefined."""
        return None

    def check_agreement(self, name: str, values: list[Value]) -> None:
        """Raise UserError if samples cannot be made to agree with these values."""

    def agree(self, images: Tensor, values: list[Value]) -> Tensor:
        """Return samples (B, C, H, W) in [-1, 1], corrected to agree with their values, if the type determines it."""
        return images

    def column_in(self, name: str, table: Table) -> str | None:
        """Return the column of the condition in a table; None if it is not configured and none has its name.

        Raise UserError if a configured column is missing.
        """
        if self.column is None:
            return name if name in table.column_names else None
        table.check_column(self.column, f"conditions.{name}.column")
        return self.column
