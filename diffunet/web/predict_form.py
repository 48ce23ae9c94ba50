"""From PredictConfig to the inputs of the page, from their values back to a PredictConfig, and to a command."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from ..core.errors import UserError
from ..core.settings import Settings, docstrings_of, fields_of, settings_from, union_members
from ..objectives.posterior import PosteriorConfig
from ..runs.prediction import PredictConfig, PredictionConfig
from ..runs.run import Run
from .forms import MAX_IMAGES, MAX_STEPS, Field, command_line, word_of

MOST = {"tile": 1024, "samples": MAX_IMAGES, "steps": MAX_STEPS}
"""The greatest values that the page takes. The features of a tile are many times as large as it."""
OF_SAMPLES = {"samples", "steps", "seed"}
"""Settings for an objective whose predictions are samples."""
MAX_WORD = 40
"""Characters of a value that are read."""


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
        fields = {key: field for key, field in settings_fields(own.predict).items() if _has_effect(key, own)}
        return cls(run, own, Field("file", "Image"), fields)

    def config(self, values: Sequence[Any]) -> PredictConfig:
        """Return what the values of the settings request. Raise UserError for a value that cannot be used."""
        words = {key: word_of(value).strip() for key, value in zip(self.settings, values, strict=True)}
        flags = {key: word[:MAX_WORD] or "null" for key, word in words.items()}
        config = settings_from(self.own.predict, PredictConfig, flags)
        for key, most in MOST.items():
            found = getattr(config, key) or 0
            if key in self.settings and (max(found) if isinstance(found, tuple) else found) > most:
                raise UserError(
                    f"--{key}: more than the page makes (got {found}); use at most {most}, or diffunet predict"
                )
        return config

    def command(self, config: PredictConfig, words: Sequence[str]) -> str:
        """Return the line that predicts the same without the page, with `words` after the run."""
        values = {key: getattr(config, key) for key in self.settings}
        flags = {key: word_of(value) for key, value in values.items() if value != getattr(self.own.predict, key)}
        return command_line(["diffunet", "predict", str(self.run.folder), *words], flags)


def _has_effect(key: str, own: PredictionConfig) -> bool:
    if key == "watershed":
        return own.data.labels == "instances"
    return key not in OF_SAMPLES or isinstance(own.objective, PosteriorConfig)


def settings_fields(settings: Settings) -> dict[str, Field]:
    """Return an input for each setting that is a flag, a choice or a number; the others keep their values.

    A number that may be null is a word, and null an empty one: an empty number would be 0 in a browser.
    """
    fields = {}
    for key, info in fields_of(type(settings)).items():
        members = [
            get_args(each)[0] if get_origin(each) is Annotated else each for each in union_members(info.annotation)
        ]
        kind, *others = sorted(members, key=lambda member: member is NoneType)
        about = docstrings_of(type(settings)).get(key, "").replace("null", "empty")
        label, value = key.replace("_", " ").capitalize(), getattr(settings, key)
        if kind in (int, float) and NoneType in others:
            fields[key] = Field("word", label, "" if value is None else word_of(value), about)
        elif kind in (int, float) and not others:
            fields[key] = Field("number", label, value, about, whole=kind is int)
        elif kind is bool and not others:
            fields[key] = Field("flag", label, value, about)
        elif get_origin(kind) is Literal and not others:
            fields[key] = Field("choice", label, value, about, tuple((str(word), word) for word in get_args(kind)))
    return fields
