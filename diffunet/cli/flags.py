"""Settings as command-line flags, `--section.key VALUE`, with docstring, default and range as `--help`."""

import argparse
import typing
from collections.abc import Iterable

from pydantic.fields import FieldInfo

from ..core.errors import UserError, did_you_mean, printable
from ..core.settings import TAG, Key, Settings, mapping_of, section_of, to_yaml, union_members, variants_of

FLAG = "flag:"
"""Marks the flags of settings among a parser's arguments."""
NAME = "NAME"
"""Stands for the name of an entry in the help of a mapping."""


def add_flags(
    parser: argparse.ArgumentParser, settings: type[Settings], above: Key = (), skip: Iterable[str] = ()
) -> None:
    """Add one flag for each value of `settings`, also of its sections, tagged unions and mappings, but for `skip`."""
    group = parser.add_argument_group(".".join(above), settings.__doc__.splitlines()[0]) if above else parser
    for name, field in settings.model_fields.items():
        key = (*above, name)
        annotation = mapping_of(field)
        if name in skip:
            continue
        if section := section_of(field):
            add_flags(parser, section, key)
        elif annotation is not None:
            _add_mapping(parser, key, field, variants_of(annotation))
        elif variants := variants_of(field.annotation):
            options = _options(key, metavar="|".join(variants), help=_help(field, TAG))
            group.add_argument(f"--{'.'.join(key)}", **options)
            _add_variants(parser, key, variants)
        else:
            flag = {"nargs": "?", "const": "true"} if field.annotation is bool else {}
            group.add_argument(f"--{'.'.join(key)}", **_options(key, metavar="VALUE", help=_help(field), **flag))


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


def _options(key: Key, **options) -> dict:
    return {"dest": FLAG + ".".join(key), "default": argparse.SUPPRESS, **options}


def _add_variants(parser: argparse.ArgumentParser, above: Key, variants: dict[str, type[Settings]]) -> None:
    """One group for the type and what all types share, and one for each type."""
    shared = set.intersection(*(set(v.model_fields) for v in variants.values())) if len(variants) > 1 else {TAG}
    dotted = ".".join(above)
    common = parser.add_argument_group(dotted, f"Keys of every type ({', '.join(variants)})")
    first = next(iter(variants.values()))
    common.add_argument(f"--{dotted}.{TAG}", **_options((*above, TAG), metavar="|".join(variants), help="the type"))
    for name in [name for name in first.model_fields if name in shared - {TAG}]:
        field = first.model_fields[name]
        common.add_argument(f"--{dotted}.{name}", **_options((*above, name), metavar="VALUE", help=_help(field)))
    added = set(shared)
    for tag, settings in variants.items():
        group = parser.add_argument_group(f"{dotted}, type {tag}", settings.__doc__.splitlines()[0])
        for name, field in settings.model_fields.items():
            if name not in added:
                added.add(name)
                group.add_argument(f"--{dotted}.{name}", **_options((*above, name), metavar="VALUE", help=_help(field)))


def _add_mapping(
    parser: argparse.ArgumentParser, key: Key, field: FieldInfo, variants: dict[str, type[Settings]]
) -> None:
    """A flag for the whole mapping, and as help those of an entry called NAME; `_add_entries` adds the real names."""
    dotted = ".".join(key)
    group = parser.add_argument_group(dotted, f"A mapping by name, one --{dotted}.{NAME} for each entry")
    group.add_argument(f"--{dotted}", **_options(key, metavar="MAPPING", help=_help(field)))
    if variants:
        _add_variants(parser, (*key, NAME), variants)
    else:
        group.add_argument(f"--{dotted}.{NAME}", **_options((*key, NAME), metavar="VALUE", help="value of the entry"))


def _add_entries(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    """Add the flags of the mapping entries that the command line names, such as `--conditions.label.column`."""
    patterns = [flag for flag in parser._option_string_actions if f".{NAME}" in flag]
    for word in argv:
        flag = word.partition("=")[0]
        parts = flag.split(".")
        for pattern in patterns:
            wanted = pattern.split(".")
            fits = len(parts) == len(wanted) and all(w in (NAME, p) for w, p in zip(wanted, parts, strict=True))
            if fits and flag not in parser._option_string_actions:
                parser.add_argument(flag, **_options(tuple(flag.removeprefix("--").split(".")), help=argparse.SUPPRESS))


def _help(field: FieldInfo, of_default: str | None = None) -> str:
    parts = []
    if not field.is_required():
        default = field.get_default(call_default_factory=True)
        parts.append(f"default: {to_yaml(_plain(getattr(default, of_default) if of_default else default))}")
    choices = [a for a in union_members(field.annotation) if typing.get_origin(a) is typing.Literal]
    parts += [" | ".join(map(str, typing.get_args(choice))) for choice in choices]
    for bound, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
        parts += [f"{sign} {getattr(m, bound)}" for m in field.metadata if getattr(m, bound, None) is not None]
    return f"{field.description or ''} [{'; '.join(parts)}]".replace("%", "%%")


def _plain(value):
    """Settings inside a default as plain values."""
    if isinstance(value, dict):
        return {name: _plain(v) for name, v in value.items()}
    return value.model_dump(mode="json") if isinstance(value, Settings) else value


def _as_user_error(message: str) -> typing.NoReturn:
    raise UserError(printable(message.removeprefix("argument ")))
