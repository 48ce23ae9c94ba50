"""Bad input by the thousand: each case must end in time, and each error message must name the file or key at fault.

    python -m stress.inputs --cases 1000 --seed 0

One process imports everything and forks a child for each case, in a folder of its own. The folders of failures are
kept, with the program's output.
"""

import argparse
import contextlib
import gc
import importlib
import io
import json
import os
import re
import resource
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import datasets
import diffusers
import huggingface_hub
import torch
from PIL import Image
from tqdm import tqdm

from .cases import TINY, Case
from .fuzz_conditions import MIXED, condition_case, write_photos
from .fuzz_configs import command_case, config_case
from .fuzz_datasets import image_folder_case, parquet_case
from .fuzz_runs import run_case

KINDS = ("configs", "command lines", "image folders", "parquet files", "run folders", "conditions")
SECONDS = 60
"""After which a case counts as hung."""
MEMORY = 4 * 2**30
"""Bytes that a case may allocate on top of the shared memory: a decompression bomb must not hurt the machine."""
IMPORTED = (
    *("diffunet.cli.main", "diffunet.evaluation.report", "diffunet.evaluation.monitor", "diffunet.interop.diffusers"),
    *("diffunet.models.inspection", "diffunet.models.tiling", "diffunet.training.trainer", "datasets"),
    *("accelerate.tracking", "einops._torch_specific", "tokenizers"),
    *("matplotlib.backends.backend_agg", "matplotlib.figure", "pyarrow.dataset", "pyarrow.json", "pyarrow.parquet"),
    *("sklearn.datasets.data", "sklearn.svm", "torch.utils.flop_counter", "torchvision.io", "torchvision.utils"),
    "torchvision.transforms.v2.functional",
)
FROM_DIFFUSERS = (
    *("DDPMPipeline", "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"),
    *("EDMEulerScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "UNet2DModel"),
    "UniPCMultistepScheduler",
)
BAR = re.compile(r"\d+%\||\d+it \[")
STDOUT, STDERR, CASE = ".out", ".err", ".case.json"


@dataclass(frozen=True)
class Outcome:
    """The result of a case."""

    kind: str
    index: int
    case: Case
    folder: Path
    code: int | None
    seconds: float
    faults: list[str]


def run_cases(cases: int, seed: int, folder: Path, kinds: Sequence[str] = KINDS) -> Iterator[Outcome]:
    """Yield the outcomes of cases of these kinds in turn, run in folders of `folder`; those that pass are removed."""
    _warm_up()
    run = _real_run(folder)
    for index in range(cases):
        kind = kinds[index % len(kinds)]
        outcome = _try(kind, index, f"{seed} {kind} {index}", folder / f"{seed}_{index:05d}", run)
        if not outcome.faults:
            shutil.rmtree(outcome.folder)
        yield outcome
    gc.unfreeze()


def _warm_up() -> None:
    """Import everything that a command may need. Nothing is computed: threads do not survive a fork."""
    for name in IMPORTED:
        importlib.import_module(name)
    for name in FROM_DIFFUSERS:  # diffusers imports lazily
        getattr(diffusers, name)
    Image.init()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # or reference counting would copy all of this into each child


def _real_run(folder: Path) -> Path:
    """Train a small run, sample from it and export it, for the cases to damage; another one with all conditions."""
    home = folder / "real"
    home.mkdir(parents=True)
    (home / "tiny.yaml").write_text(TINY)
    mixed = home / "mixed"
    write_photos(mixed / "photos")
    (mixed / "mixed.yaml").write_text(MIXED)

    def make() -> None:
        for argv in (["train", "--config", "tiny.yaml"], ["sample", "run"], ["export", "run", "run/exported"]):
            with contextlib.suppress(SystemExit):
                _command(argv)

    code, _ = _in_a_child(make, home)
    if not code:
        code, _ = _in_a_child(lambda: _command(["train", "--config", "mixed.yaml", "--train.steps", "1"]), mixed)
    if code or not (home / "run" / "exported").is_dir() or not (mixed / "run" / "examples").is_dir():
        raise RuntimeError(f"no run to damage: {(home / STDERR).read_text()}")
    for name in (STDOUT, STDERR):
        (home / name).unlink()
    return home / "run"


def _try(kind: str, index: int, seed: str, folder: Path, run: Path) -> Outcome:
    """Make a case and run its command, both in a child."""
    folder.mkdir()

    def make_and_run() -> None:
        rng = Random(seed)
        case = {
            "configs": lambda: config_case(rng, folder),
            "command lines": lambda: command_case(rng, folder, run),
            "image folders": lambda: image_folder_case(rng, folder),
            "parquet files": lambda: parquet_case(rng, folder),
            "run folders": lambda: run_case(rng, folder, run),
            "conditions": lambda: condition_case(rng, folder, run.parent / "mixed"),
        }[kind]()
        (folder / CASE).write_text(json.dumps(asdict(case)))
        _command(list(case.argv))

    code, seconds = _in_a_child(make_and_run, folder)
    if not (folder / CASE).exists():
        raise RuntimeError(f"case {seed}: not made\n{(folder / STDERR).read_text()}")
    values = json.loads((folder / CASE).read_text())
    case = Case(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
    stdout, stderr = ((folder / name).read_text(encoding="utf-8", errors="replace") for name in (STDOUT, STDERR))
    return Outcome(kind, index, case, folder, code, seconds, list(_faults(case, code, stdout, stderr)))


def _faults(case: Case, code: int | None, stdout: str, stderr: str) -> Iterator[str]:
    """Yield what is wrong with the program's answer."""
    both = stdout + stderr
    if code is None:
        yield f"not ended after {SECONDS} seconds"
        return
    if "Traceback (most recent call last)" in both:
        yield f"a traceback: {both.strip().splitlines()[-1]}"
        return
    if code not in (0, 2):
        yield f"exit code {code}"
    if noise := re.search(r"^.*(Warning: |site-packages/).*$", both, re.MULTILINE):
        yield f"a library's warning: {noise[0]}"
    lines = [line for line in re.split(r"[\r\n]+", stderr) if line.strip() and not BAR.search(line)]
    if code == 2:
        if case.expected == "accepted":
            yield f"refused: {lines}"
        if not lines:
            yield "refused without a message"
        for line in lines:
            if not any(name in line for name in case.names):
                yield f"message names neither file nor key: {line}"
    if code == 0:
        if case.expected == "refused":
            yield "accepted"
        yield from (f"not printed: {word}" for word in case.prints if word not in both)


def _command(argv: list[str]) -> None:
    from matplotlib.figure import Figure

    from diffunet.cli.main import main

    Figure.savefig = lambda self, file, **_: Path(file).write_text("curves")  # a second each, and not under test
    main(argv)


def _in_a_child(work, folder: Path) -> tuple[int | None, float]:
    """Call `work` in a child with this working directory. Return its exit code, None if it hung, and seconds."""
    started = time.monotonic()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        _become(folder)
        code = 70
        try:
            work()
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
        except BaseException:
            traceback.print_exc()
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)
    try:
        while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() - started > SECONDS:
                os.killpg(child, signal.SIGKILL)
            time.sleep(0.005)
    finally:
        with contextlib.suppress(ProcessLookupError):  # including orphaned workers
            os.killpg(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    seconds = time.monotonic() - started
    return (None if seconds > SECONDS else code), seconds


def _become(folder: Path) -> None:
    """Turn this process into one started in `folder`, with limited memory and its output in files."""
    os.setsid()
    os.chdir(folder)
    shared = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (shared + MEMORY, shared + MEMORY))
    for number, name, errors in ((1, STDOUT, "strict"), (2, STDERR, "backslashreplace")):
        os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
        stream = io.TextIOWrapper(os.fdopen(number, "wb"), encoding="utf-8", errors=errors, line_buffering=True)
        setattr(sys, {1: "stdout", 2: "stderr"}[number], stream)
    os.environ["OMP_NUM_THREADS"] = "1"
    datasets.config.HF_DATASETS_CACHE = folder / ".cache"
    datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    args = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a CUDA context does not survive a fork
    folder = Path(tempfile.mkdtemp(prefix="diffunet_inputs_"))
    outcomes: dict[str, list[Outcome]] = defaultdict(list)
    found = run_cases(args.cases, args.seed, folder, args.kinds)
    for outcome in tqdm(found, total=args.cases, unit="case", dynamic_ncols=True):
        outcomes[outcome.kind].append(outcome)
        for fault in outcome.faults:
            line = shlex.join(["diffunet", *outcome.case.argv])
            tqdm.write(f"{outcome.folder} ({outcome.kind}): {outcome.case.about}\n    {line[:200]}\n    {fault[:300]}")
    print(f"{'':16}{'cases':>7}{'refused':>9}{'accepted':>10}{'failed':>8}{'slowest':>10}{'all':>8}")
    for kind, tried in outcomes.items():
        codes = [outcome.code for outcome in tried]
        seconds = [outcome.seconds for outcome in tried]
        failed = sum(bool(outcome.faults) for outcome in tried)
        print(
            f"{kind:16}{len(tried):7}{codes.count(2):9}{codes.count(0):10}{failed:8}"
            f"{max(seconds):8.1f} s{sum(seconds):6.0f} s"
        )
    failed = any(outcome.faults for tried in outcomes.values() for outcome in tried)
    if not failed:
        shutil.rmtree(folder)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
