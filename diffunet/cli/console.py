"""Code that all commands share: errors as one line, exit codes, condition flags, output folders."""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path

from ..core.errors import UserError, describe_oserror, ran_out_of_memory
from ..core.shared_work import UNFINISHED, SharedWork, job_in
from ..runs.run import Run
from ..runs.samples import next_folder
from .flags import FLAG


def user_friendly(command: Callable[[list[str]], int]) -> Callable[[list[str] | None], None]:
    """Turn a function into a command that exits: with 2 after one line for a user's mistake, without a traceback."""

    @wraps(command)
    def wrapped(argv: list[str] | None = None) -> None:
        for stream in (sys.stdout, sys.stderr):  # file names need not be valid text
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        try:
            _exit(command(sys.argv[1:] if argv is None else argv))
        except UserError as mistake:
            _fail(str(mistake))
        except BrokenPipeError:  # the reader of a pipe, such as head, left
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except OSError as error:
            _fail(describe_oserror(error))
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            _fail("out of memory: lower --batch_size, or use a smaller network")
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(128 + signal.SIGINT)

    return wrapped


def _exit(code: int) -> None:
    """Exit; in one of several processes without destructors, which aborted after about one training in fourteen."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _fail(message: str) -> None:
    """Print the message, once per machine, and exit with 2. torchrun repeats it as the root cause of its own report."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(message, file=sys.stderr)
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        details = {"py_callstack": message, "timestamp": str(int(time.time()))}
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(json.dumps({"message": {"message": message, "extraInfo": details}}))
    sys.exit(2)


def check_single_process(command: str) -> None:
    """Raise UserError in a command that would do the same work in every process of a launcher."""
    if (processes := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise UserError(f"{command}: runs in one process (got {processes} from a launcher); start it with python")


def check_writable(folder: Path) -> None:
    """Raise UserError if a folder cannot be made or written to: before hours of work for it."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(existing, os.W_OK):
        raise UserError(f"{existing}: not writable; choose another folder with --output")


def output_folder(
    requested: str | None, numbered: Path, resumable: Callable[[Path], bool] = lambda folder: False
) -> Path:
    """Return the requested folder, if it is empty, or the first free one of numbered/000, ...; it can be written to.

    A `resumable` folder is returned as well: the requested one, or the newest of the numbered.
    """
    newest = max(numbered.glob("[0-9]*"), default=numbered)
    if not requested and resumable(newest):
        return newest
    folder = Path(requested) if requested else next_folder(numbered)
    if requested and folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not resumable(folder):
        raise UserError(f"--output: {folder} is not empty; choose another folder")
    check_writable(folder)
    return folder


def begin(requested: str | None, numbered: Path, job: str) -> Path:
    """Return a folder as `output_folder` does, prepared for a job, or with the unfinished results of that job."""
    folder = output_folder(requested, numbered, lambda folder: job_in(folder / UNFINISHED) == job)
    SharedWork(folder / UNFINISHED, job)
    return folder


def add_condition_flags(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    """Add one flag for each condition, such as `--label 7`, of the run in the first argument that is a run folder."""
    run = next((Run(word) for word in argv if not word.startswith("-") and Run(word).exists), None)
    for name, condition in run.config().inputs.items() if run else ():
        parser.add_argument(
            f"--{name}",
            dest=f"{FLAG}conditions.{name}",
            default=argparse.SUPPRESS,
            metavar=condition.type.upper(),
            help=f"{condition.help} [default: see --conditions]".replace("%", "%%"),
        )
