"""All commands by name: `diffunet train`, `diffunet sample`, ..."""

from ..core.errors import UserError, did_you_mean, printable
from .app import app
from .console import user_friendly
from .edit import edit
from .evaluate import classifier, ema, evaluate
from .network import describe, export, import_
from .sample import sample
from .train import train

COMMANDS = {
    "train": train,
    "sample": sample,
    "edit": edit,
    "app": app,
    "evaluate": evaluate,
    "ema": ema,
    "classifier": classifier,
    "describe": describe,
    "export": export,
    "import": import_,
}


@user_friendly
def main(argv: list[str]) -> int:
    """The `diffunet` command."""
    if argv and argv[0] in COMMANDS:
        COMMANDS[argv[0]](argv[1:])
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: diffunet COMMAND ...; diffunet COMMAND --help for its options\n")
        for name, command in COMMANDS.items():
            print(f"  {name:11}{command.__doc__.splitlines()[0]}")
        return 0
    raise UserError(f"{printable(argv[0])}: unknown command{did_you_mean(argv[0], COMMANDS)}")
