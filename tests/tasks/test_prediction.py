"""Training predictors: exact resuming, places without a label, previews, and training from Python."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import checkpoint, mistake, run, write_pairs
from PIL import Image

import diffunet
from diffunet.core.errors import UserError
from diffunet.core.storage import load_tensors
from diffunet.data.pairs import PairConfig, split_fold
from diffunet.runs.config import Config
from diffunet.runs.prediction import PredictionConfig, load_predictor
from diffunet.runs.run import Run
from diffunet.tasks.kinds import kind_of
from diffunet.training.log import read_log
from stress.crash import differences
from stress.program import ROOT, program

WEIGHTS = "diffusion_pytorch_model.safetensors"
START = ["train", "--config", "predictor.yaml"]
QUICK = ["--train.steps", 1, "--train.gradient_accumulation_steps", 1]


def train(*flags) -> None:
    assert run(*START, *flags) == 0


# ── exactness ─────────────────────────────────────────────────────────────────────────────────────


def test_a_resumed_training_equals_an_uninterrupted_one(small_predictor, capsys):
    """With elastic warps, SGD and a learning rate that falls, from a checkpoint and from before the first one."""
    train("--train.output", "whole", "--train.keep_checkpoints", 9)
    shutil.copytree("whole", "run")
    for step in (4, 6):
        shutil.rmtree(f"run/checkpoints/step_{step:08d}")
    Path("run/samples/step_00000006.png").unlink()
    assert run("train", "--resume", "run") == 0
    assert "resuming from step 2" in capsys.readouterr().out
    assert differences(Path("whole"), Path("run")) == []
    for folder in ("run/checkpoints", "run/model", "run/samples"):
        shutil.rmtree(folder)
    assert run(*START, "--train.keep_checkpoints", 9, "--resume") == 0
    assert checkpoint(Path("run"), 6) == checkpoint(Path("whole"), 6)


def test_resuming_reads_the_data_again(small_predictor, capsys):
    train("--train.steps", 2, "--train.output", "run")
    assert run("train", "--resume", "run", "--train.steps", 3) == 0
    Image.fromarray(np.zeros((24, 20), np.uint8)).save("pairs/images/a1.png")
    assert "use the original data or pass --force" in mistake(capsys, "train", "--resume", "run", "--train.steps", 4)
    shutil.rmtree("pairs")
    assert "data.path: pairs is no folder" in mistake(capsys, "train", "--resume", "run", "--train.steps", 4)


def test_places_without_a_label_change_no_weight(small_predictor):
    """Neither which value marks them, nor what the image shows as its target there."""
    write_pairs(Path("pairs"), (0, 100, 255))
    train("--data.ignore", 255, "--train.output", "first", "--train.steps", 2)
    for path in Path("pairs/labels").iterdir():
        target = np.asarray(Image.open(path))
        Image.fromarray(np.where(target == 255, 37, target).astype(np.uint8)).save(path)
    train("--data.ignore", 37, "--train.output", "second", "--train.steps", 2)
    kept = [(Path(folder) / "model" / WEIGHTS).read_bytes() for folder in ("first", "second")]
    assert kept[0] == kept[1]
    train("--train.output", "third", "--train.steps", 2)  # the same places as a class
    assert (Path("third") / "model" / WEIGHTS).read_bytes() != kept[0]


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_processes_train_as_one(small_predictor, accumulation):
    train("--train.output", "one", "--train.gradient_accumulation_steps", 2 * accumulation)
    flags = ["--train.gradient_accumulation_steps", str(accumulation)]
    process = program(ROOT / "train.py", "--config", "predictor.yaml", *flags, processes=2)
    output = process.communicate(timeout=180)[0]
    assert process.returncode == 0, output
    one, two = (load_tensors(Path(folder) / "model" / WEIGHTS) for folder in ("one", "run"))
    for name, values in one.items():
        torch.testing.assert_close(two[name], values, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_killed_training_in_two_processes_is_resumed(small_predictor):
    flags = ["--train.keep_checkpoints", "9"]
    for output in ("whole", "run"):
        process = program(
            ROOT / "train.py", "--config", "predictor.yaml", *flags, "--train.output", output, processes=2
        )
        assert process.wait(timeout=180) == 0
    for step in (4, 6):
        shutil.rmtree(f"run/checkpoints/step_{step:08d}")
    process = program(ROOT / "train.py", "--resume", "run", processes=2)
    assert process.wait(timeout=180) == 0
    assert differences(Path("whole"), Path("run")) == []


@pytest.mark.slow
def test_cases_that_are_decoded_by_workers_give_the_same_weights(small_predictor):
    train("--train.output", "kept")
    train("--data.memory_budget", 0, "--data.workers", 2)
    kept, decoded = (load_tensors(Path(folder) / "model" / WEIGHTS) for folder in ("kept", "run"))
    assert all(torch.equal(kept[name], decoded[name]) for name in kept)


# ── what a run has ────────────────────────────────────────────────────────────────────────────────


def test_a_run_has_a_preview_and_the_losses_of_held_out_cases(small_predictor, capsys):
    train()
    assert "8 pairs of 24×20 pixels, 1 channel -> 0 " in (output := capsys.readouterr().out)
    assert "6 cases to train on, 2 held out, patches of 16×16" in output
    assert "predict with diffunet predict run IMAGES" in output
    last = read_log(Path("run/log.jsonl"))[-1]
    assert {"loss", "loss_dice", "loss_cross_entropy", "val_loss", "train_eval_loss", "val_dice"} <= last.keys()
    assert 0 < last["val_dice"] <= 1
    assert Path("run/samples/step_00000006.png").exists()
    assert json.loads(Path("run/run.json").read_text())["task"] == "prediction"
    predictor = load_predictor(Run("run"))
    trained, _ = split_fold([f"a{n}" for n in range(8)], PairConfig())
    images = [np.asarray(Image.open(f"pairs/images/a{n}.png"), dtype=np.float64) for n in trained]
    assert predictor.input_mean.item() == pytest.approx(np.mean(images), rel=1e-6)
    assert predictor.input_std.item() == pytest.approx(np.std(images), rel=1e-6)
    assert predictor.output_std.tolist() == [1, 1]  # logits are as the network returns them


def test_a_regression_learns_in_the_units_of_its_targets(small_predictor):
    flags = ["--objective", "{type: regression, base: mean}", "--data.fold", "null", "--train.steps", 2]
    for path in list(Path("pairs/labels").iterdir()):
        image = np.asarray(Image.open(f"pairs/images/{path.name}"), dtype=np.float32)
        np.save(path.with_suffix(".npy"), np.stack([image * 1000 + 50_000, -image]))
        path.unlink()
    train(*flags)
    last = read_log(Path("run/log.jsonl"))[-1]
    assert last["loss"] < 2  # in units of the deviation
    assert not {"val_loss", "val_dice"} & last.keys()  # nothing is held out
    predictor = load_predictor(Run("run"))
    image = torch.from_numpy(np.array(Image.open("pairs/images/a0.png")))[None, None]
    mean, std = predictor.output_mean, predictor.output_std
    assert mean[0] > 50_000
    assert mean[1] < 0
    found = predictor(image[..., :16])
    assert ((found.mean((0, 2, 3)) - mean).abs() < 3 * std).all()


def test_a_regression_begins_with_the_best_linear_prediction(small_predictor):
    for path in list(Path("pairs/labels").iterdir()):
        image = np.asarray(Image.open(f"pairs/images/{path.name}"), dtype=np.float32)
        np.save(path.with_suffix(".npy"), np.stack([image * 1000 + 50_000, -image]))
        path.unlink()
    train("--objective", "regression", "--train.steps", 1, "--train.learning_rate", 1e-9)
    predictor = load_predictor(Run("run"))
    torch.testing.assert_close(predictor.linear, torch.tensor([[1000.0], [-1.0]]), rtol=1e-4, atol=0)
    image = torch.from_numpy(np.array(Image.open("pairs/images/a0.png")))[None, None, :, :16]
    expected = torch.cat([image * 1000.0 + 50_000, -image.float()], 1)
    torch.testing.assert_close(predictor(image), expected, rtol=1e-4, atol=1e-2)
    # nothing is left to learn, so that the unit is still the deviation of the target
    assert (predictor.output_std > 10).all()


def test_valid_borders_of_a_patch_are_those_of_the_network(small_predictor, capsys):
    train("--unet.padding", "valid", "--unet.block", "plain", "--data.patch", "31", *QUICK, "--augment.elastic", 0)
    assert "patches of 31×31 -> 2×2" in capsys.readouterr().out
    assert Path("run/samples/step_00000001.png").exists()


# ── other ways to start ───────────────────────────────────────────────────────────────────────────


def test_training_from_python(small_predictor):
    found = diffunet.train("predictor.yaml", train={"steps": 2, "output": "first"})
    assert found.config(PredictionConfig).train.steps == 2
    again = diffunet.train("predictor.yaml", train={"steps": 3, "output": "first"}, resumed=True)
    assert (again.folder / "checkpoints/step_00000003").exists()
    with pytest.raises(UserError, match="already holds a run"):
        diffunet.train("predictor.yaml", train={"output": "first"})
    values = {"objective": {"type": "segmentation", "dice": 0.0}, "data": {"path": "pairs", "patch": 16}}
    config = PredictionConfig.model_validate(values)
    small = {"levels": [{"channels": 4}, {"channels": 8}], "norm_groups": 4, "middle_attention": False}
    quick = {"steps": 1, "batch_size": 2, "output": "second", "runtime": {"mixed_precision": "no", "compile": False}}
    second = diffunet.train(config, unet=small, train=quick)
    assert second.config(PredictionConfig).objective.dice == 0


def test_print_config_is_a_config(small_predictor, capsys):
    assert run(*START, "--objective.dice", "0.5", "--print_config") == 0
    printed = capsys.readouterr().out
    Path("printed.yaml").write_text(printed)
    assert run("train", "--config", "printed.yaml", "--print_config") == 0
    assert capsys.readouterr().out == printed
    assert "dice: 0.5" in printed
    assert run("train", "--objective", "regression", "--print_config") == 0
    assert "huber: 0.0" in capsys.readouterr().out
    assert run("train", "--objective", "{type: regression, huber: 2}", "--print_config") == 0
    assert "huber: 2" in capsys.readouterr().out
    assert not Path("run").exists()


def test_help_has_the_flags_of_predictors(small_predictor, capsys):
    for start in (START, ["train", "--objective", "segmentation"], ["train", "--objective.type=regression"]):
        assert run(*start, "--help") == 0
        output = capsys.readouterr().out
        assert "--data.patch" in output
        assert "--augment.elastic" in output
        assert "--sample.steps" not in output
    assert run("train", "--help") == 0
    assert "--data.patch" not in capsys.readouterr().out


def test_a_benchmark_writes_nothing(small_predictor, capsys, monkeypatch):
    monkeypatch.setattr("diffunet.tasks.fit.BENCHMARK_SECONDS", 0.02)
    monkeypatch.setattr("diffunet.training.benchmark.peak_conv_flops", lambda device, precision: 1e9)
    assert run(*START, "--benchmark") == 0
    output = capsys.readouterr().out
    assert "GFLOP per image" in output
    assert "images/s with batches of 4" in output
    assert not Path("run").exists()


def test_the_type_of_the_objective_decides_about_the_kind(small_predictor):
    assert kind_of(None) is Config
    assert kind_of(Path("predictor.yaml")) is PredictionConfig
    assert kind_of(Path("predictor.yaml"), {"objective": "flow"}) is Config
    assert kind_of(None, {"objective.type": "regression"}) is PredictionConfig
    assert kind_of(None, {"objective": "{l1: 1, type: regression}"}) is PredictionConfig
    assert kind_of(Path("predictor.yaml"), {"objective": "{type: edm}"}) is Config
    assert kind_of(None, changes={"objective": {"type": "segmentation"}}) is PredictionConfig
    with pytest.raises(UserError, match="objective: segment is not one of .*; did you mean segmentation?"):
        kind_of(None, {"objective": "segment"})


def test_a_run_of_one_kind_is_not_taken_for_another(small_predictor, capsys):
    train(*QUICK)
    assert "run: a run of prediction, not of generation" in mistake(capsys, "sample", "run")
    assert "--sample.steps: unknown argument" in mistake(capsys, "train", "--resume", "run", "--sample.steps", 3)
    line = mistake(capsys, "train", "--resume", "run", "--objective", "ddpm", "--train.steps", 9)
    assert "objective" in line
