"""From the configuration of a run to the inputs of the page, from their values to a SampleConfig, and to a command."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from ..conditions.base import NONE, ConditionConfig
from ..conditions.image import ImageConfig
from ..conditions.label import LabelConfig
from ..conditions.text import TextConfig
from ..conditions.vector import VectorConfig
from ..core.errors import UserError
from ..core.settings import merge, settings_from, to_yaml
from ..data.degradation import image_size
from ..runs.config import Config
from ..runs.edit import sampling_settings
from ..runs.examples import EXAMPLES, read_examples
from ..runs.run import Run
from ..sampling.editing import Edit
from ..sampling.generate import SampleConfig
from .uploads import check_sample_size, checked_upload

Choices = tuple[tuple[str, str], ...]
"""(shown, value)"""
IN_TURN, HELD_OUT, OWN = "in turn", "held-out", "own"
FEW_IMAGES, MAX_IMAGES = 16, 64
"""Number of images at first, and at most."""
MAX_STEPS = 1000
MAX_NUMBERS = 8
"""Maximum width of a vector with an input for each number; wider ones are one line of text."""
FEW_PROMPTS = 4
"""Example prompts shown at first, where no other condition is taken from the examples."""


@dataclass(frozen=True)
class Field:
    """One input of the page, of any toolkit."""

    kind: Literal["choice", "text", "word", "number", "file", "flag"]
    label: str
    value: Any = None
    info: str = ""
    choices: Choices = ()
    range: tuple[int, int] | None = None
    """Of a number with a slider."""
    whole: bool = False
    """Whether a number is an integer."""


@dataclass(frozen=True)
class ConditionInput:
    """The inputs of one condition."""

    fields: Sequence[Field]
    words: Callable[..., Any]
    """From the values of the fields to the words of SampleConfig.conditions; None: the default. Raises UserError."""
    default: Any = NONE
    """The words of the default, to be given where another condition is not at its default."""


@dataclass(frozen=True)
class Form:
    """All inputs for sampling from a run, in order: those of each condition, then the settings by their dotted keys."""

    run: Run
    own: Config
    conditions: Mapping[str, ConditionInput]
    settings: Mapping[str, Field]

    @classmethod
    def of(cls, run: Run) -> "Form":
        """Return the form of a run. Raise UserError if its configuration or its examples cannot be read."""
        own = run.config()
        examples = read_examples(run.folder / EXAMPLES, own.inputs)
        inputs = {name: _input(name, condition, own, examples) for name, condition in own.inputs.items()}
        return cls(run, own, inputs, _settings(own))

    @property
    def fields(self) -> list[Field]:
        """All inputs in order."""
        return [*(field for each in self.conditions.values() for field in each.fields), *self.settings.values()]

    def config(self, values: Sequence[Any]) -> SampleConfig:
        """Return what the values of all fields request. Raise UserError for a value that cannot be used."""
        rest = iter(values)
        words = {name: each.words(*islice(rest, len(each.fields))) for name, each in self.conditions.items()}
        given = {name: word for name, word in words.items() if word is not None}
        if given and not all(isinstance(condition, LabelConfig) for condition in self.own.inputs.values()):
            given = {name: self.conditions[name].default if word is None else word for name, word in words.items()}
        changes: dict = {}
        settings = dict(zip(self.settings, rest, strict=True))
        settings |= {"tile": settings["tile"] or None} if "tile" in settings else {}
        for key, value in settings.items():
            first, _, name = key.partition(".")
            changes = merge(changes, {first: {name: value} if name else value})
        former = self.own.sample
        config = settings_from(former, SampleConfig, transform=lambda old: merge(old, changes) | {"conditions": given})
        self._check_limits(config)
        return config

    def _check_limits(self, config: SampleConfig) -> None:
        for key, most in (("num_images", MAX_IMAGES), ("steps", MAX_STEPS)):
            if (found := getattr(config, key)) > most:
                raise UserError(f"{key}: more than the page makes (got {found}); use at most {most}, or sample.py")

    def command(self, config: SampleConfig) -> str:
        """Return the line that makes the same images without the page; of an upload it has the name alone."""
        return self._line(["python", "sample.py", str(self.run.folder)], config, self.own.sample, ("num_images",))

    def edit_config(self, config: SampleConfig, edit: Edit) -> SampleConfig:
        """Return the config for an edit, with its own defaults wherever the form has those of the run."""
        former = self.own.sample
        changes = {key: value for key, value in edit.defaults.items() if getattr(config, key) == getattr(former, key)}
        return config.model_copy(update=changes)

    def edit_command(self, config: SampleConfig, edit: Edit, words: Sequence[str]) -> str:
        """Return the line of an edit, with `words` of its own."""
        command = ["diffunet", "edit", str(self.run.folder), *words]
        return self._line(command, config, sampling_settings(edit, self.own))

    def _line(self, words: list[str], config: SampleConfig, former: SampleConfig, always: Sequence[str] = ()) -> str:
        """Return a command with flags for what differs from the settings that it has without any, and some always."""
        flags = self._condition_flags(config.conditions, former.conditions)
        for key in ("num_images", "sampler", "steps", "guidance_scale", "guide", "seed", "agree", "tile"):
            value = getattr(config, key)
            if key in always or (key != "num_images" and value != getattr(former, key)):
                flags[key] = word_of(value)
        return command_line(words, flags)

    def _condition_flags(self, conditions: Mapping[str, Any], former: Mapping[str, Any]) -> dict[str, str]:
        """Return a flag for each condition, or one for all, where the words of any have no form as a flag."""
        given = {name: self.as_given(name, words) for name, words in conditions.items()}
        flags = {name: _as_flag(self.own.inputs[name], words) for name, words in given.items()}
        if None in flags.values() or former.keys() - given.keys():
            return {"conditions": to_yaml(given)}
        return {name: flag for name, flag in flags.items() if flag is not None and given[name] != former.get(name)}

    def as_given(self, name: str, word: Any) -> Any:
        """Return a word of a condition, an uploaded file without the folder that it is in here."""
        is_file = isinstance(self.own.inputs[name], ImageConfig) and isinstance(word, str) and word != NONE
        return Path(word).name if is_file and not Path(word).is_relative_to(self.run.folder) else word


# ── conditions ────────────────────────────────────────────────────────────────────────────────────


def _input(name: str, condition: ConditionConfig, own: Config, examples: Mapping[str, list]) -> ConditionInput:
    words = [word for word in examples.get(name, []) if word is not None] and examples[name]
    if isinstance(condition, LabelConfig):
        return _label_input(name, condition, words)
    if isinstance(condition, TextConfig):
        others = [c for other, c in own.inputs.items() if other != name and not isinstance(c, LabelConfig)]
        return _text_input(name, words if others else words[:FEW_PROMPTS])
    if isinstance(condition, ImageConfig):
        return _image_input(name, condition, words)
    assert isinstance(condition, VectorConfig)
    return _vector_input(name, condition, words)


def _label_input(name: str, condition: LabelConfig, examples: list) -> ConditionInput:
    classes = [(class_name, str(index)) for index, class_name in enumerate(condition.class_names)]
    choices = (*_held_out(examples), ("all in turn", IN_TURN), *classes, ("none", NONE))
    first = choices[0][1]

    def words(choice: str) -> Any:
        _check_choice(name, choice, choices)
        named = {IN_TURN: condition.choices, NONE: NONE, first: None}
        return named[choice] if choice in named else int(choice)

    return ConditionInput([Field("choice", name, first, choices=choices)], words, examples or condition.choices)


def _text_input(name: str, examples: list) -> ConditionInput:
    def words(text: str) -> list[str] | str:
        prompts = [line.strip() for line in text.splitlines() if line.strip()]
        return prompts or NONE  # a list: a prompt alone that ends in .txt would be read as a file

    value = "\n".join(NONE if word is None else str(word) for word in examples)
    info = "One prompt on each line, sampled in turn. Empty: none."
    return ConditionInput([Field("text", name, value, info)], words)


def _image_input(name: str, condition: ImageConfig, examples: list) -> ConditionInput:
    choices = _choices(examples, ("your image", OWN))

    def words(choice: str, file: str | None) -> str | None:
        _check_choice(name, choice, choices)
        if choice != OWN:
            return None if choice == choices[0][1] == HELD_OUT else NONE
        path, uploaded = checked_upload(name, file)
        check_sample_size(name, image_size(condition.by, uploaded))
        return str(path)

    fields = [Field("choice", name, choices[0][1], choices=choices), Field("file", name, info=condition.summary)]
    return ConditionInput(fields, words, examples or NONE)


def _vector_input(name: str, condition: VectorConfig, examples: list) -> ConditionInput:
    choices = _choices(examples, ("numbers", OWN))
    width, columns = condition.width or 0, condition.column
    labels = list(columns) if isinstance(columns, tuple) and len(columns) == width else [name] * width
    means = [float(f"{mean:.3g}") for mean in condition.mean]
    if width <= MAX_NUMBERS:
        fields = [Field("number", label, mean) for label, mean in zip(labels, means, strict=True)]
    else:
        fields = [Field("text", f"{name}: {width} numbers", ", ".join(map(str, means)), "Separated by commas.")]

    def words(choice: str, *numbers: float | str | None) -> Any:
        _check_choice(name, choice, choices)
        if choice != OWN:
            return None if choice == choices[0][1] == HELD_OUT else NONE
        if width > MAX_NUMBERS:
            return [str(numbers[0])]
        if None in numbers:
            raise UserError(f"{name}: a number is missing; fill in all {width}, or choose {NONE}")
        return [[float(number) for number in numbers if number is not None]]

    return ConditionInput([Field("choice", name, choices[0][1], choices=choices), *fields], words, examples or NONE)


def _choices(examples: list, own: tuple[str, str]) -> Choices:
    return (*_held_out(examples), own, ("none", NONE))


def _held_out(examples: list) -> Choices:
    return (("held-out examples", HELD_OUT),) if examples else ()


def _check_choice(name: str, choice: str, choices: Choices) -> None:
    if choice not in [value for _, value in choices]:
        raise UserError(f"{name}: not one of the choices; choose one")


# ── settings ──────────────────────────────────────────────────────────────────────────────────────


def _settings(own: Config) -> dict[str, Field]:
    """Return the inputs of the settings by their dotted keys."""
    sample, scales = own.sample, own.sample.guidance_scale
    samplers = tuple((name, name) for name in own.build_objective().samplers())
    fields = {
        "num_images": Field("number", "Images", min(sample.num_images, FEW_IMAGES), range=(1, MAX_IMAGES), whole=True),
        "seed": Field("number", "Seed", sample.seed, "Of the first image; each further one has the next.", whole=True),
        "sampler": Field("choice", "Sampler", sample.sampler, choices=samplers),
        "steps": Field("number", "Steps", sample.steps, "Network calls per image.", whole=True),
    }
    guidance = "1 is none; more follows the conditions more closely."
    if isinstance(scales, dict):
        for name in own.inputs:
            fields[f"guidance_scale.{name}"] = Field("number", f"Guidance: {name}", scales.get(name, 1.0), guidance)
    elif own.inputs:
        fields["guidance_scale"] = Field("number", "Guidance", scales, guidance)
    images = [condition for condition in own.inputs.values() if isinstance(condition, ImageConfig)]
    if any(condition.is_made_from_image for condition in images):
        fields["agree"] = Field("flag", "Agree", sample.agree, "Degraded again, each sample equals its source.")
    if images:
        tile = "Side of the tiles for sources larger than the images trained on; 0: no tiles."
        fields["tile"] = Field("number", "Tile", sample.tile or 0, tile, whole=True)
    return fields


# ── commands ──────────────────────────────────────────────────────────────────────────────────────


def command_line(words: Sequence[str], flags: Mapping[str, str]) -> str:
    """Return a command with the words of flags by their keys, quoted for a shell."""
    return shlex.join([*words, *(word for key, text in flags.items() for word in _flag(key, text))])


def word_of(value: Any) -> str:
    """Return the value of a setting as the word of its flag."""
    return value if isinstance(value, str) else to_yaml(value)


def _flag(key: str, text: str) -> list[str]:
    return [f"--{key}={text}"] if text.startswith("-") else [f"--{key}", text]


def _as_flag(condition: ConditionConfig, words: Any) -> str | None:
    """Return the word of a command line that has the same meaning; None if there is none."""
    if words == NONE or isinstance(condition, ImageConfig):
        return words if isinstance(words, str) else None
    if isinstance(condition, LabelConfig):
        several = words if isinstance(words, list) else [words]
        plain = all(condition.class_names.index(str(w)) == w for w in several if str(w) in condition.class_names)
        return ",".join(map(str, several)) if plain and None not in several else None
    if isinstance(condition, VectorConfig):
        several = [word if isinstance(word, str) else ",".join(map(str, word or [NONE])) for word in words]
        return ";".join(several)
    return words[0] if len(words) == 1 and not words[0].endswith(".txt") else None
