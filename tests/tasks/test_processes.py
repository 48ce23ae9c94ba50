"""Two real processes under torchrun: which checkpoint they resume, the classifier, errors, and Ctrl-C at the start."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import checkpoint, mistake, run, train_small

from diffunet.cli.main import COMMANDS
from diffunet.runs.run import Run
from stress.program import ROOT, program

TIMEOUT = 180
RESUME = """
import os
import sys
from pathlib import Path

import diffunet.runs.run as runs
from diffunet.__main__ import main
from diffunet.tasks import fit
from diffunet.training.trainer import Trainer

runs.LOCK_SECONDS = 120
build, train, rank = fit.make_trainer, Trainer.fit, os.environ["RANK"]


def built(*arguments):
    trainer = build(*arguments)
    Path(f"built_{rank}").touch()
    return trainer


def trained(trainer):
    Path(f"resumed_{rank}").write_text(str(trainer.step))
    return train(trainer)


fit.make_trainer, Trainer.fit = built, trained
main("train")
"""
"""train.py with a longer wait for the lock, which notes when each rank waits for it, and from which step it resumes."""


def wait_for(condition, process) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def finish(process) -> str:
    output, _ = process.communicate(timeout=TIMEOUT)
    return output


@pytest.mark.slow
def test_all_processes_resume_from_one_checkpoint_though_a_newer_one_appears(small):
    """A training that still ends holds the lock, and saves once more while two processes are waiting."""
    train_small("--train.checkpoint_every", "4", "--train.keep_checkpoints", "9", "--train.preview_every", "50")
    shutil.copytree("run", "straight")
    Path("resume.py").write_text(RESUME)
    later = Path("run/checkpoints/step_00000012")
    shutil.move(later, "later")
    more = ["--train.steps", "16"]
    with Run("run").lock():
        process = program("resume.py", "--resume", "run", *more, processes=2)
        wait_for(lambda: Path("built_0").exists() and Path("built_1").exists(), process)
        time.sleep(3)  # a rank that does not wait chooses in this time
        assert not list(Path().glob("resumed_*"))
        Path("later").rename(later)
    output = finish(process)
    assert process.returncode == 0, output
    assert [Path(f"resumed_{rank}").read_text() for rank in (0, 1)] == ["12", "12"]
    assert "run: resuming from step 12" in output
    straight = program(ROOT / "train.py", "--resume", "straight", *more, processes=2)
    output = finish(straight)
    assert straight.returncode == 0, output
    assert checkpoint(Path("run"), 16) == checkpoint(Path("straight"), 16)


@pytest.mark.slow
def test_a_damaged_checkpoint_ends_all_processes_with_one_line(small):
    train_small("--train.steps", "4")
    damaged = Path("run/checkpoints/step_00000004/model.safetensors")
    damaged.write_bytes(damaged.read_bytes()[:-5] + b"?????")
    process = program(ROOT / "train.py", "--resume", "run", "--train.steps", "6", processes=2)
    output = finish(process)
    assert process.returncode == 1
    assert "model.safetensors: damaged (its SHA-256 is not the one in SHA256SUMS); no earlier" in output
    assert 'Traceback (most recent call last):\n  File "' + str(ROOT / "train.py") not in output


@pytest.mark.slow
def test_two_processes_train_a_classifier(in_a_new_folder):
    argv = ["--data.path", "digits", "--train.output", "classifier", "--train.steps", "2", "--train.batch_size", "8"]
    process = program("-m", "diffunet", "classifier", *argv, "--blocks", "[1, 1, 1, 1]", processes=2)
    output = finish(process)
    assert process.returncode == 0, output
    assert output.count("on 89 images not trained on") == 1
    assert Path("classifier/classifier.safetensors").exists()
    assert Path("classifier/checkpoints/step_00000002").exists()


@pytest.mark.slow
def test_the_error_of_a_launched_training_comes_last(small):
    """After torchrun's own report, as its root cause, and once."""
    mistake = "train.batch_size: 7 cannot be shared equally by 2 process(es) × 2 accumulation step(s); try 8"
    process = program("-m", "diffunet", "train", "--config", "small.yaml", "--train.batch_size", "7", processes=2)
    output = finish(process)
    assert process.returncode == 1
    assert "Root Cause" in output
    assert mistake in output[output.index("Root Cause") :]
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("command", "argv"),
    [
        ("evaluate", ["folder", "--data.path", "digits", "--output", "out"]),
        ("ema", ["run", "0.1"]),
        ("export", ["run", "out"]),
        ("import", ["a.pt", "b"]),
    ],
)
def test_commands_of_one_process_refuse_a_launcher(in_a_new_folder, capsys, monkeypatch, command, argv):
    Path("folder").mkdir()
    monkeypatch.setenv("WORLD_SIZE", "2")
    line = mistake(capsys, command, *argv)
    assert "runs in one process (got 2 from a launcher); start it with python" in line
    assert command in line
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert "launcher" not in mistake(capsys, command, *argv)


@pytest.mark.slow
def test_a_finished_process_of_several_exits_without_destructors(in_a_new_folder):
    """They abort about one training in fourteen, when everything is saved already."""
    lines = ["import atexit", "from diffunet.cli.console import user_friendly"]
    lines += ["atexit.register(print, 'destroyed')", "user_friendly(lambda argv: print('done') or 3)([])"]
    for processes, expected in (("1", "done\ndestroyed\n"), ("2", "done\n")):
        process = subprocess.run(
            [sys.executable, "-c", "\n".join(lines)],
            env=os.environ | {"WORLD_SIZE": processes, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert (process.returncode, process.stdout) == (3, expected)


# ── entry points ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["train.py"], ["sample.py", "run"], ["-m", "diffunet", "train"]], ids=" ".join)
def test_interrupting_the_imports_is_one_line(in_a_new_folder, arguments):
    """Sent as soon as torch's libraries are being loaded."""
    arguments = [ROOT / word if word.endswith(".py") else word for word in arguments]

    def not_ignored():
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # background jobs of a shell inherit that it is ignored

    process = program(*arguments, preexec_fn=not_ignored)
    maps = Path(f"/proc/{process.pid}/maps")
    if maps.exists():
        wait_for(lambda: "/torch/lib/" in maps.read_text(), process)
    else:
        time.sleep(0.3)
    os.kill(process.pid, signal.SIGINT)
    output = finish(process)
    assert output.strip() == "interrupted"
    assert process.returncode == 130


@pytest.mark.slow
def test_the_package_is_a_command(in_a_new_folder):
    process = program("-m", "diffunet", "--help")
    output = finish(process)
    assert process.returncode == 0
    assert output.startswith("usage: diffunet COMMAND")
    for command in COMMANDS:
        assert f"\n  {command} " in output
    assert run("--help") == 0
