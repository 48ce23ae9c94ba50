"""Settings as command-line flags, `--section.key VALUE`, with docstring, default and range as `--help`."""

import argparse
import re
import typing

from pydantic import PlainSerializer
from pydantic.fields import FieldInfo

from ..core.errors import UserError, did_you_mean, printable
from ..core.settings import (
    TAG,
    Key,
    Settings,
    docstrings_of,
    fields_of,
    mapping_of,
    section_of,
    to_yaml,
    union_members,
    variants_of,
)

FLAG = "flag:"
"""Marks the flags of settings among a parser's arguments."""
NAME = "NAME"
"""Stands for the name of an entry in the help of a mapping."""


def add_flags(parser: argparse.ArgumentParser, settings: type[Settings], above: Key = ()) -> None:
    """Add one flag for each value of `settings`, also of its sections, tagged unions and mappings."""
    group = parser.add_argument_group(".".join(above), settings.__doc__.splitlines()[0]) if above else parser
    for name, field in fields_of(settings).items():
        key = (*above, name)
        if section := section_of(field):
            add_flags(parser, section, key)
        elif (entries := mapping_of(field)) is not None:
            _add_mapping(parser, key, settings, variants_of(entries))
        elif variants := variants_of(field.annotation):
            _add_value(group, key, settings, "|".join(variants))
            _add_variants(parser, key, variants)
        else:
            _add_value(group, key, settings)


def parse_flags(parser: argparse.ArgumentParser, argv: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """Return the parser's own arguments, and the values of the flags that `add_flags` added by their dotted keys.

    Raise UserError, with the closest flag, for an argument that the parser does not know.
    """
    parser.allow_abbrev = False
    parser.error = _as_user_error
    _add_entries(parser, argv)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        known = [flag for action in parser._actions for flag in action.option_strings]
        flag = unknown[0].partition("=")[0]
        raise UserError(f"{printable(unknown[0]) or repr('')}: unknown argument{did_you_mean(flag, known)}")
    flags = {name.removeprefix(FLAG): word for name, word in vars(args).items() if name.startswith(FLAG)}
    return args, flags


def _add_value(group: argparse._ActionsContainer, key: Key, settings: type[Settings], metavar: str = "VALUE") -> None:
    """Add the flag of the field that is last in a key, of the settings that define it."""
    field = fields_of(settings)[key[-1]]
    flag = {"nargs": "?", "const": "true"} if field.annotation is bool else {}
    text = f"{docstrings_of(settings).get(key[-1], '')} [{'; '.join(_range(field))}]".replace("%", "%%")
    text = "Decides which other keys there are." if key[-1] == TAG else text
    group.add_argument(f"--{'.'.join(key)}", **_options(key), metavar=metavar, help=text, **flag)


def _options(key: Key) -> dict:
    return {"dest": FLAG + ".".join(key), "default": argparse.SUPPRESS}


def _add_variants(parser: argparse.ArgumentParser, above: Key, variants: dict[str, type[Settings]]) -> None:
    """Add the keys of all types, in one group for each set of types that shares them."""
    dotted = ".".join(above)
    kinds = {name: kind for kind in reversed(variants.values()) for name in kind.model_fields}
    common = next(iter(variants.values())).__base__
    for owners in dict.fromkeys(_owners(name, variants) for name in kinds):
        shared = owners == tuple(variants)
        types = f"Keys of every type ({', '.join(owners)})" if shared else f"Keys of {', '.join(owners)}"
        group = parser.add_argument_group(dotted if shared else f"{dotted}, type {' or '.join(owners)}", types)
        for name in [name for name in kinds if _owners(name, variants) == owners]:
            kind = common if shared and name != TAG and name in common.model_fields else kinds[name]
            nested = variants_of(kind.model_fields[name].annotation)
            _add_value(group, (*above, name), kind, "|".join(variants if name == TAG else nested) or "VALUE")
            if nested:
                _add_variants(parser, (*above, name), nested)


def _owners(name: str, variants: dict[str, type[Settings]]) -> tuple[str, ...]:
    """Return the types that have a key."""
    return tuple(tag for tag, kind in variants.items() if name in kind.model_fields)


def _add_mapping(
    parser: argparse.ArgumentParser, key: Key, settings: type[Settings], variants: dict[str, type[Settings]]
) -> None:
    """Add a flag for the whole mapping, and for the help those of an entry NAME; `_add_entries` adds the real ones."""
    dotted = ".".join(key)
    group = parser.add_argument_group(dotted, f"A mapping by name, one --{dotted}.{NAME} for each entry")
    _add_value(group, key, settings, "MAPPING")
    if variants:
        _add_variants(parser, (*key, NAME), variants)
    else:
        group.add_argument(f"--{dotted}.{NAME}", **_options((*key, NAME)), metavar="VALUE", help="value of the entry")


def _add_entries(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    """Add the flags of the mapping entries that the command line names, such as `--conditions.label.column`."""
    flags = parser._option_string_actions
    patterns = [re.escape(flag).replace(NAME, "[^.]*") for flag in flags if f".{NAME}" in flag]
    for flag in (word.partition("=")[0] for word in argv):
        if flag not in flags and any(re.fullmatch(pattern, flag) for pattern in patterns):
            key = tuple(flag.removeprefix("--").split("."))
            parser.add_argument(flag, **_options(key), help=argparse.SUPPRESS)


def _range(field: FieldInfo) -> list[str]:
    """Return the default, the choices and the bounds of a field in words."""
    parts = []
    if not field.is_required():
        default = _plain(field.get_default(call_default_factory=True))
        for written in (m.func for m in field.metadata if isinstance(m, PlainSerializer)):
            default = written(default)
        default = default.get(TAG, default) if isinstance(default, dict) else default
        parts.append(f"default: {to_yaml(default)}")
    choices = [a for a in union_members(field.annotation) if typing.get_origin(a) is typing.Literal]
    parts += [" | ".join(map(str, typing.get_args(choice))) for choice in choices]
    members = [typing.get_args(member)[1:] for member in union_members(field.annotation)]
    inner = [m for found in members for each in found if isinstance(each, FieldInfo) for m in each.metadata]
    for bound, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
        bounds = [getattr(m, bound, None) for m in (*field.metadata, *inner)]
        parts += [f"{sign} {value}" for value in bounds if value is not None]
    return parts


def _plain(value):
    """Return a default with the settings inside it as plain values."""
    if isinstance(value, dict):
        return {name: _plain(v) for name, v in value.items()}
    return value.model_dump(mode="json") if isinstance(value, Settings) else value


def _as_user_error(message: str) -> typing.NoReturn:
    raise UserError(printable(message.removeprefix("argument ")))
