"""Water and fat without targets, and images of undersampled k-space, from files to files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import copy_with_first_checkpoint, mistake, run
from PIL import Image

from diffunet.core.complex_channels import to_complex
from diffunet.core.water_fat import signal_of_maps
from diffunet.data.phantoms.registry import PHANTOMS
from stress.crash import differences

TIMES = [1.2e-3, 2.2e-3, 3.2e-3, 4.2e-3]
NETWORK = """
unet:
  levels: [{channels: 8, blocks: 1}, {channels: 8, blocks: 1}]
  middle_attention: false
  norm_groups: 2
augment: {mirror: all, rotate: quarters}
train:
  output: run
  steps: 6
  batch_size: 2
  learning_rate: 1e-2
  ema_decay: 0.9
  checkpoint_every: 2
  preview_every: 3
"""
SIGNAL = f"objective: {{type: signal, echo_times: {TIMES}, field_strength: 3.0, smoothness: 0.1}}\n"
SIGNAL += "data: {path: scans, folds: 3, fold_by: order, patch: 32}\n" + NETWORK
KSPACE = (
    "objective: {type: reconstruction, acceleration: [2, 4]}\ndata: {path: scans, folds: 3, fold_by: order}\n" + NETWORK
)


def a_scan(index: int, size: tuple[int, int] = (64, 64)) -> tuple[np.ndarray, np.ndarray]:
    """Return echoes, complex64 (4, H, W), and their maps, float32 (6, H, W)."""
    phantom = PHANTOMS["water-fat-maps"].generate(index, size)
    return to_complex(torch.from_numpy(phantom.image[None, :8]))[0].numpy(), phantom.target


@pytest.fixture
def scans(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("signal.yaml").write_text(SIGNAL)
    Path("kspace.yaml").write_text(KSPACE)
    Path("scans").mkdir()
    for index in range(6):
        np.save(f"scans/case_{index}.npy", a_scan(index)[0])


def evaluated(folder: str = "run", *flags: str) -> dict:
    assert run("evaluate", folder, *flags) == 0
    return json.loads(sorted(Path(folder, "evaluations").glob("*/evaluation.json"))[-1].read_text())


def fraction(maps: np.ndarray) -> np.ndarray:
    water, fat = np.hypot(*maps[:2]), np.hypot(*maps[2:4])
    return fat / (water + fat)


# ── water and fat ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_maps_learn_to_reproduce_echoes_that_have_no_target(scans, capsys):
    """Of the scans that they are trained on, as there is nothing else to learn from (Jafari et al. 2021)."""
    residuals = []
    for steps in (2, 120):
        flags = "--data.fold", "null", "--train.steps", steps, "--overwrite"
        assert run("train", "--config", "signal.yaml", *flags) == 0
        record = evaluated("run", "--data.fold", "null")
        residuals.append(record["scores"]["signal_residual"]["value"])
    assert residuals[1] < 0.5 * residuals[0]
    scores = record["scores"]
    assert scores["signal_residual"]["references"]["least_squares"] < 0.01
    assert scores["swapped_from_least_squares"]["references"]["least_squares"] == 0
    assert "fat_fraction_error" not in scores
    assert record["definitions"]["echo_times"] == TIMES
    assert "least_squares" in capsys.readouterr().out


def test_the_residual_is_that_of_the_files(scans):
    """Predicted maps in files, and the body in weights/, by the signal equation itself."""
    Path("scans/images").mkdir()
    for file in Path("scans").glob("*.npy"):
        file.rename(f"scans/images/{file.name}")
    body = np.zeros((64, 64), np.uint8)
    body[20:40, 24:50] = 1
    Path("scans/weights").mkdir()
    for index in range(6):
        Image.fromarray(body).save(f"scans/weights/case_{index}.png")
    assert run("train", "--config", "signal.yaml", "--train.steps", 2) == 0
    record = evaluated()
    held_out = [case["name"] for case in record["per_case"]]
    assert run("predict", "run", *(f"scans/images/{name}.npy" for name in held_out), "--output", "out") == 0
    for case in record["per_case"]:
        maps, echoes = np.load(f"out/{case['name']}.npy"), np.load(f"scans/images/{case['name']}.npy")
        np.testing.assert_allclose(np.load(f"out/{case['name']}.fat_fraction.npy"), fraction(maps), atol=1e-6)
        modelled = signal_of_maps(torch.from_numpy(maps[None]), TIMES, 3.0)[0].numpy()
        left, power = (np.square(np.abs(x[:, body > 0])).sum() for x in (echoes - modelled, echoes))
        assert case["signal_residual"] == pytest.approx(left / power, rel=1e-4)


@pytest.mark.parametrize("kind", ["maps", "fraction"])
def test_known_maps_are_scored_and_change_no_weight(scans, kind):
    assert run("train", "--config", "signal.yaml", "--train.output", "alone", "--train.steps", 2) == 0
    for inner in ("images", "targets"):
        Path("pairs", inner).mkdir(parents=True)
    truths = {}
    for index in range(6):
        _, maps = a_scan(index)
        shutil.copy(f"scans/case_{index}.npy", "pairs/images")
        truths[f"case_{index}"] = fraction(maps)
        np.save(f"pairs/targets/case_{index}.npy", maps if kind == "maps" else truths[f"case_{index}"])
    assert run("train", "--config", "signal.yaml", "--data.path", "pairs", "--train.steps", 2) == 0
    weights = [next(Path(folder, "model").glob("*.safetensors")).read_bytes() for folder in ("alone", "run")]
    assert weights[0] == weights[1]
    record = evaluated()
    assert run("predict", "run", "scans", "--output", "out") == 0
    for case in record["per_case"]:
        found, truth = np.load(f"out/{case['name']}.fat_fraction.npy"), truths[case["name"]]
        error = np.nanmean(np.abs(found - truth))
        assert case["fat_fraction_error"] == pytest.approx(error, rel=1e-4)


def test_a_built_in_set_has_its_maps(scans):
    flags = ["--data.path", "water-fat-maps", "--objective.echo_times", "[1.2e-3, 2.2e-3, 3.2e-3, 4.2e-3, 5.2e-3]"]
    assert run("train", "--config", "signal.yaml", "--train.steps", 1, "--data.patch", 128, *flags) == 0


# ── k-space ───────────────────────────────────────────────────────────────────────────────────────


def kspace_of(image: np.ndarray) -> np.ndarray:
    """Return the centered orthonormal k-space of complex images (E, H, W), by NumPy."""
    return np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image, axes=(1, 2)), norm="ortho"), axes=(1, 2))


def test_a_reconstruction_keeps_the_measured_lines(scans):
    assert run("train", "--config", "kspace.yaml") == 0
    whole = a_scan(20)[0]
    lines = np.zeros(64, bool)
    lines[28:36] = lines[::5] = True
    measured = (kspace_of(whole) * lines).astype(np.complex64)
    np.save("measured.npy", measured)
    assert run("predict", "run", "measured.npy", "--output", "out", "--overlays") == 0
    channels = np.load("out/measured.npy")
    found = channels[0::2] + 1j * channels[1::2]
    np.testing.assert_allclose(kspace_of(found)[..., lines], measured[..., lines], atol=1e-4)
    np.testing.assert_allclose(np.load("out/measured.magnitude.npy"), np.abs(found), atol=1e-6)
    assert Image.open("out/overlays/measured.magnitude.png").size == (64, 64)


@pytest.mark.slow
def test_a_reconstruction_of_images_seen_is_better_than_the_zero_filled_one(scans):
    assert run("train", "--config", "kspace.yaml", "--data.fold", "null", "--train.steps", 150) == 0
    record = evaluated("run", "--data.fold", "null")
    row = record["scores"]["rmse"]
    assert row["value"] < 0.95 * row["references"]["zero_filled"]
    assert list(row["references"]) == ["zero_filled"]


@pytest.mark.parametrize("config", ["signal", "kspace"])
def test_a_resumed_training_equals_an_uninterrupted_one(scans, config):
    assert run("train", "--config", f"{config}.yaml", "--train.output", "whole", "--train.keep_checkpoints", 9) == 0
    copy_with_first_checkpoint("whole", "run")
    assert run("train", "--resume", "run") == 0
    assert differences(Path("whole"), Path("run")) == []


# ── mistakes ──────────────────────────────────────────────────────────────────────────────────────


def test_mistakes_are_refused_in_one_line(scans, capsys):
    signal, kspace = (
        lambda *flags, file=file: mistake(capsys, "train", "--config", file, *flags)
        for file in ("signal.yaml", "kspace.yaml")
    )
    assert "objective.echo_times: 3 for images of 4 echoes" in signal("--objective.echo_times", "[1e-3, 2e-3, 3e-3]")
    assert "objective.echo_times: three or more" in signal("--objective.echo_times", "[1e-3, 2e-3]")
    assert "objective.echo_times: needed" in signal("--objective.field_strength", "null")
    assert "augment.contrast: changes gray values" in signal("--augment.contrast", "0.2")
    assert "data.intensity: complex images keep" in signal("--data.intensity", "case")
    assert "k-space needs whole images" in kspace("--augment.rotate", 10)
    assert "data.patch: the network sees whole images, 64×64" in kspace("--data.patch", 32)
    np.save("scans/other.npy", a_scan(9, (64, 72))[0])
    assert "images of one size (got 64×64 and 64×72)" in kspace()
    np.save("scans/other.npy", np.abs(a_scan(9)[0][:1]))
    assert "data.channels: the image of other has 1" in signal()
    for file in Path("scans").glob("*.npy"):
        np.save(file, np.abs(np.load(file)[:1]))
    assert "complex images have a real and an imaginary channel each (got 1 channels)" in signal()


def test_settings_of_predictions_that_do_not_apply(scans, capsys):
    assert run("train", "--config", "kspace.yaml", "--train.steps", 1) == 0
    np.save("measured.npy", kspace_of(a_scan(8)[0]))
    assert "--tile: the network sees whole images" in mistake(capsys, "predict", "run", "measured.npy", "--tile", 32)
    assert "average: lines of k-space" in mistake(capsys, "predict", "run", "measured.npy", "--average")
