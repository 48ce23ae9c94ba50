"""Several processes and machines: a run is shared out, killed, stopped, and spread over two machines with a cable.

    python -m stress.multi_node                    all of it but the cable; two machines need root
    python -m stress.multi_node sharing killing    parts of it
    python -m stress.multi_node cable              until a cut cable is noticed: a quarter of an hour

The machines are network namespaces, each with an address and a name of its own, joined by a cable that can be cut.
Their disk is shared, as machines that train together need it.
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

from .program import ROOT, SMALL_RUN, kill_all, program

STEPS, FIRST_SAVED = 36, 12
ROUNDING = 2e-3
"""Of the largest weight: what the order of a sum may change in so many steps. Measured: 3.4e-4.

Adam divides by the size of the gradient, so where that is nearly nothing the last digit decides a step's direction.
"""
DOUBLE_ROUNDING = 1e-10
"""The same in fp64. Measured: 5e-13, so that it is rounding and nothing else."""
MINUTE = 60
ONE_RUN = 300
"""Seconds after which a run that should end is given up."""

TRAIN = ROOT / "train.py"
WATCHED = Path(__file__).parent / "trace.py"
SMALL = [
    *("--config", "small.yaml", "--unet.dropout", 0, "--train.steps", STEPS),
    *("--train.checkpoint_every", FIRST_SAVED, "--train.preview_every", STEPS, "--train.output"),
]


class Broken(Exception):
    """What should hold does not."""


def demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Broken(otherwise)


# ── runs and what they leave ──────────────────────────────────────────────────────────────────────


def finished(process: subprocess.Popen, code: int = 0) -> str:
    """What a run said from start to end."""
    said = process.communicate(timeout=ONE_RUN)[0]
    demand(process.returncode == code, f"exit code {process.returncode} instead of {code}:\n{said[-3000:]}")
    return said


def watched(name: str, processes: int, *arguments, precision: str = "single") -> Path:
    """The folder of a whole run whose pictures were noted."""
    finished(program(WATCHED, f"{name}.notes", precision, *SMALL, name, *arguments, processes=processes))
    return Path(name)


def order(run: Path, parts: int = 2) -> dict[tuple[int, int], int]:
    """Which picture stood where in which step, of a run that was watched: {(step, position): digest}."""
    found = {}
    for notes in run.parent.glob(f"{run.name}.notes.*"):
        for line, text in enumerate(notes.read_text().splitlines()):
            start, pictures = json.loads(text)
            for offset, picture in enumerate(pictures):
                demand((line // parts, start + offset) not in found, "two processes share a position of a batch")
                found[line // parts, start + offset] = picture
    return found


def tensors(run: Path) -> dict:
    """The weights and all their averages at the end."""
    folder = run / "checkpoints" / f"step_{STEPS:08d}"
    return {
        f"{file.stem}:{name}": tensor
        for file in sorted(folder.glob("*.safetensors"))
        if file.stem != "optimizer"
        for name, tensor in load_file(file).items()
    }


def apart(a: Path, b: Path) -> float:
    """The largest difference between two runs' weights or averages, relative to the largest weight."""
    a, b = tensors(a), tensors(b)
    return max(float((a[name] - b[name]).abs().max()) for name in a) / max(float(t.abs().max()) for t in a.values())


def losses_apart(a: Path, b: Path) -> float:
    """The largest relative difference between the losses of two runs' logs."""
    a, b = ([json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()] for run in (a, b))
    return max(abs(x - y) / x for x, y in zip(a, b, strict=True))


def demand_same_bytes(a: Path, b: Path) -> None:
    """Two runs ended with the same checkpoint and published the same weights."""

    def written(run: Path) -> dict[str, bytes]:
        files = [*(run / "checkpoints" / f"step_{STEPS:08d}").iterdir(), *(run / "model").iterdir()]
        return {str(file.relative_to(run)): file.read_bytes() for file in files}

    one, other = written(a), written(b)
    differing = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    demand(not differing, f"{a} and {b} are {apart(a, b):.1e} apart, and not the same to the byte in {differing}")


def saved_step(run: Path) -> int:
    """The step of the newest checkpoint."""
    return max(int(folder.name.removeprefix("step_")) for folder in (run / "checkpoints").glob("step_*"))


def wait_for_checkpoint(run: Path, *processes: subprocess.Popen) -> None:
    """Until the run can be resumed."""
    deadline = time.monotonic() + ONE_RUN
    while not (run / "checkpoints" / f"step_{FIRST_SAVED:08d}").exists():
        for process in processes:
            demand(process.poll() is None, f"ended too early:\n{process.poll() is None or process.stdout.read()}")
        demand(time.monotonic() < deadline, f"{run}: no checkpoint")
        time.sleep(0.02)


def ended(process: subprocess.Popen, within: float = MINUTE) -> tuple[float, str]:
    """Seconds until all that was started with it has ended, and what it said."""
    began = time.monotonic()
    try:
        said = process.communicate(timeout=within)[0]          # its end means that nobody holds the pipe any more
    except subprocess.TimeoutExpired:
        kill_all(process, signal.SIGKILL)
        raise Broken(f"still there after {within:.0f} s:\n{process.communicate()[0][-3000:]}") from None
    return time.monotonic() - began, said


def last_words(said: str) -> str:
    """The first error that a run told, without the progress, the traceback and the source file around it."""
    lines = said.replace("\r", "\n").splitlines()
    told = [line for line in lines if "Error: " in line or "peer" in line]
    return re.sub(r"\[/\S+\.cc:\d+\] ", "", told[0])[:160] if told else "nothing"


# ── several processes ─────────────────────────────────────────────────────────────────────────────


def sharing() -> Iterator[str]:
    """1, 2 and 4 processes: the same pictures at the same places, the same weights but for rounding."""
    runs = {processes: watched(f"shared_{processes}", processes) for processes in (1, 2, 4)}
    for processes in (2, 4):
        demand(order(runs[1]) == order(runs[processes]), f"{processes} processes see other pictures than one")
        difference, losses = apart(runs[1], runs[processes]), losses_apart(runs[1], runs[processes])
        yield f"{processes} processes: the order of one; weights {difference:.1e}, losses {losses:.1e} apart"
        demand(difference < ROUNDING, "more than rounding")
    yield f"{len(order(runs[1]))} pictures in {STEPS} steps; all processes together have each once"

    doubles = [watched(f"double_{processes}", processes, precision="double") for processes in (1, 2, 4)]
    difference = max(apart(doubles[0], other) for other in doubles[1:])
    yield f"in double precision the weights of 1, 2 and 4 are at most {difference:.1e} apart: it is rounding"
    demand(difference < DOUBLE_ROUNDING, "more than rounding")

    one, two = (watched(f"dropout_{n}", n, "--unet.dropout", 0.1, precision="double") for n in (1, 2))
    demand(order(one) == order(two), "with dropout the order is another")
    yield f"with dropout the order is the same, the weights {apart(one, two):.1e} apart: each process draws its masks"


def kill_one(process: subprocess.Popen, rank: int) -> None:
    """SIGKILL to the process of this rank alone."""
    for child in psutil.Process(process.pid).children(recursive=True):
        if child.environ().get("RANK") == str(rank):
            child.kill()


def killing() -> Iterator[str]:
    """SIGKILL to one process of two: everything ends within a minute, and goes on with any number."""
    whole = {n: Path(f"whole_{n}") for n in (1, 2)}
    for processes, folder in whole.items():
        finished(program(TRAIN, *SMALL, folder, processes=processes))
    for rank in (0, 1):
        run = Path(f"killed_{rank}")
        process = program(TRAIN, *SMALL, run, processes=2)
        wait_for_checkpoint(run, process)
        kill_one(process, rank)
        seconds, said = ended(process)
        step = saved_step(run)
        yield f"rank {rank} killed: all ended after {seconds:.1f} s, code {process.returncode}, saved at step {step}"
        yield f"  and said: {last_words(said)}"
        demand(process.returncode != 0 and step < STEPS, "nothing was interrupted")
    for processes in (2, 1, 4):
        run = Path(f"resumed_{processes}")
        shutil.copytree("killed_1", run)
        finished(program(TRAIN, "--resume", run, processes=processes))
        difference = apart(whole[2], run)
        yield f"resumed with {processes}: {difference:.1e} from the run of two never stopped"
        demand(difference < ROUNDING, "more than rounding")
        if processes == 2:
            demand_same_bytes(whole[2], run)


def stopping() -> Iterator[str]:
    """SIGTERM to torchrun, which passes it on, and to its processes as well, as Slurm and systemd do: all save."""
    whole, run = Path("whole_stopping"), Path("stopped")
    finished(program(TRAIN, *SMALL, whole, processes=2))
    process = program(TRAIN, *SMALL, run, processes=2)
    wait_for_checkpoint(run, process)
    kill_all(process, signal.SIGTERM)
    seconds, said = ended(process)
    demand("saved at step" in said, f"it ended without saving: {last_words(said)}")
    yield f"all ended after {seconds:.1f} s, saved at step {saved_step(run)}"
    finished(program(TRAIN, "--resume", run, processes=2))
    demand_same_bytes(whole, run)
    yield "resumed: the run never stopped, to the byte"


# ── several machines ──────────────────────────────────────────────────────────────────────────────


class Machines:
    """Two machines on one disk: network namespaces, each with a name and an address that both know."""

    def __init__(self):
        self.spaces = [f"diffunet{os.getpid()}-{machine}" for machine in (0, 1)]
        self.plugs = [f"cable{os.getpid()}-{machine}"[-15:] for machine in (0, 1)]
        self.addresses = ["10.77.0.1", "10.77.0.2"]
        self.hosts = Path("hosts").absolute()
        names = [f"{address} machine{machine}" for machine, address in enumerate(self.addresses)]
        self.hosts.write_text("\n".join(["127.0.0.1 localhost", *names, ""]))

    def __enter__(self) -> "Machines":
        try:
            for space in self.spaces:
                _ip("netns", "add", space)
            (here, there), (plug, other) = self.spaces, self.plugs
            _ip("link", "add", plug, "netns", here, "type", "veth", "peer", "name", other, "netns", there)
            for space, plug, address in zip(self.spaces, self.plugs, self.addresses, strict=True):
                _ip("-n", space, "addr", "add", f"{address}/24", "dev", plug)
                _ip("-n", space, "link", "set", "lo", "up")
                _ip("-n", space, "link", "set", plug, "up")
        except (OSError, subprocess.CalledProcessError) as error:
            self.__exit__()
            raise Broken(f"two machines need network namespaces, and so Linux, iproute2 and root ({error})") from None
        return self

    def __exit__(self, *_) -> None:
        for machine, space in enumerate(self.spaces):
            if Path("/run/netns", space).exists():
                self.kill(machine)
                _ip("netns", "delete", space)

    def start(self, *arguments, folder: Path | None = None) -> list[subprocess.Popen]:
        """One process on each machine, in a working directory that is shared, or the machine's own in `folder`."""
        started = []
        for machine, space in enumerate(self.spaces):
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", 2, "--nproc_per_node", 1]
            torchrun += ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"{self.addresses[0]}:29400"]
            boot = f'mount --bind {self.hosts} /etc/hosts && hostname machine{machine} && exec "$@"'
            command = ["ip", "netns", "exec", space, "unshare", "--uts", "--mount", "sh", "-c", boot, "sh"]
            started.append(
                subprocess.Popen(
                    [str(word) for word in (*command, *torchrun, *arguments)],
                    env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
                    cwd=folder / f"machine{machine}" if folder else None,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        return started

    def processes(self, machine: int) -> list[psutil.Process]:
        return [psutil.Process(int(pid)) for pid in _ip("netns", "pids", self.spaces[machine]).split()]

    def kill(self, machine: int) -> None:
        """SIGKILL to all that runs on this machine."""
        for process in self.processes(machine):
            process.kill()

    def cable(self, state: str) -> None:
        """Cuts it ("down") or mends it ("up")."""
        _ip("-n", self.spaces[1], "link", "set", self.plugs[1], state)


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@contextmanager
def both(machines: Machines, *arguments, **options) -> Iterator[list[subprocess.Popen]]:
    """A run on both machines; nothing of it is left afterwards, whatever happened."""
    processes = machines.start(*arguments, **options)
    try:
        yield processes
    finally:
        for machine, process in enumerate(processes):
            machines.kill(machine)
            process.communicate()


def both_ended(processes: list[subprocess.Popen], within: float = MINUTE) -> list[float]:
    """Seconds after which each machine's part of a run has ended."""
    began, seconds = time.monotonic(), {}
    while len(seconds) < len(processes):
        for machine, process in enumerate(processes):
            if process.poll() is not None:
                seconds.setdefault(machine, time.monotonic() - began)
        demand(time.monotonic() - began < within, f"of two machines only {list(seconds)} ended within {within:.0f} s")
        time.sleep(0.05)
    return [seconds[machine] for machine in range(len(processes))]


def finish_together(machines: Machines, *arguments, **options) -> None:
    with both(machines, *arguments, **options) as processes:
        for process in processes:
            finished(process)


def interrupted(machines: Machines, run: Path, interrupt, within: float = MINUTE) -> str:
    """Starts a run on both machines, breaks something, and tells how both ended."""
    with both(machines, TRAIN, *SMALL, run) as processes:
        wait_for_checkpoint(run, *processes)
        interrupt(processes)
        seconds = both_ended(processes, within)
        codes = [process.returncode for process in processes]
    demand(saved_step(run) < STEPS, "it was too late to interrupt anything")
    return f"ended after {seconds[0]:.1f} and {seconds[1]:.1f} s, exit codes {codes}, saved at step {saved_step(run)}"


def together() -> Iterator[str]:
    """Two machines are two processes, to the byte: uninterrupted, told to stop, and after all of one was killed."""
    whole = Path("whole_together")
    finished(program(TRAIN, *SMALL, whole, processes=2))
    with Machines() as machines:
        finish_together(machines, TRAIN, *SMALL, "together")
        demand_same_bytes(whole, Path("together"))
        yield "trained together: two processes on one machine, to the byte"
        for machine in (0, 1):
            for name, interrupt in (
                ("SIGTERM to torchrun", lambda processes, m=machine: processes[m].terminate()),
                ("SIGKILL to all", lambda processes, m=machine: machines.kill(m)),
            ):
                run = Path(f"{name.split()[0]}_{machine}")
                told = interrupted(machines, run, interrupt)
                yield f"{name} on machine {machine}: {told}"
                finish_together(machines, TRAIN, "--resume", run)
                demand_same_bytes(whole, run)
        yield "resumed together after each of these: the run never stopped, to the byte"
        yield from own_disks(machines, whole)


def own_disks(machines: Machines, whole: Path) -> Iterator[str]:
    """Without a shared disk: the run is machine 0's alone."""
    folder = Path("disks")
    for machine in (0, 1):
        (folder / f"machine{machine}").mkdir(parents=True)
        shutil.copy("small.yaml", folder / f"machine{machine}")
    finish_together(machines, TRAIN, *SMALL, "run", folder=folder)
    demand_same_bytes(whole, folder / "machine0" / "run")
    left = [file for file in (folder / "machine1" / "run").rglob("*") if file.is_file()]
    yield f"each machine with a disk of its own: the same run on machine 0, {len(left)} files of it on machine 1"


def cable() -> Iterator[str]:
    """The cable is cut: nobody closes a connection, so only waiting tells."""
    with Machines() as machines:
        told = interrupted(machines, Path("cut"), lambda processes: machines.cable("down"), within=45 * MINUTE)
        yield f"cable cut: {told}"
        machines.cable("up")
        finish_together(machines, TRAIN, "--resume", "cut")
        yield "resumed together over the mended cable"


# ── all of it ─────────────────────────────────────────────────────────────────────────────────────

PARTS = {"sharing": sharing, "killing": killing, "stopping": stopping, "together": together, "cable": cable}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} [default: all but cable]")
    parts = parser.parse_args(argv).parts or [part for part in PARTS if part != "cable"]
    if unknown := set(parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(unknown)}")
    broken, before = 0, Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("small.yaml").write_text(SMALL_RUN)
        for part in parts:
            began = time.monotonic()
            print(f"{part}: {PARTS[part].__doc__}", flush=True)
            try:
                for line in PARTS[part]():
                    print(f"  {line}", flush=True)
            except (Broken, subprocess.TimeoutExpired) as error:
                broken += 1
                print(f"  BROKEN: {error}", flush=True)
            print(f"  ({(time.monotonic() - began) / 60:.1f} minutes)", flush=True)
        os.chdir(before)
    print("all held" if not broken else f"{broken} of {len(parts)} parts broken")
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
