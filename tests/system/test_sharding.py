"""Training in shards: the same weights as one process, half of them in each of two, and one format of checkpoints."""

import json
import shutil
from pathlib import Path

import pytest
from helpers import mistake, run

from diffunet.core.errors import UserError
from diffunet.core.settings import settings_from
from diffunet.runs.config import Config
from diffunet.runs.run import load_run
from diffunet.tasks.fit import make_trainer
from diffunet.tasks.generation import generation
from diffunet.training.config import TrainConfig
from diffunet.training.placement import check_shardable
from stress.multi_node import STEPS, image_order, max_difference, output_of, require_same_bytes, traced_run
from stress.program import program

IN_DOUBLE = 1e-12
"""Largest difference between weights, relative to the largest weight, after STEPS steps in fp64. Measured: 8e-13."""
SHARD = "--train.shard", "true"
MEMORY = """
import os, torch
from diffunet.cli.train import train
from diffunet.training.trainer import Trainer
fit = Trainer.fit
def measured(self):
    ended = fit(self)
    local = lambda tensor: tensor.to_local() if hasattr(tensor, "to_local") else tensor
    moments = [t for state in self.placement.optimizer.optimizer.state.values() for t in state.values() if t.dim()]
    held = {"weights": list(self.placement.module.parameters()), "moments": moments}
    held["averages"] = [p for average in (self.ema, *self.posthoc.values()) for p in average.model.parameters()]
    print("held", *(sum(local(t).numel() for t in tensors) for tensors in held.values()))
    return ended
Trainer.fit = measured
train(__import__("sys").argv[1:])
"""
FAILING = """
import sys
from diffunet.cli.train import train
from diffunet.training import trainer
write, calls = trainer.write, []
def failing(folder, state, files):
    calls.append(state.step)
    if len(calls) == 1:
        next(files)
        raise OSError(28, "No space left on device", "run/checkpoints")
    write(folder, state, files)
trainer.write = failing
train(sys.argv[1:])
"""
OUT_OF_MEMORY = """
import os, sys
from diffunet.cli.train import train
from diffunet.training.placement import Shards
def failing(self):
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
if os.environ["RANK"] == "0":
    Shards.moments = failing
train(sys.argv[1:])
"""


def losses(folder: Path, key: str) -> list[float]:
    return [json.loads(line)[key] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_in_shards_equal_one_in_fp64(small):
    """Weights, the three EMAs, the norms to which gradients are clipped, and the images at their positions."""
    alone = traced_run("alone", 1, precision="double")
    sharded = traced_run("sharded", 2, *SHARD, precision="double")
    assert max_difference(alone, sharded) < IN_DOUBLE
    assert losses(sharded, "grad_norm") == pytest.approx(losses(alone, "grad_norm"), rel=1e-12)
    assert losses(sharded, "loss") == pytest.approx(losses(alone, "loss"), rel=1e-12)
    assert image_order(sharded) == image_order(alone)


@pytest.mark.slow
def test_a_checkpoint_of_shards_is_one_of_whole_weights(small):
    """From shards to one process and back to shards: the bytes of an uninterrupted run."""
    uninterrupted = traced_run("uninterrupted", 2, *SHARD)
    shutil.copytree(uninterrupted, "resumed")
    shutil.rmtree(f"resumed/checkpoints/step_{STEPS:08d}")
    (saved,) = Path("resumed/checkpoints").iterdir()
    before = {file.name: file.read_bytes() for file in saved.glob("*.safetensors")}
    assert {"model.safetensors", "ema.safetensors", "ema_0.05.safetensors", "optimizer.safetensors"} < before.keys()
    alone = settings_from(Path("resumed/config.yaml"), Config, {"train.output": "resumed", "train.shard": "false"})
    trainer = make_trainer(generation(alone), alone.train)
    trainer.resume(saved)
    trainer.save()
    assert {file.name: file.read_bytes() for file in saved.glob("*.safetensors")} == before
    output = output_of(program("-m", "diffunet", "train", "--resume", "resumed", processes=2))
    assert "resuming from step" in output
    assert "processes: 1 -> 2" in output
    require_same_bytes(uninterrupted, Path("resumed"))
    assert run("sample", "resumed", "--num_images", "1") == 0


@pytest.mark.slow
def test_each_process_holds_half(small):
    levels = "[{channels: 64, blocks: 1}, {channels: 64, blocks: 1}]"
    Path("measured.py").write_text(MEMORY)
    train = "--config", "small.yaml", "--unet.levels", levels, *SHARD
    output = output_of(program("measured.py", *train, processes=2))
    whole = sum(p.numel() for p in load_run("run").denoiser().parameters())
    held = [list(map(int, line.split()[1:])) for line in output.splitlines() if line.startswith("held")]
    assert len(held) == 2
    for weights, moments, averages in held:
        assert weights < 0.52 * whole
        assert moments == 2 * weights
        assert averages == 3 * weights
    assert held[0][0] + held[1][0] == whole


@pytest.mark.slow
def test_a_checkpoint_that_fails_amid_its_files_is_retried(small):
    """The other process has to gather the rest of them as well, or both would wait forever."""
    Path("failing.py").write_text(FAILING)
    output = output_of(program("failing.py", "--config", "small.yaml", *SHARD, processes=2))
    assert "step 4: no checkpoint: run/checkpoints: No space left on device; training continues" in output
    assert {path.name for path in Path("run/checkpoints").iterdir()} == {"step_00000008", "step_00000012"}


@pytest.mark.slow
def test_a_process_without_the_memory_for_a_checkpoint_ends_all(small):
    """It cannot gather any more, so the other one must not be left waiting."""
    Path("failing.py").write_text(OUT_OF_MEMORY)
    process = program("failing.py", "--config", "small.yaml", *SHARD, processes=2)
    output, _ = process.communicate(timeout=120)
    assert process.returncode
    assert "memory" in output
    assert not list(Path("run/checkpoints").glob("step_*"))


@pytest.mark.slow
def test_16_bits_train_in_shards(small):
    """Weights of blocks travel in bf16, but they, their sums and the averages stay in fp32."""
    bf16 = "--train.runtime.mixed_precision", "bf16"
    sharded = traced_run("sharded", 2, *SHARD, *bf16)
    whole = traced_run("whole", 1, *bf16)
    assert losses(sharded, "loss")[-1] == pytest.approx(losses(whole, "loss")[-1], rel=0.02)
    assert 1e-5 < max_difference(sharded, whole) < 0.1


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"batch_size": "auto"}, "train.batch_size: does not go with train.shard .got auto.; use --train.batch_size a"),
        ({"publish": "least_val_loss"}, "train.publish: .* .got least_val_loss.; use --train.publish newest"),
        ({"runtime": {"mixed_precision": "fp16"}}, "train.runtime.mixed_precision: .* .got fp16.; use .* bf16"),
        ({"runtime": {"compile": True}}, "train.runtime.compile: .* .got true.; use --train.runtime.compile false"),
    ],
)
def test_settings_that_do_not_go_with_shards_are_named(settings, problem):
    check_shardable(TrainConfig(shard=True))
    with pytest.raises(UserError, match=problem):
        check_shardable(TrainConfig(shard=True, **settings))


def test_one_process_has_no_shards(small):
    assert run("train", "--config", "small.yaml", "--train.steps", "2", *SHARD) == 0


def test_a_refused_setting_costs_nothing(small, capsys):
    line = mistake(capsys, "train", "--config", "small.yaml", *SHARD, "--train.batch_size", "auto")
    assert "train.batch_size: does not go with train.shard (got auto)" in line
    assert not Path("run").exists()
