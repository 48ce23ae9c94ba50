"""Kills a training again and again, wherever it happens to be: `python -m stress.crash --kills 100`.

In the end the run has to be, byte for byte, the one that was never killed; and whenever a kill comes after the
first checkpoint, the folder has to hold a complete one.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

from tqdm import tqdm

from diffunet.training.log import read_log
from diffunet.training.checkpoint import is_intact, list_checkpoints
from diffunet.core.storage import sha256_of_file

from .program import ROOT, SMALL_RUN, kill_all, program

MOMENTS = ("in a save", "in the rotation", "in the publishing", "anywhere")
"""Where a kill is aimed at."""
OF_SPEED = {"images_per_second", "minutes_left", "preview_share", "health_seconds"}
LONGEST = 1800
"""Seconds that a run may take from its start to its end, or to a kill."""
STEPS = 12
"""For each kill, so that the run outlasts them: aimed at one of the next saves, a kill costs some."""


def survive(folder: Path, kills: int, seed: int = 0, processes: int = 1, watch=iter) -> dict:
    """Trains without a stop and with so many kills, and compares. AssertionError where something was lost."""
    (folder / "small.yaml").write_text(SMALL_RUN)
    steps = STEPS * kills
    options = ["--train.steps", steps, "--train.checkpoint_every", 2, "--train.preview_every", 50]
    begin = [ROOT / "train.py", "--config", folder / "small.yaml", *options, "--train.output"]
    started, whole = time.monotonic(), program(*begin, folder / "whole", processes=processes)
    while whole.poll() is None and not list_checkpoints(folder / "whole"):
        time.sleep(0.01)
    start_up = time.monotonic() - started
    _finish(whole)
    run, chance, met = folder / "killed", random.Random(seed), Counter()
    again = [ROOT / "train.py", "--config", folder / "small.yaml", *options, "--train.output", run, "--resume"]
    for number in watch(range(kills)):
        before = list_checkpoints(run)
        process = program(*again, processes=processes)
        aim = MOMENTS[number % len(MOMENTS)]
        met[_kill(process, run, aim, chance, start_up)] += 1
        assert not before or any(map(is_intact, list_checkpoints(run))), f"kill {number}: no complete checkpoint is left"
    _finish(program(*again, processes=processes))
    differing = differences(folder / "whole", run)
    assert not differing, f"not the run that was never killed: {', '.join(differing)}"
    return {"kills": kills, **met, "steps": steps, "processes": processes, "bytes compared": _bytes(run)}


def _kill(process: subprocess.Popen, run: Path, aim: str, chance: random.Random, start_up: float) -> str:
    """Kills the process and all it started at a random moment of the aimed kind; where that was."""
    checkpoints = run / "checkpoints"
    marks = {
        "in a save": lambda: list(checkpoints.glob(".*.partial")),
        "in the rotation": lambda: list(checkpoints.glob(".*.removed")),
        "in the publishing": lambda: list((run / "model").glob(".partial.*")),
    }
    deadline = time.monotonic() + LONGEST
    if aim == "anywhere":
        ends = time.monotonic() + chance.uniform(0, 1.5 * start_up)
        while process.poll() is None and time.monotonic() < ends:
            time.sleep(0.001)
    else:
        passes = chance.randrange(3)                           # which of the first saves to kill it in
        while process.poll() is None and time.monotonic() < deadline:
            if marks[aim]():
                if passes == 0:
                    time.sleep(chance.uniform(0, 0.01))
                    break
                passes -= 1
                while marks[aim]() and process.poll() is None:
                    pass
    assert process.poll() is None, f"ended before it was killed: {process.stdout.read()}"
    kill_all(process, signal.SIGKILL)
    process.communicate(timeout=60)
    return next((moment for moment, there in marks.items() if there()), "elsewhere")


def _finish(process: subprocess.Popen) -> None:
    said = process.communicate(timeout=LONGEST)[0]
    assert process.returncode == 0, said


def differences(whole: Path, killed: Path) -> list[str]:
    """The files of a run that differ, apart from speeds and from what tells its name."""
    names = {file.relative_to(folder) for folder in (whole, killed) for file in _lasting(folder)}
    differing = [
        str(name)
        for name in sorted(names)
        if not all((folder / name).is_file() for folder in (whole, killed))
        or sha256_of_file(whole / name) != sha256_of_file(killed / name)
    ]
    logs = [_log_without_speed(folder) for folder in (whole, killed)]
    return differing + ["log.jsonl"] * (logs[0] != logs[1])


def _log_without_speed(run: Path) -> list[dict]:
    lines = read_log(run / "log.jsonl")
    return [{name: value for name, value in line.items() if name not in OF_SPEED} for line in lines]


def _lasting(run: Path) -> list[Path]:
    """What has to be equal: checkpoints, averages, published weights, previews."""
    kinds = ("checkpoints/*/*", "averages/*", "model/*", "samples/*")
    return [file for kind in kinds for file in run.glob(kind) if not file.name.startswith(".")]


def _bytes(run: Path) -> int:
    return sum(file.stat().st_size for file in _lasting(run))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        watch = partial(tqdm, desc="kill", unit="kill", dynamic_ncols=True)
        found = survive(Path(folder), asked.kills, asked.seed, asked.processes, watch)
    print(", ".join(f"{name}: {value:,}" for name, value in found.items()), f"{time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
