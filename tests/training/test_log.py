import json

import pytest
import torch
from accelerate import Accelerator

from diffunet.training.log import Log, read_log


def test_each_line_has_the_means_since_the_previous_line(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    log.count("loss", torch.tensor([1.0, 3.0]))
    log.count("loss", torch.tensor([torch.nan, 8.0]))
    log.count("unused", torch.tensor([torch.inf]))
    assert log.means(Accelerator(cpu=True)) == {"loss": 4.0}
    log.count("loss", torch.tensor([5.0]))
    assert log.means(Accelerator(cpu=True)) == {"loss": 5.0}  # only since the last line
    log.write({"step": 1, "loss": 4.0, "grad_norm": float("nan")})
    assert read_log(tmp_path / "log.jsonl") == [{"step": 1, "loss": 4.0}]


def test_lines_that_cannot_be_written_are_retried(tmp_path):
    file = tmp_path / "log.jsonl"
    file.symlink_to("/dev/full")
    log = Log(file)
    for step in (1, 2):
        with pytest.raises(OSError, match="No space left on device: .*log.jsonl"):
            log.write({"step": step})
    file.unlink()
    log.write({"step": 3})
    assert [line["step"] for line in read_log(file)] == [1, 2, 3]


def test_damaged_lines_are_skipped(tmp_path):
    file = tmp_path / "log.jsonl"
    assert read_log(file) == []
    lines = [b'{"step": 2, "loss": 1.5}', b"{", b"[1]", b'{"loss": 1}', b'{"step": "x"}', b"\xff\xfe", b"[" * 100_000]
    file.write_bytes(b"\n".join([*lines, b'{"step": 4, "loss": 1.25}', b'{"step": 6, "lo']))
    assert read_log(file) == [{"step": 2, "loss": 1.5}, {"step": 4, "loss": 1.25}]
    Log(file).forget_after(3)
    assert [json.loads(line) for line in file.read_text().splitlines()] == [{"step": 2, "loss": 1.5}]


def test_names_of_format_1_are_read_as_todays(tmp_path):
    file = tmp_path / "log.jsonl"
    former = {"step": 2, "loss": 1, "held_out_loss": 2, "held_out_loss_error": 3, "held_out_loss_noise0-25": 4}
    former |= {"seen_loss": 5, "tint_0": 6, "contrast_2": 7, "drawn_images": 8, "health_seconds": 9}
    file.write_text(json.dumps(former))
    today = {"step": 2, "loss": 1, "val_loss": 2, "val_loss_error": 3, "val_loss_noise0-25": 4}
    today |= {"train_eval_loss": 5, "mean_shift/0": 6, "std_ratio/2": 7, "sampled_images": 8, "monitor_seconds": 9}
    assert read_log(file) == [today]
    file.write_text(json.dumps(today))
    assert read_log(file) == [today]
