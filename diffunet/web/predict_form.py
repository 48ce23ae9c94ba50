"""From PredictConfig to the inputs of the page, from their values back to a PredictConfig, and to a command."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from ..core.errors import UserError
from ..core.settings import Settings, docstrings_of, fields_of, merge, settings_from, union_members
from ..runs.prediction import PredictConfig, PredictionConfig
from ..runs.run import Run
from .forms import Field, command_line, word_of

MAX_TILE = 1024
"""Side of a tile, at most; its features are many times as large."""


@dataclass(frozen=True)
class PredictForm:
    """The inputs for predictions of a run: an image, and the settings by their keys."""

    run: Run
    own: PredictionConfig
    image: Field
    settings: Mapping[str, Field]

    @classmethod
    def of(cls, run: Run) -> "PredictForm":
        """Return the form of a run. Raise UserError if its configuration cannot be read."""
        own = run.config(PredictionConfig)
        return cls(run, own, Field("file", "Image"), settings_fields(own.predict))

    def config(self, values: Sequence[Any]) -> PredictConfig:
        """Return what the values of the settings request. Raise UserError for a value that cannot be used."""
        changes = dict(zip(self.settings, values, strict=True))
        config = settings_from(self.own.predict, PredictConfig, transform=lambda old: merge(old, changes))
        if config.tile != self.own.predict.tile and (config.tile or 0) > MAX_TILE:
            found = f"more than the page makes (got {config.tile})"
            raise UserError(f"tile: {found}; use at most {MAX_TILE}, or diffunet predict")
        return config

    def command(self, config: PredictConfig, words: Sequence[str]) -> str:
        """Return the line that predicts the same without the page, with `words` after the run."""
        values = {key: getattr(config, key) for key in self.settings}
        flags = {key: word_of(value) for key, value in values.items() if value != getattr(self.own.predict, key)}
        return command_line(["diffunet", "predict", str(self.run.folder), *words], flags)


def settings_fields(settings: Settings) -> dict[str, Field]:
    """Return an input for each setting that is a flag, a choice or a number; the others keep their values."""
    fields = {}
    for key, info in fields_of(type(settings)).items():
        members = union_members(info.annotation)
        kind = next(member for member in members if member is not NoneType)
        about = docstrings_of(type(settings)).get(key, "").replace("null", "empty")
        common: dict[str, Any] = {"label": key.replace("_", " ").capitalize(), "info": about}
        common["value"] = getattr(settings, key)
        if kind is bool:
            fields[key] = Field("flag", **common)
        elif kind in (int, float):
            fields[key] = Field("number", **common, whole=kind is int)
        elif get_origin(kind) is Literal and NoneType not in members:
            fields[key] = Field("choice", **common, choices=tuple((str(word), word) for word in get_args(kind)))
    return fields
