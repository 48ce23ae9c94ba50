"""All commands by name: `diffunet train`, `diffunet sample`, ..."""

from collections.abc import Callable
from importlib import import_module

from ..core.errors import UserError, did_you_mean, printable
from .console import user_friendly

COMMANDS = {
    "train": "train",
    "sample": "sample",
    "edit": "edit",
    "predict": "predict",
    "app": "app",
    "evaluate": "evaluate",
    "ema": "evaluate",
    "classifier": "classifier",
    "describe": "network",
    "export": "network",
    "import": "network",
}
"""The module of each command. Only the module of the command in use is imported."""


def find_command(name: str) -> Callable[[list[str]], int]:
    """Return the function of a command."""
    module = import_module(f"..{COMMANDS[name]}", __name__)
    return getattr(module, {"import": "import_"}.get(name, name))


@user_friendly
def main(argv: list[str]) -> int:
    """The `diffunet` command."""
    if argv and argv[0] in COMMANDS:
        return find_command(argv[0])(argv[1:])
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: diffunet COMMAND ...; diffunet COMMAND --help for its options\n")
        for name in COMMANDS:
            print(f"  {name:11}{find_command(name).__doc__.splitlines()[0]}")
        return 0
    raise UserError(f"{printable(argv[0])}: unknown command{did_you_mean(argv[0], COMMANDS)}")
