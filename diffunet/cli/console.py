"""What every command shares: mistakes told in one line, the configs that come with the program, the device."""

import os
import sys
from collections.abc import Callable
from functools import wraps
from itertools import count
from pathlib import Path

from ..core.errors import UserError, did_you_mean, ran_out_of_memory
from ..core.errors import describe_oserror

CONFIG_DIR = next(f for f in (Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs") if f.is_dir())
"""The configs: inside the installed package, or beside it in a checkout."""


def user_friendly(command: Callable) -> Callable:
    """A command whose user's mistakes end in one line each and exit code 2, without a traceback."""

    @wraps(command)
    def wrapped(argv: list[str] | None = None) -> None:
        for stream in (sys.stdout, sys.stderr):            # a file may have a name that is no text
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        try:
            sys.exit(command(argv))
        except UserError as mistake:
            if os.environ.get("LOCAL_RANK", "0") == "0":                      # once on each machine
                print(mistake, file=sys.stderr)
            sys.exit(2)
        except BrokenPipeError:                                               # `... | head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except OSError as error:
            print(describe_oserror(error), file=sys.stderr)
            sys.exit(2)
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            print("out of memory: lower --batch_size, or use a smaller network", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    return wrapped


def next_folder(folder: Path) -> Path:
    """The first of 000, 001, ... that is not there yet."""
    return next(path for number in count() if not (path := folder / f"{number:03d}").exists())


def check_writable(folder: Path) -> None:
    """UserError if a folder cannot be written to, or not be made: before hours of work for it."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK):
        raise UserError(f"{there}: cannot be written to; name another folder with --output")


def config_file(name: str) -> Path:
    """A config by path, or one of those that come with the program by its path in the project."""
    path = Path(name)
    shipped = CONFIG_DIR / path.name
    if not path.exists() and path.parent.name in ("", "configs") and shipped.exists():
        return shipped
    if not path.exists() and not path.parent.is_dir():
        names = [file.name for file in CONFIG_DIR.glob("*.yaml")]
        raise UserError(f"{name}: no such file{did_you_mean(path.name, names)}")
    return path
