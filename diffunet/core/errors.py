"""User-facing errors: one line each, `place: problem (got X); do Y`."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can fix. Commands print it as one line and exit with code 2."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `"; did you mean X?"` for the closest match in `known`, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {printable(near[0])}?" if near else ""


def printable(text: object, limit: int = 200) -> str:
    """Return untrusted text as one printable line of at most `limit` characters."""
    text = str(text)
    text = text if len(text) <= limit else text[: limit - 3] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def describe_oserror(error: OSError) -> str:
    """Return which file could not be read or written, and why, as one line."""
    why = (error.strerror or str(error) or type(error).__name__).splitlines()[0]
    return f"{error.filename}: {why}" if error.filename else why


OUT_OF_MEMORY = "out of memory", "ALLOC_FAILED", "can't allocate memory"
"""In messages of CUDA, its libraries, and torch's allocator on the CPU; also inside those of a compiler."""


def ran_out_of_memory(error: Exception) -> bool:
    """Return whether an exception means that device or host memory was exhausted."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)
    )
