"""Work shared by processes: each part is done once, also when processes are killed or join late."""

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from diffunet.core.errors import UserError
from diffunet.core.shared_work import UNFINISHED, SharedWork, job_in
from diffunet.core.storage import atomic_write

PARTS = [f"{number}.txt" for number in range(6)]
WORKER = """
import sys, time
from pathlib import Path
from diffunet.core.shared_work import SharedWork
work = SharedWork(Path("out/.unfinished"), "numbers", [f"{number}.txt" for number in range(6)])
print("ready", flush=True)
sys.stdin.readline()
for part in work.claim():
    print(part.name, flush=True)
    time.sleep(float(sys.argv[1]))
    part.write_text("done")
with work.closing() as last:
    if last:
        Path("out/all.txt").write_text(" ".join(part.read_text() for part in work.parts))
        print("last", flush=True)
"""
RACE = """
import os, shutil, time
from pathlib import Path
from diffunet.core.shared_work import SharedWork
from diffunet.core.storage import atomic_write

def finish(number):
    result = Path(f"{number}.txt")
    while not result.exists():
        work = SharedWork(Path(f"{number}.unfinished"), str(number), ["a", "b", "c"])
        for part in work.claim():
            if result.exists():
                return shutil.rmtree(work.folder, ignore_errors=True)
            with atomic_write(part) as partial:
                partial.write_text(part.name)
        with work.closing() as last:
            if last:
                with atomic_write(result) as partial:
                    partial.write_text("".join(part.read_text() for part in work.parts))

begin, children = time.time() + 0.2, []
for _ in range(3):
    child = os.fork()
    if not child:
        break
    children.append(child)
time.sleep(max(0, begin - time.time()))
for number in range(150):
    finish(number)
if len(children) == 3:
    raise SystemExit(any(os.waitpid(child, 0)[1] for child in children))
"""


def worker(seconds: float) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(seconds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def start(process: subprocess.Popen) -> None:
    process.stdin.write("\n")
    process.stdin.flush()


def test_one_process_does_every_part_and_leaves_no_trace(in_a_new_folder):
    work = SharedWork(Path("out") / UNFINISHED, "numbers", PARTS)
    done = []
    for part in work.claim():
        done.append(part.name)
        part.write_text("done")
    assert done == PARTS
    with work.closing() as last:
        assert last
        assert [part.read_text() for part in work.parts] == ["done"] * 6
    assert list(Path("out").iterdir()) == []
    assert work.missing == []
    assert list(work.claim()) == []
    with work.closing() as last:
        assert not last
    assert list(Path("out").iterdir()) == []


@pytest.mark.slow
def test_processes_share_the_parts_and_one_of_them_assembles(in_a_new_folder):
    processes = [worker(0.2) for _ in range(2)]
    for process in processes:
        start(process)
    said = [process.communicate(timeout=60)[0].split() for process in processes]
    done = Counter(word for words in said for word in words)
    assert done == Counter([*PARTS, "last"])
    assert min(map(len, said)) > 1, "one process did everything"
    assert Path("out/all.txt").read_text() == " ".join(["done"] * 6)
    assert [path.name for path in Path("out").iterdir()] == ["all.txt"]


@pytest.mark.slow
def test_what_a_killed_process_left_is_done_by_another_at_once(in_a_new_folder):
    killed, other = worker(60), worker(0)
    start(killed)
    assert killed.stdout.readline() == "0.txt\n"
    start(other)
    killed.kill()
    killed.wait()
    said = other.communicate(timeout=60)[0].split()
    if "0.txt" not in said:  # it was through before the kill
        said += start_again()
    assert sorted(said) == [*PARTS, "last"]
    assert Path("out/all.txt").exists()


def start_again() -> list[str]:
    process = worker(0)
    start(process)
    return process.communicate(timeout=60)[0].split()


@pytest.mark.slow
def test_a_part_in_other_hands_is_left_alone(in_a_new_folder):
    slow = worker(60)
    start(slow)
    assert slow.stdout.readline() == "0.txt\n"
    work = SharedWork(Path("out") / UNFINISHED, "numbers", PARTS)
    started = time.monotonic()
    for part in work.claim():
        part.write_text("done")
    with work.closing() as last:
        assert not last
    assert time.monotonic() - started < 30, "it waited for the other"
    assert [part.name for part in work.missing] == ["0.txt"]
    slow.kill()
    slow.wait()


@pytest.mark.slow
def test_processes_that_begin_while_others_finish_do_not_fail(in_a_new_folder):
    """One may arrive between the last part of another and the removal of the folder."""
    subprocess.run([sys.executable, "-c", RACE], check=True, timeout=100)
    assert {path.name for path in Path().iterdir()} == {f"{number}.txt" for number in range(150)}
    assert {path.read_text() for path in Path().iterdir()} == {"abc"}


def test_the_last_part_may_be_assembled_before_its_folder_is_synced(in_a_new_folder, monkeypatch):
    replace = Path.replace

    def replace_and_assemble(file: Path, part: Path) -> None:
        replace(file, part)
        part.parent.rename("assembled")  # as another process does that finds all parts

    monkeypatch.setattr(Path, "replace", replace_and_assemble)
    with atomic_write(Path("out/0.txt")) as file:
        file.write_text("done")
    assert Path("assembled/0.txt").read_text() == "done"


def test_only_the_same_job_is_resumed(in_a_new_folder):
    folder = Path("out") / UNFINISHED
    assert job_in(folder) is None
    SharedWork(folder, "numbers", PARTS)
    assert job_in(folder) == "numbers"
    SharedWork(folder, "numbers", PARTS)
    with pytest.raises(UserError, match="^out/.unfinished: holds the beginning of other work; remove it, or choose"):
        SharedWork(folder, "letters", PARTS)


def test_parts_stay_if_they_cannot_be_assembled(in_a_new_folder):
    work = SharedWork(Path("out") / UNFINISHED, "numbers", PARTS[:1])
    for part in work.claim():
        part.write_text("done")
    with pytest.raises(OSError, match="disk full"), work.closing():
        raise OSError("disk full")
    assert work.parts[0].exists()
    assert job_in(work.folder) == "numbers"
    with work.closing() as last:
        assert last
