import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from diffunet.core.errors import UserError
from diffunet.core.storage import CHECKSUMS, load_tensors
from diffunet.training.checkpoint import (
    State,
    checksum_of,
    is_intact,
    list_checkpoints,
    newest_checkpoint,
    read_state,
    remove,
    write_checkpoint,
)
from diffunet.training.placement import moments_of


def state(step):
    return State(step=step, skipped=1, examples=40, data="abc", environment={"processes": 2}, scaler=None)


def vector(value):
    """Return a model of one parameter, w, with fifty equal values."""
    model = torch.nn.Module()
    model.w = torch.nn.Parameter(torch.full((50,), value))
    return model


@pytest.fixture
def run(tmp_path):
    """Return a folder with checkpoints of steps 4 and 8."""
    for step in (4, 8):
        model, ema = vector(float(step)), vector(step / 2)
        optimizer = torch.optim.AdamW(model.parameters())
        files = ("model", model.state_dict()), ("ema", ema.state_dict()), ("optimizer", moments_of(model, optimizer))
        write_checkpoint(tmp_path, state(step), files)
    return tmp_path


def test_a_checkpoint_round_trips(run):
    assert [path.name for path in list_checkpoints(run)] == ["step_00000004", "step_00000008"]
    newest = newest_checkpoint(run)
    assert read_state(newest) == state(8)
    assert load_tensors(newest / "ema.safetensors")["w"].tolist() == [4.0] * 50
    names = {"model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json", CHECKSUMS}
    assert {path.name for path in newest.iterdir()} == names
    assert newest_checkpoint(run / "absent") is None


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


def swap(path):
    other = path.with_name("ema.safetensors" if path.name != "ema.safetensors" else "model.safetensors")
    kept = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(kept)


@pytest.mark.parametrize("damage", [flip, cut, swap, Path.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "state.json", CHECKSUMS])
def test_error_names_the_damaged_file_and_the_newest_intact_checkpoint(run, name, damage):
    newest = list_checkpoints(run)[-1]
    damage(newest / name)
    assert not is_intact(newest)
    with pytest.raises(UserError) as mistake:
        newest_checkpoint(run)
    message = str(mistake.value)
    assert message.startswith(f"{newest}/")
    assert name in message or damage is swap or name == CHECKSUMS
    assert message.endswith(f"; use --resume {run}/checkpoints/step_00000004, the one before")
    cut(run / "checkpoints" / "step_00000004" / "ema.safetensors")
    with pytest.raises(UserError, match="no earlier checkpoint is intact"):
        newest_checkpoint(run)


def test_error_names_an_additional_file(run):
    newest = list_checkpoints(run)[-1]
    (newest / "extra.pkl").write_bytes(b"?")
    with pytest.raises(UserError, match="extra.pkl: does not belong here"):
        newest_checkpoint(run)


def test_checksums_are_readable_by_sha256sum(run):
    subprocess.run(["sha256sum", "--check", "--strict", CHECKSUMS], cwd=list_checkpoints(run)[-1], check=True)


def test_partly_removed_checkpoints_are_ignored(run):
    checkpoints = run / "checkpoints"
    shutil.copytree(checkpoints / "step_00000004", checkpoints / ".step_00000002.removed")
    assert len(list_checkpoints(run)) == 2
    remove(run, [])
    assert {path.name for path in checkpoints.iterdir()} == {"step_00000004", "step_00000008"}
    remove(run, list_checkpoints(run)[:1])
    assert [path.name for path in checkpoints.iterdir()] == ["step_00000008"]


def test_a_state_of_another_version_is_an_error(run):
    file = list_checkpoints(run)[-1] / "state.json"
    for change, message in (
        ({"step": -1}, "step: input should be greater"),
        ({"epoch": 3}, "epoch: extra inputs"),
        ({"data": None}, "data: input should be a valid string"),
    ):
        file.write_text(json.dumps(state(8).model_dump() | change))
        with pytest.raises(UserError, match=rf"state.json: {message}.*written by another version of diffunet"):
            read_state(file.parent)


def test_checksum_stands_for_all_files(run):
    older, newest = list_checkpoints(run)
    assert checksum_of(newest) == checksum_of(newest) != checksum_of(older)
    flip(newest / "model.safetensors")
    with pytest.raises(UserError, match="model.safetensors: damaged"):
        checksum_of(newest)
