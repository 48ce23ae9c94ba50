"""A case of bad input, and what the makers of all kinds of cases share.

A maker is a function of a random number generator that fills a new folder and returns a `Case`: the command to run
there, and which answers are acceptable.
"""

from dataclasses import dataclass
from typing import Any, Literal

from diffunet.core.settings import TAG, Settings, mapping_of, section_of, variants_of

TINY = """
unet: {levels: [{channels: 8, blocks: 1}, {channels: 8, blocks: 1, attention: true}], norm_groups: 8}
conditions: {label: {type: label}}
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
"""Candidate values for any key."""
ENTRY = "label"
"""The entry to use where the settings are a mapping by name."""


@dataclass(frozen=True)
class Case:
    """A command and the answers that are acceptable."""

    about: str
    """The defect, in a few words."""
    argv: tuple[str, ...]
    """Arguments of the `diffunet` command."""
    names: tuple[str, ...]
    """Every line of an error message contains one of these: the file or the key at fault."""
    expected: Literal["refused", "accepted", "either"] = "either"
    prints: tuple[str, ...] = ()
    """Words that the output contains if the input is accepted."""


def keys_of(settings: type[Settings]) -> list[str]:
    """Return the dotted key of every value: of each type in a union, and of the entry `label` in a mapping."""
    return list(dict.fromkeys(key for key, _ in _walk(settings)))


def with_value(values: dict, settings: type[Settings], key: str, value: Any) -> dict:
    """Return nested values with one changed; where a union has the key for some types only, its type is set as well."""
    types = next((types for found, types in _walk(settings) if found == key), {})
    for dotted, new in {**types, key: value}.items():
        *above, name = dotted.split(".")
        section = values
        for part in above:
            section = section.setdefault(part, {})
        section[name] = new
    return values


def _walk(settings: type[Settings], prefix: str = "", types: dict[str, str] | None = None):
    """Yield the key of every value and the types that it needs, `{"objective.type": "edm"}`."""
    for name, field in settings.model_fields.items():
        key, annotation = f"{prefix}{name}", field.annotation
        if (inner := mapping_of(field)) is not None:
            key, annotation = f"{key}.{ENTRY}", inner
        if section := section_of(field):
            yield from _walk(section, f"{key}.", types)
        elif variants := variants_of(annotation):
            for tag, variant in variants.items():
                yield from _walk(variant, f"{key}.", {**(types or {}), f"{key}.{TAG}": tag})
        else:
            yield key, types or {}
