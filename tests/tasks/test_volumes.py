"""Predictors of volumes from files to files: grids, spacing, windows, sparse labels, resuming, memory."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from helpers import copy_with_first_checkpoint, mistake, run

from diffunet.core.storage import load_tensors
from diffunet.runs.predict import ImagePredictor
from diffunet.runs.prediction import PredictionConfig, load_predictor
from diffunet.runs.run import Run
from stress.crash import differences
from stress.program import ROOT, program

WEIGHTS = "diffusion_pytorch_model.safetensors"
CONFIG = """
objective: {type: segmentation}
unet:
  dims: 3
  levels: [{channels: 4, blocks: 1}, {channels: 8, blocks: 1, halves: [y, x]}]
  middle_attention: false
  norm_groups: 2
data: {path: volumes, folds: 4}
augment: {mirror: [x], rotate: 15, elastic: 1, scale: 0.1}
train:
  output: run
  steps: 6
  batch_size: 2
  learning_rate: 1e-2
  checkpoint_every: 2
  preview_every: 3
"""
OBLIQUE = np.array([[-1.1, 0.15, 0.1, 30], [0.2, 1.3, -0.1, -40], [0.05, 0.1, 2.4, 7], [0, 0, 0, 1]])
"""x runs to the left, and all axes are tilted."""


def ball(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a bright ball in noise, and where it is, axes (x, y, z) of a NIfTI."""
    center = [side * rng.uniform(0.35, 0.65) for side in shape]
    inside = sum(((n - c) / (0.3 * s)) ** 2 for n, c, s in zip(np.indices(shape), center, shape, strict=True)) < 1
    return (600 * inside + rng.normal(0, 100, shape)).astype(np.int16), inside.astype(np.uint8)


def write_volumes(folder: Path, count: int = 8, affine: np.ndarray = OBLIQUE, scale: float = 1.0) -> None:
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        image, target = ball((18 + index, 20, 12), rng)
        nibabel.save(nibabel.Nifti1Image(scale * image, affine), folder / "images" / f"case_{index}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(target, affine), folder / "labels" / f"case_{index}.nii.gz")


@pytest.fixture
def volumes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    Path("volumes.yaml").write_text(CONFIG)
    write_volumes(Path("volumes"))


def train(*flags) -> None:
    assert run("train", "--config", "volumes.yaml", *flags) == 0


@pytest.mark.slow
def test_a_prediction_has_the_grid_of_its_volume(volumes, capsys):
    """With other spacings than that of the training; flips and axes as in the file."""
    train("--data.spacing", "[2.4, 1.3, 1.1]", "--train.steps", 60)
    assert Run("run").config(PredictionConfig).data.spacing == (2.4, 1.3, 1.1)
    rng = np.random.default_rng(5)
    image, target = ball((20, 21, 17), rng)
    finer = OBLIQUE @ np.diag([1.0, 1.0, 0.7, 1])
    turned = nibabel.Nifti1Image(image, finer).as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    Path("new").mkdir()
    for name, volume in (("fine", nibabel.Nifti1Image(image, finer)), ("turned", turned)):
        nibabel.save(volume, f"new/{name}.nii.gz")
    capsys.readouterr()
    assert run("predict", "run", "new", "--output", "out", "--probabilities", "--overlays", "--objects") == 0
    found = {name: nibabel.load(f"out/{name}.nii.gz") for name in ("fine", "turned")}
    for name, volume in found.items():
        given = nibabel.load(f"new/{name}.nii.gz")
        assert volume.shape == given.shape
        np.testing.assert_allclose(volume.affine, given.affine, atol=1e-4)
        assert set(np.unique(volume.get_fdata())) <= {0, 1} and np.asanyarray(volume.dataobj).dtype == np.uint8
    back = nibabel.as_closest_canonical(found["turned"]).get_fdata()
    np.testing.assert_array_equal(back, nibabel.as_closest_canonical(found["fine"]).get_fdata())
    predicted = found["fine"].get_fdata() > 0
    assert 2 * (predicted & (target > 0)).sum() / (predicted.sum() + target.sum()) > 0.9
    probabilities = nibabel.load("out/fine.probabilities.nii.gz").get_fdata()
    assert probabilities.shape == (*image.shape, 2)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=2e-3)
    np.testing.assert_array_equal(probabilities.argmax(-1), predicted)
    assert Path("out/overlays/fine.png").exists() and Path("out/objects/fine.nii.gz").exists()


@pytest.mark.slow
def test_distances_are_in_millimeters(volumes, capsys):
    """Those of MONAI for the files that `predict` writes."""
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance

    train("--train.steps", 40)
    assert run("evaluate", "run") == 0
    assert "distances in millimeters" in capsys.readouterr().out
    record = json.loads(next(Path("run/evaluations").rglob("evaluation.json")).read_text())
    assert record["definitions"]["distances_in"] == "millimeters"
    spacing = Run("run").config(PredictionConfig).data.spacing
    expected = np.linalg.norm(OBLIQUE[:3, :3], axis=0)
    np.testing.assert_allclose(spacing, expected[::-1], rtol=1e-3)
    for case in record["per_case"]:
        assert run("predict", "run", f"volumes/images/{case['name']}.nii.gz", "--output", case["name"]) == 0
        files = f"{case['name']}/{case['name']}.nii.gz", f"volumes/labels/{case['name']}.nii.gz"
        masks = [torch.from_numpy(nibabel.load(file).get_fdata())[None, None] for file in files]
        distance = compute_hausdorff_distance(*masks, include_background=True, percentile=95, spacing=tuple(expected))
        assert case["hausdorff95/1"] == pytest.approx(float(distance), rel=1e-4)


@pytest.mark.slow
def test_files_of_predictions_have_the_scores_of_the_run(volumes, capsys):
    train("--train.steps", 40)
    assert run("evaluate", "run") == 0
    record = json.loads(next(Path("run/evaluations").rglob("evaluation.json")).read_text())
    names = [case["name"] for case in record["per_case"]]
    assert run("predict", "run", *(f"volumes/images/{name}.nii.gz" for name in names), "--output", "out") == 0
    assert run("evaluate", "out", "--targets", "volumes/labels", "--output", "scores") == 0
    again = json.loads(Path("scores/evaluation.json").read_text())
    for score in ("dice", "hausdorff95", "boundary_f1/1"):
        assert again["scores"][score]["value"] == pytest.approx(record["scores"][score]["value"], rel=1e-6)


def test_predictions_of_formats_that_are_only_read_are_nifti(volumes):
    train()
    header = "ObjectType = Image\nNDims = 3\nBinaryData = True\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 5 6 7\n"
    header += "ElementSpacing = 1.1 1.3 2.4\nDimSize = 18 20 12\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    values = np.zeros((12, 20, 18), np.int16)
    Path("scan.mha").write_bytes(header.encode() + values.tobytes())
    assert run("predict", "run", "scan.mha", "--output", "out", "--probabilities") == 0
    found = nibabel.load("out/scan.nii.gz")
    assert found.shape == (18, 20, 12)
    np.testing.assert_allclose(found.header.get_zooms(), (1.1, 1.3, 2.4), rtol=1e-5)
    assert nibabel.load("out/scan.probabilities.nii.gz").shape == (18, 20, 12, 2)


def test_a_resumed_training_of_volumes_equals_an_uninterrupted_one(volumes):
    train("--train.output", "whole", "--train.keep_checkpoints", 9)
    copy_with_first_checkpoint("whole", "run")
    assert run("train", "--resume", "run") == 0
    assert differences(Path("whole"), Path("run")) == []


@pytest.mark.slow
def test_cases_in_files_give_the_same_weights(volumes, capsys):
    train("--train.output", "kept")
    capsys.readouterr()
    for _ in range(2):  # decoded, then found
        train("--data.memory_budget", 0, "--data.workers", 0, "--overwrite")
        assert "kept in" in capsys.readouterr().out
        weights = [load_tensors(Path(folder) / "model" / WEIGHTS) for folder in ("kept", "run")]
        assert all(torch.equal(*(each[name] for each in weights)) for name in weights[0])
    folders = list(Path("home/.cache/diffunet/cases").iterdir())
    changed = nibabel.load("volumes/labels/case_0.nii.gz")
    nibabel.save(
        nibabel.Nifti1Image(1 - np.asanyarray(changed.dataobj), changed.affine), "volumes/labels/case_0.nii.gz"
    )
    train("--data.memory_budget", 0, "--overwrite")
    assert len(list(Path("home/.cache/diffunet/cases").iterdir())) == len(folders) + 1


def test_voxels_without_a_label_change_no_weight(volumes):
    """Sparse annotation: three planes of each volume have labels."""
    for index in range(8):
        file = f"volumes/labels/case_{index}.nii.gz"
        volume = nibabel.load(file)
        target = np.asanyarray(volume.dataobj)
        sparse = np.full_like(target, 9)
        sparse[9], sparse[:, 10], sparse[:, :, 6] = target[9], target[:, 10], target[:, :, 6]
        nibabel.save(nibabel.Nifti1Image(sparse, volume.affine), file)
    train("--data.ignore", 9, "--train.output", "first")
    for index in range(8):
        file = f"volumes/labels/case_{index}.nii.gz"
        volume = nibabel.load(file)
        target = np.asanyarray(volume.dataobj)
        nibabel.save(nibabel.Nifti1Image(np.where(target == 9, 7, target).astype(np.uint8), volume.affine), file)
    train("--data.ignore", 7, "--train.output", "second")
    kept = [(Path(folder) / "model" / WEIGHTS).read_bytes() for folder in ("first", "second")]
    assert kept[0] == kept[1]


def test_labels_beyond_some_slices_change_no_weight(volumes, capsys):
    """Those of the training alone: held-out volumes keep all of theirs."""
    flags = "--data.slices", "[1, 0, 1]", "--data.fold_by", "order"
    train(*flags, "--train.output", "first")
    share = float(capsys.readouterr().out.split("%")[-2].split()[-1])
    assert 10 < share < 18  # a plane of 12, and one of 18 to 25
    pairs = Run("first").config(PredictionConfig).load(lambda line: None)
    trained, held_out = pairs.split_fold()
    assert all((pairs.cases[index].target == -1).any() for index in trained)
    assert not any((pairs.cases[index].target == -1).any() for index in held_out)
    for index in trained:
        file = f"volumes/labels/{pairs.names[index]}.nii.gz"
        target = np.asanyarray(nibabel.load(file).dataobj)
        unknown = np.flip((pairs.cases[index].target == -1).numpy().transpose(2, 1, 0), 0)  # x runs to the left
        nibabel.save(nibabel.Nifti1Image(np.where(unknown, 1 - target, target), OBLIQUE), file)
    train(*flags, "--train.output", "second")
    kept = [(Path(folder) / "model" / WEIGHTS).read_bytes() for folder in ("first", "second")]
    assert kept[0] == kept[1]


@pytest.mark.slow
def test_intensities_of_a_case_need_no_common_scale(volumes):
    """The same weights and predictions for images times a factor of their own, with case alone."""
    train("--data.intensity", "case", "--train.output", "plain")
    write_volumes(Path("volumes"), scale=3.0)
    train("--data.intensity", "case", "--train.output", "scaled")
    train("--data.intensity", "set", "--train.output", "set")
    image = torch.from_numpy(np.ascontiguousarray(nibabel.load("volumes/images/case_0.nii.gz").get_fdata().T))[None]
    outputs = [ImagePredictor([Run(name)])(image.float()).mean for name in ("plain", "scaled")]
    torch.testing.assert_close(*outputs, atol=1e-3, rtol=1e-3)
    halves = [ImagePredictor([Run("set")])(factor * image.float()).mean for factor in (1, 0.3)]
    assert (halves[0] - halves[1]).abs().max() > 0.01


def test_a_window_is_part_of_the_weights(volumes):
    """Values beyond it make no difference, and `foreground` finds it from the labelled places."""
    train("--data.intensity", "foreground")
    config = Run("run").config(PredictionConfig)
    low, high = config.data.window
    assert 200 < low < 500 and 700 < high < 1000  # 600 ± 2.6 · 100
    window = load_predictor(Run("run")).input_window
    assert window.tolist() == pytest.approx([low, high])
    image = torch.randn(1, 12, 20, 18) * 300 + 300
    predict = ImagePredictor([Run("run")])
    torch.testing.assert_close(predict(image).mean, predict(image.clamp(low, high)).mean)
    assert (predict(image).mean - predict(image.clamp(low + 100, high)).mean).abs().max() > 1e-4


@pytest.mark.slow
def test_nested_regions_are_trained_and_scored(volumes, capsys):
    for index in range(8):  # a core inside
        file = f"volumes/labels/case_{index}.nii.gz"
        target = np.asanyarray(nibabel.load(file).dataobj)
        inner = np.roll(target, 3, 0) & np.roll(target, -3, 0) & target
        nibabel.save(nibabel.Nifti1Image(target + inner, OBLIQUE), file)
    train("--data.regions", "{whole: [1, 2], core: [2]}")
    capsys.readouterr()
    assert run("evaluate", "run") == 0
    table = capsys.readouterr().out
    assert "dice/whole" in table and "dice/core" in table
    record = json.loads(next(Path("run/evaluations").rglob("evaluation.json")).read_text())
    assert record["scores"]["dice/core"]["value"] == record["scores"]["dice/2"]["value"]
    train("--train.output", "plain")
    first, second = (load_tensors(Path(name) / "model" / WEIGHTS) for name in ("run", "plain"))
    assert any(not torch.equal(first[name], second[name]) for name in first)


MISTAKES = [
    (["--data.regions", "{whole: [1, 4]}"], "data.regions.whole: 4 is no class; the classes are 0, 1"),
    (["--data.regions", "{all: [0, 1]}"], "data.regions.all: needs some of the classes"),
    (["--data.regions", "{none: []}"], "data.regions.none"),
    (["--unet.dims", "2"], "unet.dims"),
    (["--data.patch", "[8, 8]"], "data.patch: 2 sides for 3 axes"),
    (["--data.spacing", "[1, 1]"], "data.spacing"),
    (["--data.spacing", "[1, 1, 0]"], "data.spacing"),
    (["--data.intensity", "[5, 5]"], "data.intensity"),
    (["--data.path", "tubules", "--unet.dims", "2"], "tubules"),
    (["--data.path", "membranes"], "unet.dims: the built-in set membranes has 2 axes"),
    (["--augment.mirror", "[w]"], "augment.mirror"),
]


@pytest.mark.parametrize(("flags", "message"), MISTAKES)
def test_a_mistake_is_one_line(volumes, capsys, flags, message):
    assert message in mistake(capsys, "train", "--config", "volumes.yaml", *flags)


def test_volumes_that_do_not_belong_together(volumes, capsys):
    label = nibabel.load("volumes/labels/case_2.nii.gz")
    target = np.asanyarray(label.dataobj)
    nibabel.save(nibabel.Nifti1Image(target, OBLIQUE @ np.diag([1, 1, 1.1, 1])), "volumes/labels/case_2.nii.gz")
    assert "voxels from where" in mistake(capsys, "train", "--config", "volumes.yaml")
    nibabel.save(nibabel.Nifti1Image(target[:-1], OBLIQUE), "volumes/labels/case_2.nii.gz")
    assert "case_2: the image has" in mistake(capsys, "train", "--config", "volumes.yaml")
    nibabel.save(nibabel.Nifti1Image(target + 0.5, OBLIQUE), "volumes/labels/case_2.nii.gz")
    assert "fractions, not labels" in mistake(capsys, "train", "--config", "volumes.yaml")
    Path("volumes/labels/case_2.nii.gz").write_bytes(b"no volume")
    assert "volumes/labels/case_2.nii.gz" in mistake(capsys, "train", "--config", "volumes.yaml")


@pytest.mark.slow
def test_a_killed_training_of_volumes_in_two_processes_is_resumed(volumes):
    for output in ("whole", "run"):
        flags = ["--train.keep_checkpoints", "9", "--train.output", output]
        process = program(ROOT / "train.py", "--config", "volumes.yaml", *flags, processes=2)
        assert process.wait(timeout=180) == 0
    for step in (4, 6):
        shutil.rmtree(f"run/checkpoints/step_{step:08d}")
    process = program(ROOT / "train.py", "--resume", "run", processes=2)
    assert process.wait(timeout=180) == 0
    assert differences(Path("whole"), Path("run")) == []
