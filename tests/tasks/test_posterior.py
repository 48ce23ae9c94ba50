"""Runs that sample their targets: made from the configs of predictors by the objective alone, exact, and scored."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import checkpoint, mistake, run, write_pairs
from PIL import Image

from diffunet.core.settings import settings_from
from diffunet.core.storage import load_tensors
from diffunet.data.pair_files import read_image
from diffunet.data.paired import load_pairs
from diffunet.data.pairs import PairConfig, Source
from diffunet.runs.config import Config
from diffunet.runs.predict import ImagePredictor
from diffunet.runs.prediction import PredictConfig, PredictionConfig, load_predictor
from diffunet.runs.run import Run
from diffunet.tasks.kinds import kind_of
from diffunet.training.log import read_log
from stress.crash import differences
from stress.program import ROOT, program

WEIGHTS = "diffusion_pytorch_model.safetensors"
CLASSES = ["--objective", "{type: posterior, targets: classes}", "--predict.steps", 2]
NUMBERS = ["--objective", "{type: posterior, targets: numbers}", "--predict.steps", 2]
QUICK = ["--train.steps", 2, "--train.gradient_accumulation_steps", 1]
FEW = ["--samples", 3, "--steps", 2]


def train(*flags) -> None:
    assert run("train", "--config", "predictor.yaml", *flags) == 0


def predicted(*words) -> dict[str, bytes]:
    """Predict, and return the files of the folder `out` by name."""
    shutil.rmtree("out", ignore_errors=True)
    assert run("predict", *words, "--output", "out") == 0
    return {str(path.relative_to("out")): path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}


def image_of(name: str) -> torch.Tensor:
    return read_image([Source(f"pairs/images/{name}.png")], 1)


# ── exactness ─────────────────────────────────────────────────────────────────────────────────────


def test_a_resumed_training_equals_an_uninterrupted_one(small_predictor, capsys):
    train(*CLASSES, "--train.output", "whole", "--train.keep_checkpoints", 9)
    shutil.copytree("whole", "run")
    for step in (4, 6):
        shutil.rmtree(f"run/checkpoints/step_{step:08d}")
    Path("run/samples/step_00000006.png").unlink()
    assert run("train", "--resume", "run") == 0
    assert "resuming from step 2" in capsys.readouterr().out
    assert differences(Path("whole"), Path("run")) == []
    assert checkpoint(Path("run"), 6) == checkpoint(Path("whole"), 6)


def test_places_without_a_label_change_no_weight(small_predictor):
    write_pairs(Path("pairs"), (0, 100, 255))
    flags = [*CLASSES, *QUICK, "--train.preview_every", 9]
    train(*flags, "--data.ignore", 255, "--train.output", "first")
    for path in Path("pairs/labels").iterdir():
        target = np.asarray(Image.open(path))
        Image.fromarray(np.where(target == 255, 37, target).astype(np.uint8)).save(path)
    train(*flags, "--data.ignore", 37, "--train.output", "second")
    kept = [(Path(folder) / "model" / WEIGHTS).read_bytes() for folder in ("first", "second")]
    assert kept[0] == kept[1]


@pytest.mark.slow
def test_two_processes_train_as_one(small_predictor):
    train(*CLASSES, "--train.output", "one")
    words = [*map(str, CLASSES), "--train.gradient_accumulation_steps", "1"]
    process = program(ROOT / "train.py", "--config", "predictor.yaml", *words, processes=2)
    output = process.communicate(timeout=180)[0]
    assert process.returncode == 0, output
    one, two = (load_tensors(Path(folder) / "model" / WEIGHTS) for folder in ("one", "run"))
    for name, values in one.items():
        torch.testing.assert_close(two[name], values, rtol=1e-4, atol=1e-6)


# ── a run ─────────────────────────────────────────────────────────────────────────────────────────


def test_classes_are_sampled_predicted_and_scored(small_predictor, capsys):
    train(*CLASSES, *QUICK)
    last = read_log(Path("run/log.jsonl"))[-1]
    assert {"loss", "val_loss", "train_eval_loss", "val_dice"} <= last.keys()
    assert Path("run/samples/step_00000002.png").exists()
    config = Run("run").config(PredictionConfig)
    assert (config.unet.in_channels, config.unet.plane_channels, config.unet.vector_dim) == (2, 1, 16)
    files = predicted("run", "pairs/images/a0.png", "pairs/images/a1.png", *FEW, "--members", "--probabilities")
    kinds = ["{}.png", "{}.std.npy", "{}.probabilities.npy", *(f"members/{{}}/{n:02d}.png" for n in range(3))]
    assert files.keys() == {kind.format(name) for name in ("a0", "a1") for kind in kinds}
    assert predicted("run", "pairs/images/a1.png", *FEW)["a1.png"] == files["a1.png"]
    assert predicted("run", "pairs/images/a1.png", *FEW)["a1.std.npy"] == files["a1.std.npy"]
    assert predicted("run", "pairs/images/a1.png", *FEW, "--seed", 1)["a1.std.npy"] != files["a1.std.npy"]
    values = {*np.unique(np.asarray(Image.open("out/a1.png")))}
    assert values <= {0, 255}
    assert run("evaluate", "run", *FEW) == 0
    record = json.loads(Path("run/evaluations/000/evaluation.json").read_text())
    assert {"dice", "calibration_error"} <= record["scores"].keys()
    assert record["predictions"]["samples"] == 3
    capsys.readouterr()
    assert run("describe", "run") == 0
    assert "total with time embedding (of an image)" in capsys.readouterr().out


def test_numbers_are_sampled_in_the_units_of_their_files(small_predictor):
    for path in list(Path("pairs/labels").iterdir()):
        image = np.asarray(Image.open(f"pairs/images/{path.name}"), dtype=np.float32)
        np.save(path.with_suffix(".npy"), np.stack([image * 1000 + 50_000, -image]))
        path.unlink()
    train(*NUMBERS, *QUICK)
    assert "val_dice" not in read_log(Path("run/log.jsonl"))[-1]
    predictor = load_predictor(Run("run"))
    pairs = load_pairs(PairConfig(path="pairs"), "regression", log=lambda text: None)
    assert torch.equal(predictor.target_mean, pairs.target.mean)
    assert torch.equal(predictor.target_scale, 2 * pairs.target.std)
    files = predicted("run", "pairs/images/a0.png", *FEW, "--members")
    assert files.keys() == {"a0.npy", "a0.std.npy", *(f"members/a0/{n:02d}.npy" for n in range(3))}
    members = np.stack([np.load(f"out/members/a0/{n:02d}.npy") for n in range(3)])
    assert members.shape == (3, 2, 24, 20)  # larger than a patch
    assert np.allclose(np.load("out/a0.npy"), members.mean(0), rtol=1e-4)
    assert np.allclose(np.load("out/a0.std.npy"), members.std(0), rtol=1e-2)
    distance = np.abs(members.mean((0, 2, 3)) - pairs.target.mean.numpy()) / pairs.target.std.numpy()
    assert (distance < 2).all()


def test_two_runs_are_one_ensemble_of_samples(small_predictor):
    train(*CLASSES, *QUICK)
    train(*CLASSES, *QUICK, "--train.seed", 1, "--train.output", "other")
    found = predicted("run", "other", "pairs/images/a0.png", "--samples", 2, "--steps", 1, "--members")
    assert {name for name in found if name.startswith("members")} == {f"members/a0/{n:02d}.png" for n in range(4)}


# ── how it is chosen ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["membranes", "cells", "shapes", "grains", "defects", "stain", "pansharpen"])
def test_the_objective_alone_makes_it_of_a_config(name):
    file = Path(ROOT) / "configs" / f"{name}.yaml"
    flags = {"objective": "{type: posterior}"}
    assert kind_of(file, flags) is PredictionConfig
    config = settings_from(file, PredictionConfig, flags)
    assert config.kind == settings_from(file, PredictionConfig).objective.type


def test_the_type_of_a_flag_is_the_outer_one():
    assert kind_of(None, {"objective": "{noise: {type: edm}, type: posterior}"}) is PredictionConfig
    assert kind_of(None, {"objective": "{source: {type: flow}, type: consistency}"}) is Config


CHOSEN = ["--objective", "posterior", "--objective.targets", "classes"]
DROPPED = "{type: flow, condition_dropout: 0.1}"
MISTAKES = {
    "targets of files": (
        ["--objective", "posterior"],
        "objective.targets: the values of files can be classes or numbers; choose one of these",
    ),
    "other targets": (["--objective", "{type: posterior, targets: labels}"], "'classes' or 'numbers'"),
    "valid borders": ([*CHOSEN, "--unet.padding", "valid"], "unet.padding: valid borders leave out places"),
    "batch norm": ([*CHOSEN, "--unet.norm", "batch"], "unet.norm: batch norm does not fit the EMA weights"),
    "tokens": ([*CHOSEN, "--unet.token_dim", "8"], "unet.token_dim: a predictor has no tokens; use 0"),
    "no numbers": (
        ["--objective", "{type: posterior, targets: numbers}", "--data.path", "cells"],
        "cells is no data set for regression",
    ),
    "dropout": ([*CHOSEN, "--objective.noise", DROPPED], "the image is never dropped; use 0"),
    "patch": ([*CHOSEN, "--data.patch", "17"], "data.patch: some level would not halve 17"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line_before_anything_is_trained(small_predictor, capsys, name):
    flags, message = MISTAKES[name]
    assert message in mistake(capsys, "train", "--config", "predictor.yaml", *flags)
    assert not Path("run").exists()


def test_mistakes_in_sampling(small_predictor, capsys):
    train(*CLASSES, *QUICK)
    words = ["predict", "run", "pairs/images/a0.png"]
    assert "average: the mean of samples is one already" in mistake(capsys, *words, "--average")
    assert "steps: 1001 is not between 1 and 1000" in mistake(capsys, *words, "--steps", 1001)
    one = ImagePredictor([Run("run")], PredictConfig(samples=1, steps=2))(image_of("a0"))
    assert not one.std.any()
