"""Shared by all benchmarks: the machine, statistics, and raw rows as JSON lines in benchmarks/results/."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def add_record_flag(parser: argparse.ArgumentParser) -> None:
    """Add --record to the flags of a benchmark."""
    parser.add_argument("--record", action="store_true", help="append the raw rows to benchmarks/results/*.jsonl")


def append_rows(name: str, rows: Iterable[dict]) -> None:
    """Append raw rows to results/NAME.jsonl, each with the date, machine, commit and command that it came from."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    about = {"date": date.today().isoformat(), "machine": machine(), "commit": commit(), "command": " ".join(words)}
    with open(RESULTS / f"{name}.jsonl", "a", encoding="utf-8") as file:
        file.writelines(json.dumps(about | row) + "\n" for row in rows)


def run_command(words: list[str]) -> None:
    """Print a command of diffunet, and run it in this process. Raise SystemExit if it fails."""
    from diffunet.cli.main import main

    print("diffunet", *words, flush=True)
    try:
        main(words)
    except SystemExit as end:
        if end.code:
            raise


def commit() -> str:
    """Return the commit of this checkout, marked -dirty where files have been changed."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    return subprocess.run(command, cwd=RESULTS.parent, capture_output=True, text=True, check=False).stdout.strip()


def machine() -> str:
    """Return the device and the version of torch."""
    import torch

    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        device = f"{os.cpu_count()} CPU cores ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})"
    return f"{device}, torch {torch.__version__}"


def mean_std(values: list[float]) -> str:
    """Return mean ± standard deviation."""
    spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3g}{spread}"


def table(heads: list[str], rows: Iterable[list[str]]) -> str:
    """Return a table in Markdown."""
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [heads, ["---"] * len(heads), *rows])


def score_table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Return scores of a record of `diffunet evaluate` ± their errors, and those of all of its references."""
    errors = ["" if row["error"] is None else f" ± {row['error']:.2g}" for row in scores.values()]
    values = ["" if row["value"] is None else f"{row['value']:.4g}" for row in scores.values()]
    found = [["network", *(f"{value}{error}" for value, error in zip(values, errors, strict=True))]]
    for name in dict.fromkeys(name for row in scores.values() for name in row["references"]):
        values = [row["references"].get(name) for row in scores.values()]
        found.append([name, *("" if value is None else f"{value:.4g}" for value in values)])
    return table(["", *scores], found)
