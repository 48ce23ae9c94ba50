"""YAML files and command-line flags -> one validated `Settings`, with every error told by its place.

Flags are laid over the file and the whole is validated once, so all mistakes come at once, each as
`FILE:LINE: key: what is wrong` or `--key: what is wrong`.
"""

import argparse
import math
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from .settings import Settings, UserError, did_you_mean, shown

S = TypeVar("S", bound=Settings)
Key = tuple[str, ...]


FLAG = "flag:"
"""Marks the flags of settings among a parser's arguments."""
MOST_VALUES, DEEPEST = 100_000, 30
"""Of a file: more values than that come of anchors in anchors, and no setting lies so deep."""


def add_flags(parser: argparse.ArgumentParser, settings: type[Settings], above: Key = ()) -> None:
    """One flag for each value of `settings`, `--section.key`, with its docstring, default and range as help."""
    group = parser.add_argument_group(".".join(above), settings.__doc__.splitlines()[0]) if above else parser
    for name, field in settings.model_fields.items():
        key = (*above, name)
        if _is_section(field):
            add_flags(parser, field.annotation, key)
            continue
        group.add_argument(
            f"--{'.'.join(key)}",
            dest=FLAG + ".".join(key),
            default=argparse.SUPPRESS,
            metavar="VALUE",
            help=_help(field).replace("%", "%%"),
            **({"nargs": "?", "const": "true"} if field.annotation is bool else {}),
        )


def parse_flags(parser: argparse.ArgumentParser, argv: list[str] | None) -> tuple[argparse.Namespace, dict[str, str]]:
    """The parser's own arguments, and the words of the flags that `add_flags` gave it.

    UserError, with the nearest flag, for what no flag or place takes.
    """
    parser.allow_abbrev = False
    parser.error = _as_user_error
    found, unknown = parser.parse_known_args(argv)
    if unknown:
        known = [flag for action in parser._actions for flag in action.option_strings]
        flag = unknown[0].partition("=")[0]
        raise UserError(f"{shown(unknown[0]) or repr('')}: unknown argument{did_you_mean(flag, known)}")
    flags = {name.removeprefix(FLAG): word for name, word in vars(found).items() if name.startswith(FLAG)}
    return found, flags


def settings_from(source: Path | S, settings: type[S], flags: Mapping[str, str] = MappingProxyType({})) -> S:
    """Settings from a YAML file, or from others of their kind, with flags, `{"section.key": word}`, laid over.

    UserError with a line for each mistake.
    """
    from_file = isinstance(source, Path)
    values, places = _read_yaml(source) if from_file else (source.model_dump(mode="json"), {})
    _lay_over(values, places, settings, flags)
    return _validated(settings, values, places, str(source) if from_file else "")


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain values: `1e-4` is a number, `yes` and `1:30` are words."""

    yaml_implicit_resolvers: typing.ClassVar = {}

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node. YAMLError with its line, also where PyYAML stumbles over `!!int many`."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError):
            kind = node.tag.rpartition(":")[2]
            problem = f"cannot be read as {kind}: {shown(node.value, 80)}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None


for _tag, _pattern, _first in (
    ("null", r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9][0-9_]*", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value.replace("_", "")))


def _read_yaml(path: Path) -> tuple[dict, dict[Key, str]]:
    """The values of a YAML file, and for each key the place `FILE:LINE` where it stands."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        names = [file.name for file in path.parent.glob("*")] if path.parent.is_dir() else []
        raise UserError(f"{path}: no such file{did_you_mean(path.name, names)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({shown(error)})") from None
    try:
        root = yaml.compose(text, _Loader)
        places: dict[Key, str] = {}
        for key, line in _lines(root, path):
            places[key] = f"{path}:{line}"
            if len(places) > MOST_VALUES:
                raise UserError(f"{path}:{line}: more than {MOST_VALUES:,} values; are there anchors in anchors?")
        values = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else text.count("\n", 0, getattr(error, "position", 0)) + 1
        problem = shown(getattr(error, "problem", None) or str(error).splitlines()[0])
        raise UserError(f"{path}:{line}: not valid YAML: {problem}") from None
    except RecursionError:
        raise UserError(f"{path}: not valid: nested too deeply") from None
    cut_off = values is None and path.suffix == ".json"    # where YAML may say nothing
    if cut_off or not isinstance(values, dict | None):
        raise UserError(f"{path}:1: expected keys with values, got {shown(values, 80)}")
    return values or {}, places


def _lines(node: yaml.Node | None, path: Path, above: Key = ()) -> Iterator[tuple[Key, int]]:
    if len(above) > DEEPEST:
        raise UserError(f"{path}:{node.start_mark.line + 1}: {shown(above[0])}: nested too deeply")
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


def _dotted(key: Iterable) -> str:
    return shown(".".join(map(str, key)))


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _help(field: FieldInfo) -> str:
    parts = [] if field.is_required() else [f"default: {_as_yaml(field.get_default(call_default_factory=True))}"]
    choices = [a for a in _members(field.annotation) if typing.get_origin(a) is typing.Literal]
    parts += [" | ".join(map(str, typing.get_args(choice))) for choice in choices]
    for bound, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
        parts += [f"{sign} {getattr(m, bound)}" for m in field.metadata if getattr(m, bound, None) is not None]
    return f"{field.description or ''} [{'; '.join(parts)}]"


def _members(annotation: Any) -> list:
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return list(typing.get_args(annotation)) if union else [annotation]


def _as_yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=math.inf)
    return text.removesuffix("...\n").strip()


def _as_user_error(message: str):
    raise UserError(shown(message.removeprefix("argument ")))


def _lay_over(values: dict, places: dict[Key, str], settings: type[Settings], flags: Mapping[str, str]) -> None:
    """Lays flags over values read from a file, and their places over its places."""
    for dotted, word in flags.items():
        key = tuple(dotted.split("."))
        section, kind = values, settings
        for name in key[:-1]:
            kind = kind.model_fields[name].annotation
            section = section.setdefault(name, {}) if isinstance(section, dict) else section
        value = _from_word(word, kind.model_fields[key[-1]], dotted)
        if isinstance(section, dict):                      # or the file has no keys there, and will be refused
            section[key[-1]] = value
            places[key] = f"--{dotted}"


def _from_word(word: str, field: FieldInfo, dotted: str) -> Any:
    """A flag's word as YAML would read it, but a word where only words are taken."""
    if str in _members(field.annotation):
        return None if word == "null" and type(None) in _members(field.annotation) else word
    try:
        return yaml.load(word, _Loader)
    except (yaml.YAMLError, RecursionError):
        raise UserError(f"--{dotted}: not a valid value: {shown(word)}") from None


def _validated(settings: type[S], values: dict, places: dict[Key, str], otherwise: str) -> S:
    """The settings. UserError with a line for each mistake; `otherwise` is the place of keys without one."""
    try:
        return settings.model_validate(values)
    except ValidationError as invalid:
        lines = {}
        for error in invalid.errors(include_url=False):
            key = tuple(map(str, error["loc"]))
            while key and key not in places:               # pydantic names union members after the key
                key = key[:-1]
            place = places.get(key, otherwise)
            dotted = _dotted(key)
            where = place if place == f"--{dotted}" else ": ".join(filter(None, (place, dotted)))
            message = _message(settings, error)
            lines[where] = f"{lines[where]}, or {message}" if where in lines else f"{where}: {message}"
        raise UserError("\n".join(lines.values())) from None


def _message(settings: type[Settings], error: dict) -> str:
    if error["type"] == "extra_forbidden":
        section: Any = settings
        for name in error["loc"][:-1]:
            field = getattr(section, "model_fields", {}).get(name)
            section = field.annotation if field else next(iter(typing.get_args(section)), None)
        known = getattr(section, "model_fields", {})
        return f"unknown key{did_you_mean(str(error['loc'][-1]), known)}"
    if error["type"] == "missing":
        return f"{error['loc'][-1]} is missing"
    message = shown(error["msg"].removeprefix("Value error, "))
    message = message[0].lower() + message[1:]
    return message if error["type"] == "value_error" else f"{message}; got {shown(_as_yaml(error['input']), 80)}"
