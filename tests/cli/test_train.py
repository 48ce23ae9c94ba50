"""Stopping and resuming runs, and what may change meanwhile."""

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
from diffunet.runs.run import Run
from diffunet.training.checkpoint import list_checkpoints
from diffunet.training.log import read_log
from stress import crash
from stress.program import ROOT, program

WEIGHTS = Path("run/model/diffusion_pytorch_model.safetensors")


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_and_resumed_run_equals_uninterrupted_run(tmp_path):
    """Killed amid a save and a removal, with dropout, flips and accumulation. stress/crash.py kills more often."""
    result = crash.survive(tmp_path, kills=2)
    assert result["kills"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_a_checkpoint_before_the_end(small, number):
    endless = ["--train.steps", "100000", "--train.checkpoint_every", "100000", "--train.preview_every", "100000"]
    process = program(ROOT / "train.py", "--config", "small.yaml", *endless)
    wait_for(Path("run/log.jsonl"), process)
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + number
    assert f"{number.name}: saving a checkpoint" in output
    assert "python train.py --resume run continues" in output
    saved = list(Path("run/checkpoints").iterdir())
    assert len(saved) == 1
    step = json.loads((saved[0] / "state.json").read_text())["step"]
    assert f"saved at step {step}" in output


# ── what may change ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_run_can_be_lengthened_but_not_changed_into_another(small, capsys):
    train_small("--train.preview_every", "50", "--train.lr_schedule", "linear")
    line = mistake(capsys, "train", "--resume", "run", "--train.steps", "8")
    assert line == "--train.steps 8: the run is already at step 12; pass a larger value"
    for flag, value in (("--unet.dropout", "0.5"), ("--train.seed", "1"), ("--data.random_flip", "false")):
        line = mistake(capsys, "train", "--resume", "run", flag, value)
        assert line.startswith(f"{flag}: cannot change from ")
        assert line.endswith("in a resumed run; start another, or --force")
    assert run("train", "--resume", "run", "--train.steps", "16") == 0
    output = capsys.readouterr().out
    assert "train.steps: 12 -> 16" in output
    assert "learning rate: 0 -> 0.00025, by the linear schedule over the new length" in output
    assert Path("run/checkpoints/step_00000016").exists()


@pytest.mark.slow
def test_force_allows_changes_where_the_weights_match(small, capsys):
    train_small("--train.steps", "4")
    forced = ["--resume", "run", "--force", "--train.steps", "6"]
    assert run("train", *forced, "--unet.dropout", "0.5", "--train.seed", "1") == 0
    output = capsys.readouterr().out
    assert "unet.dropout: 0.1 -> 0.5" in output
    assert "train.seed: 0 -> 1" in output
    line = mistake(capsys, "train", *forced, "--train.steps", "8", "--unet.modulation", "shift")
    assert "model.safetensors: unet.body.down" in line
    assert "the weights do not match the configuration" in line


@pytest.mark.slow
def test_data_may_move_but_not_change(small, capsys):
    for number in range(6):
        write_image(Path("photos") / f"{number}.png", "L", (8, 8), seed=number)
    train_small("--data.path", "photos", "--train.steps", "2", "--train.preview_every", "50")
    shutil.move("photos", "moved")
    assert run("train", "--resume", "run", "--data.path", "moved", "--train.steps", "3") == 0
    write_image(Path("moved/3.png"), "L", (8, 8), seed=77)
    assert run("train", "--resume", "run", "--train.steps", "4") == 2
    output = capsys.readouterr().err
    assert "has 6); use the original data or pass --force" in output


@pytest.mark.slow
def test_a_preview_before_the_first_snapshot_is_unguided(small, capsys):
    guided = ["--sample.guide", "0.5", "--sample.guidance_scale", "2", "--train.snapshots", "1"]
    train_small(*guided, "--train.steps", "4", "--train.preview_every", "2")
    assert "skipped preview" not in capsys.readouterr().out
    assert Path("run/samples/step_00000002.png").exists()


# ── where to resume ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_the_same_command_starts_and_resumes(small, capsys):
    again = ["--config", "small.yaml", "--train.checkpoint_every", "2", "--resume"]
    assert run("train", *again, "--train.steps", "4") == 0
    assert run("train", *again, "--train.steps", "6", "--conditions.label.num_classes", "null") == 0
    output = capsys.readouterr().out
    assert "train.steps: 4 -> 6" in output
    assert "run: resuming from step 4" in output
    assert "--resume: run has its own config; leave out --config" in mistake(capsys, "train", *again, "run")


@pytest.mark.slow
def test_error_names_the_damaged_file_and_the_checkpoint_before_can_be_resumed(small, capsys):
    train_small()
    expected = checkpoint(Path("run"))
    damaged = Path("run/checkpoints/step_00000012/ema.safetensors")
    data = bytearray(damaged.read_bytes())
    data[-5] ^= 4
    damaged.write_bytes(data)
    line = mistake(capsys, "train", "--resume", "run")
    assert line == (
        "run/checkpoints/step_00000012/ema.safetensors: damaged (its SHA-256 is not the one in SHA256SUMS); "
        "use --resume run/checkpoints/step_00000008, the one before"
    )
    assert run("train", "--resume", "run/checkpoints/step_00000008") == 0
    assert checkpoint(Path("run")) == expected


@pytest.mark.slow
def test_resuming_an_earlier_checkpoint_needs_overwrite_to_discard_later_ones(small, capsys):
    train_small("--train.preview_every", "50")
    back = ["--resume", "run/checkpoints/step_00000008"]
    line = mistake(capsys, "train", *back)
    assert "step_00000012 is newer than step_00000008 and intact; --overwrite discards it" in line
    assert "--overwrite: discards later checkpoints; name one" in mistake(
        capsys, "train", "--resume", "run", "--overwrite"
    )
    near = mistake(capsys, "train", "--resume", "run/checkpoints/step_0000008")
    assert "no such checkpoint; did you mean step_00000008?" in near
    assert "--train.steps 7: the run is already at step 8" in mistake(
        capsys, "train", *back, "--overwrite", "--train.steps", "7"
    )
    assert Path("run/checkpoints/step_00000012").exists()  # a mistake costs nothing
    assert run("train", *back, "--overwrite", "--train.steps", "9") == 0
    assert [path.name for path in list_checkpoints(Path("run"))] == ["step_00000008", "step_00000009"]
    assert [line["step"] for line in read_log(Path("run/log.jsonl"))] == [2, 4, 6, 8, 9]


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_starts_again(small, capsys):
    train_small("--train.steps", "4")
    expected = checkpoint(Path("run"), 4)
    shutil.rmtree("run/checkpoints")
    line = mistake(capsys, "train", "--resume", "run")  # weights, but no checkpoint
    assert line == "run: no checkpoint to resume from"
    WEIGHTS.unlink()
    assert run("train", "--resume", "run") == 0
    assert "resuming from step 0" in capsys.readouterr().out
    assert checkpoint(Path("run"), 4) == expected
    assert [line["step"] for line in read_log(Path("run/log.jsonl"))] == [2, 4]


@pytest.mark.slow
def test_resuming_publishes_the_weights_of_the_checkpoint_again(small, capsys):
    """A kill may come between checkpoint and publication, and damaged weights are written again."""
    train_small("--train.steps", "4")
    expected = WEIGHTS.read_bytes()
    WEIGHTS.write_bytes(expected[:-3] + b"???")
    line = mistake(capsys, "sample", "run")
    assert "diffusion_pytorch_model.safetensors: damaged (the SHA-256 of its tensors is not the one" in line
    assert "python train.py --resume RUN writes it again" in line
    assert run("train", "--resume", "run") == 0
    assert capsys.readouterr().out.strip() == "run: complete at step 4; a larger --train.steps continues it"
    assert WEIGHTS.read_bytes() == expected


# ── formats, locks, permissions ───────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_older_formats_are_read_and_newer_ones_refused(small, capsys):
    train_small("--train.steps", "2")
    version = Path("run/run.json")
    assert json.loads(version.read_text()) == {"format": 2, "task": "generation"}
    version.write_text('{"format": 3}')
    for command in ("sample", "evaluate"):
        assert "run: format 3, but this diffunet reads up to 2; upgrade it" in mistake(capsys, command, "run")
    for damage in ("{", "[]", '{"format": "1"}', "{}", '{"format": 2, "task": 3}'):
        version.write_text(damage)
        assert "run/run.json: damaged" in mistake(capsys, "sample", "run")
    version.unlink()
    assert run("sample", "run", "--num_images", "1", "--steps", "2") == 0
    assert "older than run formats; it can be sampled and evaluated, but not resumed" in mistake(
        capsys, "train", "--resume", "run"
    )
    config = Path("run/config.yaml")
    config.write_text(config.read_text().replace("middle_attention:", "attention_in_the_middle:"))
    line = mistake(capsys, "sample", "run")
    assert "unet.attention_in_the_middle: unknown key" in line
    assert line.endswith("the run is older than run formats and cannot be read by this version")


@pytest.mark.slow
def test_one_training_in_a_folder_at_a_time(small, capsys, monkeypatch):
    monkeypatch.setattr(run_folder, "LOCK_SECONDS", 0.1)
    with Run("run").lock():
        line = mistake(capsys, "train", "--config", "small.yaml")
        assert line == "run: another process is training here; stop it first"
    train_small("--train.steps", "2")


@pytest.mark.slow
def test_error_names_a_folder_that_is_not_writable(small, capsys):
    train_small("--train.steps", "2")
    if subprocess.run(["mount", "--bind", "-o", "ro", "run", "run"], capture_output=True).returncode:
        pytest.skip("only root can mount a folder read-only")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", "run"], check=True)
        for command, argv in (("train", ["--resume", "run", "--train.steps", "3"]), ("sample", ["run"])):
            line = mistake(capsys, command, *argv)
            assert re.search(r"run(/\S+: Read-only file system$|: not writable)", line)
    finally:
        subprocess.run(["umount", "run"], check=True)


@pytest.mark.slow
@pytest.mark.slow
def test_a_run_is_replaced_only_with_overwrite(small, capsys):
    train_small("--train.steps", "2")
    before = checkpoint(Path("run"), 2)
    line = mistake(capsys, "train", "--config", "small.yaml")
    assert "already holds a run; --resume run continues it" in line
    assert "complete at step 2" not in line
    line = mistake(capsys, "train", "--config", "small.yaml", "--overwrite", "--data.path", "./nowhere")
    assert "does not exist" in line
    assert checkpoint(Path("run"), 2) == before
    train_small("--train.steps", "3", "--overwrite")
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["step_00000003"]
