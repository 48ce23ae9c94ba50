"""What a case of bad input is, and what the makers of all kinds share.

A maker is a function of a random number generator: it puts what it needs into a fresh folder and answers with
a `Case`, which says what to ask of the program there and what a person may expect of the answer.
"""

from dataclasses import dataclass
from typing import Literal

from diffunet.core.settings import Settings

TINY = """
unet: {levels: [{channels: 8, blocks: 1}, {channels: 8, blocks: 1, attention: true}], norm_groups: 8}
conditions: {classes: auto}
data: {path: digits, workers: 0}
train: {output: run, steps: 4, batch_size: 4, log_every: 2, checkpoint_every: 2, preview_every: 2, snapshots: 2}
sample: {num_images: 2, steps: 2}
"""
"""A run of a second."""
TRAIN = ("train", "--config", "case.yaml", "--train.steps", "1", "--train.snapshots", "0")
PRINT = ("train", "--config", "case.yaml", "--print_config")
VALUES = (None, True, "", "many", "é", "1e-4", [], {}, [1], [[[]]], {"a": {"b": 1}}, -1, 0, 0.5, 3, float("nan"),
          float("inf"), -1e300, 1e-320, 10**12, -(10**12), 10**40, "2020-01-01", "a\0b", "x" * 5000, [None] * 50,
          [{"channels": 8}] * 200, [{"channels": 10**9}], [{"channels": 8, "blocks": 10**9}])  # fmt: skip
"""What a key may be found to hold."""


@dataclass(frozen=True)
class Case:
    """What to ask of the program, and what to expect."""

    about: str
    """What is wrong, in a few words."""
    argv: tuple[str, ...]
    """Of the `diffunet` command."""
    names: tuple[str, ...]
    """Every line of a refusal holds one of these: the file or the key at fault."""
    expected: Literal["refused", "accepted", "either"] = "either"
    told: tuple[str, ...] = ()
    """What the output holds if it is accepted all the same."""


def keys_of(settings: type[Settings]) -> list[str]:
    """`section.key` of every value."""
    found = []
    for name, field in settings.model_fields.items():
        section = isinstance(field.annotation, type) and issubclass(field.annotation, Settings)
        found += [f"{name}.{key}" for key in keys_of(field.annotation)] if section else [name]
    return found
