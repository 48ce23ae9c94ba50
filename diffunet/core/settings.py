"""Configuration: YAML files and overrides become one validated `Settings`, with every error at its place.

Overrides are laid over the file and the whole is validated once, so all mistakes are reported together, each as
`FILE:LINE: key: problem` or `--key: problem`.
"""

import ast
import inspect
import math
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from .errors import UserError, did_you_mean, printable


class Settings(BaseModel):
    """A frozen, strict set of named values; the docstring below each field is its `--help`.

    Unknown keys are errors, `true` is not a number, and `nan` is not a learning rate.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        serialize_by_alias=True,
    )


S = TypeVar("S", bound=Settings)
Key = tuple[str, ...]

TAG = "type"
"""The key that decides between the members of a union of settings."""
MAX_VALUES, MAX_DEPTH = 100_000, 30
"""Limits of a YAML file: more values come from nested anchors, and no setting is nested so deeply."""


def settings_from(
    source: Path | S,
    settings: type[S],
    overrides: Mapping[str, str] = {},
    transform: Callable[[dict], dict] | None = None,
    base: S | None = None,
) -> S:
    """Return settings read from a YAML file, or copied from existing ones, with overrides applied.

    `overrides` maps dotted keys to flag values, `{"train.steps": "100"}`. `transform` converts the values first, such
    as those of an older format. `base` has the values that the source lacks. Raise UserError with one line for each
    mistake.
    """
    from_file = isinstance(source, Path)
    values, places = read_yaml(source) if from_file else (source.model_dump(mode="json"), {})
    if transform:
        values, places = transform(values), {}
    if base:
        values = merge(base.model_dump(mode="json"), values)
    # A type decides which other keys there are, so it comes first.
    for dotted, word in sorted(overrides.items(), key=lambda item: not _sets_type(settings, item[0])):
        _override(values, places, settings, dotted, word)
    return _validated(settings, values, places, str(source) if from_file else "")


def merge(values: dict, changes: Mapping[str, Any]) -> dict:
    """Return nested values, updated by others section by section; a section of another type replaces the former."""
    merged = dict(values)
    for name, change in changes.items():
        former = merged.get(name)
        if isinstance(change, Mapping) and isinstance(former, dict):
            same = change.get(TAG, former.get(TAG)) == former.get(TAG)
            change = merge(former, change) if same else change
        merged[name] = change
    return merged


# ── types of fields ───────────────────────────────────────────────────────────────────────────────


def fields_of(settings: type[Settings]) -> dict[str, FieldInfo]:
    """Return the fields by their keys in a file: their names, but `from`, which cannot be a name in Python."""
    return {field.serialization_alias or name: field for name, field in settings.model_fields.items()}


@cache
def docstrings_of(settings: type[Settings]) -> dict[str, str]:
    """Return the docstring below each field, by its key in a file.

    Pydantic's `use_attribute_docstrings` reads them whenever a class is defined, which was a tenth of `sample.py`.
    """
    if settings is Settings:
        return {}
    definition = ast.parse(textwrap.dedent(inspect.getsource(settings))).body[0]
    found = docstrings_of(settings.__base__)
    keys = {name: field.serialization_alias or name for name, field in settings.model_fields.items()}
    for field, below in pairwise(ast.iter_child_nodes(definition)):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))) if name in keys:
                found = found | {keys[name]: inspect.cleandoc(text)}
    return found


def section_of(field: FieldInfo) -> type[Settings] | None:
    """Return the settings that a field holds, if it is a section."""
    return field.annotation if _is_settings(field.annotation) else None


def variants_of(annotation: Any) -> dict[str, type[Settings]]:
    """Return the settings of a tagged union by their type, or nothing for any other annotation."""
    members = filter(_is_settings, union_members(annotation))
    return {m.model_fields[TAG].default: m for m in members if TAG in m.model_fields}


def _is_settings(annotation: Any) -> typing.TypeGuard[type[Settings]]:
    return isinstance(annotation, type) and issubclass(annotation, Settings)


def mapping_of(field: FieldInfo) -> Any | None:
    """Return the annotation of a mapping's values, if the field is a mapping by name."""
    return typing.get_args(field.annotation)[1] if typing.get_origin(field.annotation) is dict else None


def union_members(annotation: Any) -> list:
    """Return the members of a union, also of an annotated one, or the annotation alone."""
    while typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return list(typing.get_args(annotation)) if union else [annotation]


def find_field(settings: type[Settings], key: Key) -> FieldInfo | None:
    """Return the field at a dotted key, also inside unions and mappings; None if there is none."""
    field, candidates, names = None, [settings], iter(key)
    for name in names:
        field = next((fields_of(c)[name] for c in candidates if name in fields_of(c)), None)
        if field is None:
            return None
        inner = mapping_of(field)
        if inner is not None and next(names, None) is not None:  # skips the name of the entry
            field = FieldInfo(annotation=inner)
        candidates = list(filter(_is_settings, union_members(field.annotation)))
    return field


# ── YAML with places ──────────────────────────────────────────────────────────────────────────────


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain values: `1e-4` is a number, `yes` and `1:30` are words."""

    yaml_implicit_resolvers: typing.ClassVar = {}

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Return the value of a node. Raise YAMLError with its line, also where PyYAML trips over `!!int many`."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError):
            kind = node.tag.rpartition(":")[2]
            problem = f"cannot be read as {kind}: {printable(node.value, 80)}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None


for _tag, _pattern, _first in (
    ("null", r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9][0-9_]*", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value.replace("_", "")))


def read_yaml(path: Path) -> tuple[dict, dict[Key, str]]:
    """Return the values of a YAML file, and for each key the place `FILE:LINE` where it stands."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        names = [file.name for file in path.parent.glob("*")] if path.parent.is_dir() else []
        raise UserError(f"{path}: no such file{did_you_mean(path.name, names)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({printable(error)})") from None
    try:
        root = yaml.compose(text, _Loader)
        places: dict[Key, str] = {}
        for key, line in _lines(root, path):
            places[key] = f"{path}:{line}"
            if len(places) > MAX_VALUES:
                raise UserError(f"{path}:{line}: more than {MAX_VALUES:,} values; are there anchors in anchors?")
        values = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else text.count("\n", 0, getattr(error, "position", 0)) + 1
        problem = printable(getattr(error, "problem", None) or str(error).splitlines()[0])
        raise UserError(f"{path}:{line}: not valid YAML: {problem}") from None
    except RecursionError:
        raise UserError(f"{path}: not valid: nested too deeply") from None
    truncated = values is None and path.suffix == ".json"  # an empty YAML file is valid, an empty JSON file is not
    if truncated or not isinstance(values, dict | None):
        raise UserError(f"{path}:1: expected keys with values, got {printable(values, 80)}")
    return values or {}, places


def _lines(node: yaml.Node | None, path: Path, above: Key = ()) -> Iterator[tuple[Key, int]]:
    if node is not None and len(above) > MAX_DEPTH:
        raise UserError(f"{path}:{node.start_mark.line + 1}: {printable(above[0])}: nested too deeply")
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield (*above, str(index)), item.start_mark.line + 1
            yield from _lines(item, path, (*above, str(index)))
    if isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for name, value in node.value:
            line, word = name.start_mark.line + 1, str(name.value)
            key = (*above, word)
            if word in first:
                raise UserError(f"{path}:{line}: {_dotted(key)}: given twice (first at line {first[word]})")
            first[word] = line
            yield key, line
            yield from _lines(value, path, key)


def to_yaml(value: Any) -> str:
    """Return a value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=math.inf)
    return text.removesuffix("...\n").strip()


def _dotted(key: Iterable) -> str:
    return printable(".".join(map(str, key)))


# ── overrides ─────────────────────────────────────────────────────────────────────────────────────


def _sets_type(settings: type[Settings], dotted: str) -> bool:
    field = find_field(settings, tuple(dotted.split(".")))
    return dotted.endswith(f".{TAG}") or (field is not None and bool(variants_of(field.annotation)))


def _override(values: dict, places: dict[Key, str], settings: type[Settings], dotted: str, word: str) -> None:
    """Set a value to that of a flag, and its place to the flag's."""
    key = tuple(dotted.split("."))
    field = find_field(settings, key)
    if field is None:
        raise UserError(f"--{printable(dotted)}: unknown key")
    value = _parse_flag(word, field, dotted)
    if variants_of(field.annotation) and isinstance(value, str):  # --objective edm
        key, value = (*key, TAG), value
    section: Any = values
    for name in key[:-1]:
        section = section.setdefault(name, {}) if isinstance(section, dict) else section
    if not isinstance(section, dict):  # the file has no keys there, which is reported later
        return
    if key[-1] == TAG and section.get(TAG) != value:  # drop the keys that only the former type has
        variants = variants_of(getattr(find_field(settings, key[:-1]), "annotation", None))
        known = fields_of(variants[value]) if isinstance(value, str) and value in variants else section
        for name in [name for name in section if name not in known]:
            del section[name]
    section[key[-1]] = value
    places[key] = f"--{dotted}"


def _parse_flag(word: str, field: FieldInfo, dotted: str) -> Any:
    """Return a flag's value as YAML would read it, but the word itself where only words are allowed."""
    if str in union_members(field.annotation):
        return None if word == "null" and type(None) in union_members(field.annotation) else word
    try:
        return yaml.load(word, _Loader)
    except (yaml.YAMLError, RecursionError):
        raise UserError(f"--{dotted}: not a valid value: {printable(word)}") from None


# ── validation ────────────────────────────────────────────────────────────────────────────────────


def _validated(settings: type[S], values: dict, places: dict[Key, str], default_place: str) -> S:
    """Return the settings. Raise UserError with a line for each mistake; keys without a place get `default_place`."""
    try:
        return settings.model_validate(values)
    except ValidationError as invalid:
        lines: dict[str, str] = {}
        for error in invalid.errors(include_url=False):
            key, candidates = _locate(settings, error["loc"])
            if error["type"].startswith("union_tag"):
                key = (*key, TAG)
            while places and len(key) > 1 and key not in places:  # pydantic names union members after the key
                key = key[:-1]
            below = (place for other, place in places.items() if key and other[: len(key)] == key)
            place = places.get(key) or next(below, default_place)
            where = place if place.startswith("--") else ": ".join(filter(None, (place, _dotted(key))))
            message = _message(error, candidates)
            lines[where] = f"{lines[where]}, or {message}" if where in lines else f"{where}: {message}"
        raise UserError("\n".join(lines.values())) from None


def _locate(settings: type[Settings], location: tuple) -> tuple[Key, list[type[Settings]]]:
    """Return the key of an error, without the types that pydantic adds, and the settings that it is in."""
    candidates, key, rest = [settings], [], list(location)
    while rest:
        name = rest.pop(0)
        key.append(str(name))
        field = next((fields_of(c)[name] for c in candidates if name in fields_of(c)), None)
        if field is None:
            continue
        annotation = field.annotation
        if (inner := mapping_of(field)) is not None and rest:
            key.append(str(rest.pop(0)))
            annotation = inner
        if variants := variants_of(annotation):
            candidates = [variants[rest.pop(0)]] if rest and rest[0] in variants else list(variants.values())
        elif rest:
            candidates = list(filter(_is_settings, _nested(annotation))) or candidates
    return tuple(key), candidates


def _nested(annotation: Any) -> Iterator[Any]:
    """Yield an annotation and all that its brackets hold."""
    yield annotation
    for argument in typing.get_args(annotation):
        yield from _nested(argument)


def _message(error: Mapping[str, Any], candidates: list[type[Settings]]) -> str:
    kind = error["type"]
    if kind == "extra_forbidden":
        known = [name for c in candidates for name in fields_of(c)]
        return f"unknown key{did_you_mean(str(error['loc'][-1]), known)}"
    if kind == "missing":
        return f"{error['loc'][-1]} is missing"
    if kind.startswith("union_tag"):
        known = [c.model_fields[TAG].default for c in candidates if TAG in c.model_fields]
        found = error["ctx"].get("tag")
        if found is None:
            return f"missing; one of {', '.join(known)}"
        return f"{printable(found)} is not one of {', '.join(known)}{did_you_mean(str(found), known)}"
    message = printable(error["msg"].removeprefix("Value error, "))
    message = message[0].lower() + message[1:]
    return message if kind == "value_error" else f"{message}; got {printable(to_yaml(error['input']), 80)}"
