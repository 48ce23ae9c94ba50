"""Kill a training again and again at random moments: `python -m stress.crash --kills 100`.

In the end the run must be identical, byte for byte, to one that was never killed; and after the first checkpoint
every kill must leave a complete one.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from diffunet.core.storage import sha256_of_file
from diffunet.training.checkpoint import is_intact, list_checkpoints
from diffunet.training.log import read_log

from .program import ROOT, SMALL_RUN, kill_all, program

MOMENTS = ("while saving", "while deleting", "while publishing", "anywhere")
"""The targets of the kills, in turn."""
TIMING_KEYS = {"images_per_second", "minutes_left", "preview_share", "monitor_seconds"}
TIMEOUT = 1800
"""Seconds from the start of a process to its end, or to its kill."""
STEPS = 12
"""Training steps per kill, so that the run outlasts them: each kill waits for one of the next saves."""


def survive(
    folder: Path, kills: int, seed: int = 0, processes: int = 1, watch=iter, flags: Sequence[object] = ()
) -> dict:
    """Train without and with `kills` kills and compare the runs. Raise AssertionError if anything was lost."""
    (folder / "small.yaml").write_text(SMALL_RUN)
    steps = STEPS * kills
    options = ["--train.steps", steps, "--train.checkpoint_every", 2, "--train.preview_every", 50, *flags]
    begin = [ROOT / "train.py", "--config", folder / "small.yaml", *options, "--train.output"]
    started, process = time.monotonic(), program(*begin, folder / "whole", processes=processes)
    while process.poll() is None and not list_checkpoints(folder / "whole"):
        time.sleep(0.01)
    start_up = time.monotonic() - started
    _finish(process)
    run, rng, moments = folder / "killed", random.Random(seed), Counter()
    again = [ROOT / "train.py", "--config", folder / "small.yaml", *options, "--train.output", run, "--resume"]
    for number in watch(range(kills)):
        before = list_checkpoints(run)
        process = program(*again, processes=processes)
        target = MOMENTS[number % len(MOMENTS)]
        moments[_kill(process, run, target, rng, start_up)] += 1
        intact = any(map(is_intact, list_checkpoints(run)))
        assert intact or not before, f"kill {number}: no complete checkpoint is left"
    _finish(program(*again, processes=processes))
    differing = differences(folder / "whole", run)
    assert not differing, f"differs from the uninterrupted run: {', '.join(differing)}"
    return {"kills": kills, **moments, "steps": steps, "processes": processes, "bytes compared": _bytes(run)}


def _kill(process: subprocess.Popen, run: Path, target: str, rng: random.Random, start_up: float) -> str:
    """Kill the process and its children at a random moment of the target kind; return what it was doing."""
    checkpoints = run / "checkpoints"
    marks = {
        "while saving": lambda: list(checkpoints.glob(".*.partial")),
        "while deleting": lambda: list(checkpoints.glob(".*.removed")),
        "while publishing": lambda: list((run / "model").glob(".partial.*")),
    }
    deadline = time.monotonic() + TIMEOUT
    if target == "anywhere":
        ends = time.monotonic() + rng.uniform(0, 1.5 * start_up)
        while process.poll() is None and time.monotonic() < ends:
            time.sleep(0.001)
    else:
        passes = rng.randrange(3)  # kill during one of the first saves
        while process.poll() is None and time.monotonic() < deadline:
            if marks[target]():
                if passes == 0:
                    time.sleep(rng.uniform(0, 0.01))
                    break
                passes -= 1
                while marks[target]() and process.poll() is None:
                    pass
    assert process.poll() is None, f"ended before the kill: {process.stdout.read()}"
    kill_all(process, signal.SIGKILL)
    process.communicate(timeout=60)
    return next((moment for moment, there in marks.items() if there()), "elsewhere")


def _finish(process: subprocess.Popen) -> None:
    output = process.communicate(timeout=TIMEOUT)[0]
    assert process.returncode == 0, output


def differences(whole: Path, killed: Path) -> list[str]:
    """Return the files in which two runs differ, except for timings in the log and the config with its output path."""
    names = {file.relative_to(folder) for folder in (whole, killed) for file in _compared_files(folder)}
    differing = [
        str(name)
        for name in sorted(names)
        if not all((folder / name).is_file() for folder in (whole, killed))
        or sha256_of_file(whole / name) != sha256_of_file(killed / name)
    ]
    logs = [_log_without_timing(folder) for folder in (whole, killed)]
    return differing + ["log.jsonl"] * (logs[0] != logs[1])


def _log_without_timing(run: Path) -> list[dict]:
    lines = read_log(run / "log.jsonl")
    return [{name: value for name, value in line.items() if name not in TIMING_KEYS} for line in lines]


def _compared_files(run: Path) -> list[Path]:
    """Return the files that must be equal: checkpoints, EMA snapshots, published weights, previews."""
    kinds = ("checkpoints/*/*", "ema_snapshots/*", "model/*", "samples/*")
    return [file for kind in kinds for file in run.glob(kind) if not file.name.startswith(".")]


def _bytes(run: Path) -> int:
    return sum(file.stat().st_size for file in _compared_files(run))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        watch = partial(tqdm, desc="kill", unit="kill", dynamic_ncols=True)
        counts = survive(Path(folder), args.kills, args.seed, args.processes, watch)
    print(", ".join(f"{name}: {value:,}" for name, value in counts.items()), f"{time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
