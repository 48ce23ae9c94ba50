"""The command of the page."""

import argparse
import signal
from pathlib import Path

from ..core.errors import UserError
from .console import check_single_process, user_friendly
from .flags import parse_flags

PORTS = range(1, 2**16)


@user_friendly
def app(argv: list[str]) -> int:
    """Show a page to sample, edit and predict images in a browser, and to follow trainings."""
    check_single_process("diffunet app")
    parser = argparse.ArgumentParser(prog="diffunet app", description=app.__doc__)
    parser.add_argument(
        "source", metavar="RUN", nargs="?", default="runs", help="a run, or a folder of runs [default: runs]"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at; 0.0.0.0: all, open to the network [default: 127.0.0.1]",
    )
    parser.add_argument("--port", default="7860", help="[default: 7860]")
    args, _ = parse_flags(parser, argv)
    if not args.port.isdecimal() or int(args.port) not in PORTS:
        raise UserError(f"--port: from 1 to {PORTS[-1]} expected (got {args.port})")
    from ..web.app import serve

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that its files are removed then too
    serve(Path(args.source), args.host, int(args.port))
    return 0
