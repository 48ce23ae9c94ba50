"""Training in several processes and on two machines: processes are killed and stopped, the network is cut.

    python -m stress.multi_node                    all parts except cable; two machines need root
    python -m stress.multi_node sharing killing    some parts
    python -m stress.multi_node cable              until a cut cable is noticed: a quarter of an hour

The machines (machines.py) share a disk, as machines that train together must.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from safetensors.torch import load_file

from .machines import CheckFailed, Machines
from .program import ROOT, SMALL_RUN, kill_all, program

STEPS, FIRST_SAVED = 36, 12
ROUNDING = 2e-3
"""Largest difference between weights, relative to the largest weight, that the order of sums may cause in STEPS steps.

Measured: 3.4e-4. Adam divides by the gradient's size, so near zero the last digit decides a step's direction.
"""
DOUBLE_ROUNDING = 1e-10
"""The same in fp64. Measured: 5e-13, so the difference is nothing but rounding."""
MINUTE = 60
TIMEOUT = 300
"""Seconds after which a run that should end has failed."""

TRAIN = ROOT / "train.py"
TRACE = Path(__file__).parent / "trace.py"
SMALL = [
    *("--config", "small.yaml", "--unet.dropout", 0, "--train.steps", STEPS),
    *("--train.checkpoint_every", FIRST_SAVED, "--train.preview_every", STEPS, "--train.output"),
]


def require(holds: bool, otherwise: str) -> None:
    """Raise CheckFailed with a message unless `holds`."""
    if not holds:
        raise CheckFailed(otherwise)


# ── runs and their files ──────────────────────────────────────────────────────────────────────────


def output_of(process: subprocess.Popen, code: int = 0) -> str:
    """Wait for the end of a process and return its output; its exit code must be `code`."""
    output = process.communicate(timeout=TIMEOUT)[0]
    require(process.returncode == code, f"exit code {process.returncode} instead of {code}:\n{output[-3000:]}")
    return output


def traced_run(name: str, processes: int, *arguments, precision: str = "single") -> Path:
    """Run a training whose images are traced, and return its folder."""
    output_of(program(TRACE, f"{name}.trace", precision, *SMALL, name, *arguments, processes=processes))
    return Path(name)


def image_order(run: Path, micro_batches: int = 2) -> dict[tuple[int, int], int]:
    """Return {(step, position): checksum} of the images of a traced run."""
    found = {}
    for trace in run.parent.glob(f"{run.name}.trace.*"):
        for line, text in enumerate(trace.read_text().splitlines()):
            start, checksums = json.loads(text)
            for offset, checksum in enumerate(checksums):
                place = line // micro_batches, start + offset
                require(place not in found, "two processes share a position of a batch")
                found[place] = checksum
    return found


def tensors(run: Path) -> dict:
    """Return the weights and EMA weights at the end of a run."""
    folder = run / "checkpoints" / f"step_{STEPS:08d}"
    return {
        f"{file.stem}:{name}": tensor
        for file in sorted(folder.glob("*.safetensors"))
        if file.stem != "optimizer"
        for name, tensor in load_file(file).items()
    }


def max_difference(a: Path, b: Path) -> float:
    """Return the largest difference between two runs' weights or EMA weights, relative to the largest weight."""
    a, b = tensors(a), tensors(b)
    return max(float((a[name] - b[name]).abs().max()) for name in a) / max(float(t.abs().max()) for t in a.values())


def max_loss_difference(a: Path, b: Path) -> float:
    """Return the largest relative difference between the losses in two runs' logs."""
    a, b = ([json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()] for run in (a, b))
    return max(abs(x - y) / x for x, y in zip(a, b, strict=True))


def require_same_bytes(a: Path, b: Path) -> None:
    """Raise CheckFailed unless two runs have the same last checkpoint and published weights."""

    def written(run: Path) -> dict[str, bytes]:
        files = [*(run / "checkpoints" / f"step_{STEPS:08d}").iterdir(), *(run / "model").iterdir()]
        return {str(file.relative_to(run)): file.read_bytes() for file in files}

    one, other = written(a), written(b)
    differing = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    require(not differing, f"{a} and {b} differ by {max_difference(a, b):.1e}, in {differing}")


def saved_step(run: Path) -> int:
    """Return the step of the newest checkpoint."""
    return max(int(folder.name.removeprefix("step_")) for folder in (run / "checkpoints").glob("step_*"))


def wait_for_checkpoint(run: Path, *processes: subprocess.Popen) -> None:
    """Wait for the first checkpoint of a run."""
    deadline = time.monotonic() + TIMEOUT
    while not (run / "checkpoints" / f"step_{FIRST_SAVED:08d}").exists():
        for process in processes:
            require(process.poll() is None, f"ended too early:\n{process.poll() is None or process.stdout.read()}")
        require(time.monotonic() < deadline, f"{run}: no checkpoint")
        time.sleep(0.02)


def wait_for_end(process: subprocess.Popen, within: float = MINUTE) -> tuple[float, str]:
    """Return the seconds until a process and all its children have ended, and their output."""
    began = time.monotonic()
    try:
        output = process.communicate(timeout=within)[0]  # returns when no child holds the pipe
    except subprocess.TimeoutExpired:
        kill_all(process, signal.SIGKILL)
        raise CheckFailed(f"still running after {within:.0f} s:\n{process.communicate()[0][-3000:]}") from None
    return time.monotonic() - began, output


def first_error(output: str) -> str:
    """Return the first error message in a run's output."""
    lines = output.replace("\r", "\n").splitlines()
    errors = [line for line in lines if "Error: " in line or "peer" in line]
    return re.sub(r"\[/\S+\.cc:\d+\] ", "", errors[0])[:160] if errors else "nothing"


# ── several processes ─────────────────────────────────────────────────────────────────────────────


def sharing() -> Iterator[str]:
    """1, 2 and 4 processes: the same images at the same positions, and the same weights except for rounding."""
    runs = {processes: traced_run(f"shared_{processes}", processes) for processes in (1, 2, 4)}
    for processes in (2, 4):
        same = image_order(runs[1]) == image_order(runs[processes])
        require(same, f"{processes} processes train on other images than one")
        difference, losses = max_difference(runs[1], runs[processes]), max_loss_difference(runs[1], runs[processes])
        yield f"{processes} processes: the order of one; weights differ by {difference:.1e}, losses by {losses:.1e}"
        require(difference < ROUNDING, "more than rounding")
    yield f"{len(image_order(runs[1]))} images in {STEPS} steps; all processes together train on each once"

    doubles = [traced_run(f"double_{processes}", processes, precision="double") for processes in (1, 2, 4)]
    difference = max(max_difference(doubles[0], other) for other in doubles[1:])
    yield f"in double precision the weights of 1, 2 and 4 differ by at most {difference:.1e}: it is rounding"
    require(difference < DOUBLE_ROUNDING, "more than rounding")

    one, two = (traced_run(f"dropout_{n}", n, "--unet.dropout", 0.1, precision="double") for n in (1, 2))
    require(image_order(one) == image_order(two), "with dropout the order differs")
    difference = max_difference(one, two)
    yield f"with dropout the order is the same; weights differ by {difference:.1e}, as masks are drawn per process"


def kill_one(process: subprocess.Popen, rank: int) -> None:
    """Send SIGKILL to the process of this rank alone."""
    for child in psutil.Process(process.pid).children(recursive=True):
        if child.environ().get("RANK") == str(rank):
            child.kill()


def killing() -> Iterator[str]:
    """SIGKILL to one process of two: the other ends within a minute, and any number of processes can resume."""
    whole = {n: Path(f"whole_{n}") for n in (1, 2)}
    for processes, folder in whole.items():
        output_of(program(TRAIN, *SMALL, folder, processes=processes))
    for rank in (0, 1):
        run = Path(f"killed_{rank}")
        process = program(TRAIN, *SMALL, run, processes=2)
        wait_for_checkpoint(run, process)
        kill_one(process, rank)
        seconds, output = wait_for_end(process)
        step = saved_step(run)
        yield f"rank {rank} killed: all ended after {seconds:.1f} s, code {process.returncode}, saved at step {step}"
        yield f"  first error: {first_error(output)}"
        require(process.returncode != 0 and step < STEPS, "nothing was interrupted")
    for processes in (2, 1, 4):
        run = Path(f"resumed_{processes}")
        shutil.copytree("killed_1", run)
        output_of(program(TRAIN, "--resume", run, processes=processes))
        difference = max_difference(whole[2], run)
        yield f"resumed with {processes}: differs by {difference:.1e} from the uninterrupted run of two"
        require(difference < ROUNDING, "more than rounding")
        if processes == 2:
            require_same_bytes(whole[2], run)


def stopping() -> Iterator[str]:
    """SIGTERM to torchrun and, as from Slurm and systemd, to all its processes: the run is saved."""
    whole, run = Path("whole_stopping"), Path("stopped")
    output_of(program(TRAIN, *SMALL, whole, processes=2))
    process = program(TRAIN, *SMALL, run, processes=2)
    wait_for_checkpoint(run, process)
    kill_all(process, signal.SIGTERM)
    seconds, output = wait_for_end(process)
    require("saved at step" in output, f"ended without saving: {first_error(output)}")
    yield f"all ended after {seconds:.1f} s, saved at step {saved_step(run)}"
    output_of(program(TRAIN, "--resume", run, processes=2))
    require_same_bytes(whole, run)
    yield "resumed: identical to the uninterrupted run, byte for byte"


# ── several machines ──────────────────────────────────────────────────────────────────────────────


@contextmanager
def both(machines: Machines, *arguments, **options) -> Iterator[list[subprocess.Popen]]:
    """Start a run on both machines; kill what is left of it at the end."""
    processes = machines.start(*arguments, **options)
    try:
        yield processes
    finally:
        for machine, process in enumerate(processes):
            machines.kill(machine)
            process.communicate()


def both_ended(processes: list[subprocess.Popen], within: float = MINUTE) -> list[float]:
    """Return the seconds after which each machine's processes have ended."""
    began, seconds = time.monotonic(), {}
    while len(seconds) < len(processes):
        for machine, process in enumerate(processes):
            if process.poll() is not None:
                seconds.setdefault(machine, time.monotonic() - began)
        require(time.monotonic() - began < within, f"of two machines only {list(seconds)} ended within {within:.0f} s")
        time.sleep(0.05)
    return [seconds[machine] for machine in range(len(processes))]


def finish_together(machines: Machines, *arguments, **options) -> None:
    with both(machines, *arguments, **options) as processes:
        for process in processes:
            output_of(process)


def interrupted(machines: Machines, run: Path, interrupt, within: float = MINUTE) -> str:
    """Start a run on both machines, interrupt it, and return how both ended."""
    with both(machines, TRAIN, *SMALL, run) as processes:
        wait_for_checkpoint(run, *processes)
        interrupt(processes)
        seconds = both_ended(processes, within)
        codes = [process.returncode for process in processes]
    require(saved_step(run) < STEPS, "interrupted too late")
    return f"ended after {seconds[0]:.1f} and {seconds[1]:.1f} s, exit codes {codes}, saved at step {saved_step(run)}"


def together() -> Iterator[str]:
    """Two machines equal two processes, byte for byte: uninterrupted, stopped, and after one machine was killed."""
    whole = Path("whole_together")
    output_of(program(TRAIN, *SMALL, whole, processes=2))
    with Machines() as machines:
        finish_together(machines, TRAIN, *SMALL, "together")
        require_same_bytes(whole, Path("together"))
        yield "trained together: identical to two processes on one machine, byte for byte"
        for machine in (0, 1):
            for name, interrupt in (
                ("SIGTERM to torchrun", lambda processes, m=machine: processes[m].terminate()),
                ("SIGKILL to all", lambda processes, m=machine: machines.kill(m)),
            ):
                run = Path(f"{name.split()[0]}_{machine}")
                outcome = interrupted(machines, run, interrupt)
                yield f"{name} on machine {machine}: {outcome}"
                finish_together(machines, TRAIN, "--resume", run)
                require_same_bytes(whole, run)
        yield "resumed together after each of these: identical to the uninterrupted run, byte for byte"
        yield from own_disks(machines, whole)


def own_disks(machines: Machines, whole: Path) -> Iterator[str]:
    """Without a shared disk, only machine 0 has the run."""
    folder = Path("disks")
    for machine in (0, 1):
        (folder / f"machine{machine}").mkdir(parents=True)
        shutil.copy("small.yaml", folder / f"machine{machine}")
    finish_together(machines, TRAIN, *SMALL, "run", folder=folder)
    require_same_bytes(whole, folder / "machine0" / "run")
    left = [file for file in (folder / "machine1" / "run").rglob("*") if file.is_file()]
    yield f"separate disks: the same run on machine 0, {len(left)} files of it on machine 1"


def cable() -> Iterator[str]:
    """The cable is cut: no connection is closed, so only a timeout notices."""
    with Machines() as machines:
        outcome = interrupted(machines, Path("cut"), lambda processes: machines.set_link("down"), within=45 * MINUTE)
        yield f"cable cut: {outcome}"
        machines.set_link("up")
        finish_together(machines, TRAIN, "--resume", "cut")
        yield "resumed together over the repaired cable"


# ── the command ───────────────────────────────────────────────────────────────────────────────────

PARTS = {"sharing": sharing, "killing": killing, "stopping": stopping, "together": together, "cable": cable}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} [default: all except cable]")
    parts = parser.parse_args(argv).parts or [part for part in PARTS if part != "cable"]
    if unknown := set(parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(unknown)}")
    failed, before = 0, Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("small.yaml").write_text(SMALL_RUN)
        for part in parts:
            began = time.monotonic()
            print(f"{part}: {PARTS[part].__doc__}", flush=True)
            try:
                for line in PARTS[part]():
                    print(f"  {line}", flush=True)
            except (CheckFailed, subprocess.TimeoutExpired) as error:
                failed += 1
                print(f"  FAILED: {error}", flush=True)
            print(f"  ({(time.monotonic() - began) / 60:.1f} minutes)", flush=True)
        os.chdir(before)
    print("all passed" if not failed else f"{failed} of {len(parts)} parts failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
