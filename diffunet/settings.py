"""What every configuration shares, and how a user's mistake is told."""

import difflib
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A frozen, strict set of named values; the docstring below each field is its `--help`.

    Unknown keys are errors, `true` is not a number and `nan` is not a learning rate.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class UserError(Exception):
    """A mistake its maker can mend. The commands print it as one line and exit with code 2."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean X?"` for the nearest of `known`, or nothing when none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {shown(near[0])}?" if near else ""


def shown(text: object, most: int = 200) -> str:
    """Words from elsewhere as a message can hold them: one line, nothing unprintable, and the end of much left out."""
    text = str(text)
    text = text if len(text) <= most else text[: most - 3] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def ran_out_of_memory(error: Exception) -> bool:
    """Whether an error says that the memory of the device or of the machine was not enough."""
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, MemoryError) or should_reduce_batch_size(error)


def unwatched(steps: Iterable, **about) -> Iterable:
    """The progress bar of those who do not watch: `steps` itself."""
    return steps
