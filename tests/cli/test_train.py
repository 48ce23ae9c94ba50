"""Stopping, going on, and what may and may not change meanwhile."""

import json
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from helpers import checkpoint, mistake, run, train_small, write_image

from diffunet.runs import run as run_folder
from diffunet.cli import main as commands
from diffunet.runs.run import Run
from diffunet.training.log import read_log
from diffunet.training.checkpoint import list_checkpoints
from stress import crash
from stress.program import ROOT, program

WEIGHTS = Path("run/model/diffusion_pytorch_model.safetensors")


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_run_survives_being_killed_in_a_save_and_in_the_rotation(tmp_path):
    """With dropout, flips and gradient accumulation: the same bytes as never killed. `trials/crash.py` kills longer."""
    survived = crash.survive(tmp_path, kills=2)
    assert survived["kills"] == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_first_and_says_so(small, number):
    endless = ["--train.steps", "100000", "--train.checkpoint_every", "100000", "--train.preview_every", "100000"]
    process = program(ROOT / "train.py", "--config", "small.yaml", *endless)
    wait_for(Path("run/log.jsonl"), process)
    process.send_signal(number)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + number
    assert f"{number.name}: saving a checkpoint" in said
    assert "--resume run goes on" in said
    saved = list(Path("run/checkpoints").iterdir())
    assert len(saved) == 1
    step = json.loads((saved[0] / "state.json").read_text())["step"]
    assert f"saved at step {step}" in said


# ── what may change ───────────────────────────────────────────────────────────────────────────────


def test_longer_is_the_same_run_and_other_changes_are_another(small, capsys):
    train_small("--train.preview_every", "50", "--train.lr_schedule", "linear")
    line = mistake(capsys, commands.train, "--resume", "run", "--train.steps", "8")
    assert line == "--train.steps: 8, and run/checkpoints/step_00000012 is further already"
    for flag, value in (("--unet.dropout", "0.5"), ("--train.seed", "1"), ("--data.random_flip", "false")):
        line = mistake(capsys, commands.train, "--resume", "run", flag, value)
        assert line.startswith(f"{flag}: was ")
        assert line.endswith("or --force it")
    assert run(commands.train, "--resume", "run", "--train.steps", "16") == 0
    said = capsys.readouterr().out
    assert "train.steps: 12 -> 16" in said
    assert "learning rate: 0 -> 0.00025, as linear over the new length" in said
    assert Path("run/checkpoints/step_00000016").exists()


def test_another_run_can_be_forced_where_the_weights_fit(small, capsys):
    train_small("--train.steps", "4")
    forced = ["--resume", "run", "--force", "--train.steps", "6"]
    assert run(commands.train, *forced, "--unet.dropout", "0.5", "--train.seed", "1") == 0
    said = capsys.readouterr().out
    assert "unet.dropout: 0.1 -> 0.5" in said
    assert "train.seed: 0 -> 1" in said
    line = mistake(capsys, commands.train, *forced, "--train.steps", "8", "--unet.modulation", "shift")
    assert "model.safetensors: unet.body.down" in line
    assert "the weights do not match the configuration" in line


def test_other_data_are_refused_wherever_they_lie(small, capsys):
    for number in range(6):
        write_image(Path("photos") / f"{number}.png", "L", (8, 8), seed=number)
    train_small("--data.path", "photos", "--train.steps", "2", "--train.preview_every", "50")
    shutil.move("photos", "moved")
    assert run(commands.train, "--resume", "run", "--data.path", "moved", "--train.steps", "3") == 0
    write_image(Path("moved/3.png"), "L", (8, 8), seed=77)
    assert run(commands.train, "--resume", "run", "--train.steps", "4") == 2
    said = capsys.readouterr().err
    assert "was trained on 6 others; a run is resumed on its own data, or with --force" in said


def test_a_preview_before_the_first_snapshot_is_drawn_unguided(small, capsys):
    guided = ["--sample.guide", "0.5", "--sample.guidance_scale", "2", "--train.snapshots", "1"]
    train_small(*guided, "--train.steps", "4", "--train.preview_every", "2")
    assert "no preview" not in capsys.readouterr().out
    assert Path("run/samples/step_00000002.png").exists()


# ── where to go on ────────────────────────────────────────────────────────────────────────────────


def test_the_same_command_begins_and_goes_on(small, capsys):
    again = ["--config", "small.yaml", "--train.checkpoint_every", "2", "--resume"]
    assert run(commands.train, *again, "--train.steps", "4") == 0
    assert run(commands.train, *again, "--train.steps", "6", "--conditions.classes", "auto") == 0
    said = capsys.readouterr().out
    assert "train.steps: 4 -> 6" in said
    assert "run: going on from step 4" in said
    assert "has a config of its own" in mistake(capsys, commands.train, *again, "run")


def test_damage_is_named_and_the_run_goes_on_from_the_checkpoint_before(small, capsys):
    train_small()
    whole = checkpoint(Path("run"))
    damaged = Path("run/checkpoints/step_00000012/ema.safetensors")
    data = bytearray(damaged.read_bytes())
    data[-5] ^= 4
    damaged.write_bytes(data)
    line = mistake(capsys, commands.train, "--resume", "run")
    assert line == (
        "run/checkpoints/step_00000012/ema.safetensors: damaged (its SHA-256 is not the one in SHA256SUMS); "
        "--resume run/checkpoints/step_00000008 goes on from the one before"
    )
    assert run(commands.train, "--resume", "run/checkpoints/step_00000008") == 0
    assert checkpoint(Path("run")) == whole


def test_going_back_gives_up_whole_checkpoints_only_when_told_to(small, capsys):
    train_small("--train.preview_every", "50")
    back = ["--resume", "run/checkpoints/step_00000008"]
    line = mistake(capsys, commands.train, *back)
    assert "step_00000012 is newer than step_00000008 and whole; --overwrite gives it up" in line
    assert "--overwrite: gives up what is newer" in mistake(capsys, commands.train, "--resume", "run", "--overwrite")
    near = mistake(capsys, commands.train, "--resume", "run/checkpoints/step_0000008")
    assert "no such checkpoint; did you mean step_00000008?" in near
    assert "is further already" in mistake(capsys, commands.train, *back, "--overwrite", "--train.steps", "7")
    assert Path("run/checkpoints/step_00000012").exists()  # a mistake costs nothing
    assert run(commands.train, *back, "--overwrite", "--train.steps", "9") == 0
    assert [path.name for path in list_checkpoints(Path("run"))] == ["step_00000008", "step_00000009"]
    assert [line["step"] for line in read_log(Path("run/log.jsonl"))] == [2, 4, 6, 8, 9]


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(small, capsys):
    train_small("--train.steps", "4")
    whole = checkpoint(Path("run"), 4)
    shutil.rmtree("run/checkpoints")
    line = mistake(capsys, commands.train, "--resume", "run")                  # weights, but nothing to go on from
    assert line == "run: no checkpoint to resume from"
    WEIGHTS.unlink()
    assert run(commands.train, "--resume", "run") == 0
    assert "going on from step 0" in capsys.readouterr().out
    assert checkpoint(Path("run"), 4) == whole
    assert [line["step"] for line in read_log(Path("run/log.jsonl"))] == [2, 4]


def test_published_weights_are_those_of_the_checkpoint_again(small, capsys):
    """A kill may come between the two; and damaged ones are written anew."""
    train_small("--train.steps", "4")
    whole = WEIGHTS.read_bytes()
    WEIGHTS.write_bytes(whole[:-3] + b"???")
    line = mistake(capsys, commands.sample, "run")
    assert "diffusion_pytorch_model.safetensors: damaged (the SHA-256 of its tensors is not the one" in line
    assert "--resume RUN writes it anew" in line
    assert run(commands.train, "--resume", "run") == 0
    assert capsys.readouterr().out.strip() == "run: complete at step 4; --train.steps NUMBER makes it longer"
    assert WEIGHTS.read_bytes() == whole


# ── formats, and others at work ───────────────────────────────────────────────────────────────────


def test_a_run_of_another_format_is_read_or_named(small, capsys):
    train_small("--train.steps", "2")
    version = Path("run/run.json")
    assert json.loads(version.read_text()) == {"format": 1}
    version.write_text('{"format": 2}')
    for command in (commands.sample, commands.evaluate):
        assert "run: format 2, and this diffunet reads up to 1; upgrade it" in mistake(capsys, command, "run")
    for damage in ("{", "[]", '{"format": "1"}', "{}"):
        version.write_text(damage)
        assert "run/run.json: damaged" in mistake(capsys, commands.sample, "run")
    version.unlink()
    assert run(commands.sample, "run", "--num_images", "1", "--steps", "2") == 0
    assert "written before run folders had a format" in mistake(capsys, commands.train, "--resume", "run")
    config = Path("run/config.yaml")
    config.write_text(config.read_text().replace("middle_attention:", "attention_in_the_middle:"))
    line = mistake(capsys, commands.sample, "run")
    assert "unet.attention_in_the_middle: unknown key" in line
    assert line.endswith("older than the formats of run folders, and this diffunet cannot read it")


def test_one_training_in_a_folder_at_a_time(small, capsys, monkeypatch):
    monkeypatch.setattr(run_folder, "PATIENCE", 0.1)
    with Run("run").alone():
        line = mistake(capsys, commands.train, "--config", "small.yaml")
        assert line == "run: another process is training here; stop that first"
    train_small("--train.steps", "2")


def test_a_folder_that_cannot_be_written_to_is_named(small, capsys):
    train_small("--train.steps", "2")
    if subprocess.run(["mount", "--bind", "-o", "ro", "run", "run"], capture_output=True).returncode:
        pytest.skip("a folder can be made read-only for root by root only")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", "run"], check=True)
        for command, argv in ((commands.train, ["--resume", "run", "--train.steps", "3"]), (commands.sample, ["run"])):
            line = mistake(capsys, command, *argv)
            assert re.search(r"run(/\S+: Read-only file system$|: cannot be written to)", line)
    finally:
        subprocess.run(["umount", "run"], check=True)


def test_a_run_is_never_overwritten_without_being_told(small, capsys):
    train_small("--train.steps", "2")
    before = checkpoint(Path("run"), 2)
    line = mistake(capsys, commands.train, "--config", "small.yaml")
    assert "already holds a run; --resume run goes on with it" in line
    assert "complete at step 2" not in line
    line = mistake(capsys, commands.train, "--config", "small.yaml", "--overwrite", "--data.path", "./nowhere")
    assert "does not exist" in line
    assert checkpoint(Path("run"), 2) == before
    train_small("--train.steps", "3", "--overwrite")
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["step_00000003"]


