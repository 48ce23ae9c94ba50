"""Evaluation of predictions: of runs on held-out cases, and of folders of label images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import mistake, run
from PIL import Image

from diffunet.data.paired import load_pairs
from diffunet.data.pairs import PairConfig
from diffunet.models.config import LevelConfig, UNetConfig
from diffunet.objectives.regression import RegressionConfig
from diffunet.runs.evaluate_prediction import evaluate_files, evaluate_predictor, save_predictor_evaluation
from diffunet.runs.predict import ImagePredictor, Prediction
from diffunet.runs.predicted_arrays import Extras
from diffunet.runs.predicted_files import inputs_of, predict_files
from diffunet.runs.prediction import PredictConfig, PredictionConfig, model_file
from diffunet.runs.run import Run

SIZE = 32
UNET = UNetConfig(levels=(LevelConfig(channels=4, blocks=1),) * 2, middle_attention=False, norm_groups=2)


def quiet(text: str) -> None:
    """Print nothing."""


def write_pairs(folder: Path, cases: int = 8, instances: bool = False) -> None:
    """Write cells as squares of 200 on 50, with noise, and labels 0 and 255, or numbers."""
    random = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for case in range(cases):
        labels = np.zeros((SIZE, SIZE), np.uint8)
        for number in range(2):
            top, left = random.integers(2, 20), 2 + 16 * number + random.integers(0, 4)
            labels[top : top + 9, left : left + 9] = number + 1 if instances else 255
        image = np.where(labels > 0, 200, 50) + random.normal(0, 15, labels.shape)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"cell{case}.png")
        Image.fromarray(labels).save(folder / "labels" / f"cell{case}.png")


def make_run(folder: Path, data: PairConfig, **sections) -> Run:
    """Return a run with random weights, as if it was trained."""
    torch.manual_seed(0)
    config = PredictionConfig(unet=UNET, data=data, **sections)
    pairs = load_pairs(config.data, config.objective.type, log=quiet)
    config = config.resolve(pairs)
    found = Run(folder)
    found.create(config, files=model_file(config))
    predictor = config.build_predictor()
    torch.nn.init.normal_(list(predictor.unet.parameters())[-2], std=0.5)  # the last convolution starts at zero
    found.publish(predictor.normalized(input_mean=pairs.image.mean, input_std=pairs.image.std))
    return found


@pytest.fixture
def cells(in_a_new_folder):
    """Return a run of two classes."""
    write_pairs(Path("squares"))
    return make_run(Path("run"), PairConfig(path="squares", folds=2))


def exact(monkeypatch, off: int = 0) -> None:
    """Let every predictor find the squares of `write_pairs`, moved down by some pixels."""

    def predict(self, image):
        squares = torch.roll(image[0] > 125, off, 0)
        return Prediction(torch.stack([~squares, squares]).float(), torch.zeros(2, SIZE, SIZE))

    monkeypatch.setattr(ImagePredictor, "__call__", predict)


def test_a_perfect_prediction_has_perfect_scores_without_error(cells, monkeypatch):
    exact(monkeypatch)
    record = evaluate_predictor(cells, log=quiet).record
    names = "dice", "iou", "dice_pooled", "hausdorff95", "pixel_error", "calibration_error", "boundary_f1"
    best = dict(zip(names, (1, 1, 1, 0, 0, 0, 1), strict=True))
    assert {name: record["scores"][name]["value"] for name in best} == pytest.approx(best)
    assert {record["scores"][name]["error"] for name in best} == {0}
    assert record["counts"]["missed"]["value"] == record["counts"]["invented"]["value"] == 0


def test_a_known_wrong_prediction_has_the_scores_computed_by_hand(cells, monkeypatch):
    exact(monkeypatch, off=1)  # of the 9 lines of each square, 8 remain
    scores = evaluate_predictor(cells, log=quiet).record["scores"]
    assert scores["dice/255"]["value"] == pytest.approx(8 / 9)
    assert scores["pixel_error"]["value"] == pytest.approx(2 * 2 * 9 / SIZE**2)
    assert scores["hausdorff95/255"]["value"] == 1


def test_the_held_out_cases_of_a_run_are_scored_beside_references(cells):
    evaluation = evaluate_predictor(cells, log=quiet)
    record = evaluation.record
    held_out = load_pairs(PairConfig(path="squares", folds=2), "segmentation", log=quiet).split_fold()[1]
    assert [case["name"] for case in record["per_case"]] == [f"cell{index}" for index in held_out]
    assert record["cases"] == {"path": "squares", "fold": 0, "folds": 2, "trained_on": 0, "number": len(held_out)}
    assert record["scores"]["dice"]["references"].keys() == {"constant", "threshold"}
    assert record["scores"]["dice"]["references"]["threshold"] > 0.95
    assert record["references_fitted_on"] == f"{8 - len(held_out)} other cases"
    assert len(record["predictions"]["weights_sha256"]) == 64
    save_predictor_evaluation(evaluation, Path("record"))
    assert json.loads(Path("record/evaluation.json").read_text()) == record


def test_all_cases_include_those_trained_on(cells, capsys):
    held_out = len(evaluate_predictor(cells, log=quiet).record["per_case"])
    assert run("evaluate", "run", "--data.fold", "null", "--average", "--output", "all") == 0
    record = json.loads(Path("all/evaluation.json").read_text())
    assert record["cases"] == {"path": "squares", "fold": None, "folds": 2, "trained_on": 8 - held_out, "number": 8}
    assert record["predictions"]["average"] is True
    assert f"8 cases of squares (all); {8 - held_out} of them were trained on" in capsys.readouterr().out


def test_the_command_writes_the_record_and_the_worst_cases(cells, capsys):
    assert run("evaluate", "run") == 0
    output = capsys.readouterr().out
    record = json.loads(Path("run/evaluations/000/evaluation.json").read_text())
    dice = record["scores"]["dice"]
    assert f"{dice['value']:.4g} ± {dice['error']:.2g}" in output
    order = sorted(record["per_case"], key=lambda case: case["dice"])
    assert record["worst"] == [case["name"] for case in order[:5]]
    width, height = Image.open("run/evaluations/000/worst.png").size
    assert width > len(record["worst"]) * SIZE
    assert 4 * SIZE < height < 5 * SIZE + 40
    assert run("evaluate", "run") == 0
    assert Path("run/evaluations/001/evaluation.json").exists()


@pytest.mark.parametrize("labels", ["classes", "instances"])
def test_a_folder_of_predictions_has_the_scores_of_the_run(in_a_new_folder, labels):
    write_pairs(Path("squares"), instances=labels == "instances")
    found = make_run(Path("run"), PairConfig(path="squares", folds=2, labels=labels))
    parts = PredictConfig(watershed=None)  # which the files of classes determine as well
    own = evaluate_predictor(found, PairConfig(path="squares", fold=None, labels=labels), parts, log=quiet).record
    predictor = ImagePredictor([found], parts)
    pairs = load_pairs(PairConfig(path="squares", labels=labels), "segmentation", log=quiet)
    predict_files(predictor, inputs_of(["squares/images"], 1), Path("predicted"), Extras(probabilities=True))
    assert len(list(Path("predicted").glob("*.png"))) == len(pairs.names)
    data = PairConfig(targets="squares/labels", labels=labels)
    record = evaluate_files(Path("predicted"), data, log=quiet).record
    assert own["scores"].keys() - record["scores"].keys() == {"calibration_error", "brier"}
    for name, row in record["scores"].items():
        assert row["value"] == own["scores"][name]["value"], name
        assert row["error"] == own["scores"][name]["error"], name
        assert row["references"].keys() == {"constant"}
    assert {name: row["value"] for name, row in record["counts"].items()} == {
        name: row["value"] for name, row in own["counts"].items()
    }
    assert ("ap50" in record["scores"]) == (labels == "instances")


def test_a_folder_of_numbers_has_the_scores_of_the_run(in_a_new_folder, capsys):
    write_pairs(Path("squares"))
    found = make_run(Path("run"), PairConfig(path="squares", folds=2), objective=RegressionConfig())
    own = evaluate_predictor(found, PairConfig(path="squares", fold=None), log=quiet).record
    predict_files(ImagePredictor([found]), inputs_of(["squares/images"], 1), Path("predicted"))
    assert run("evaluate", "predicted", "--targets", "squares/labels", "--output", "record") == 0
    record = json.loads(Path("record/evaluation.json").read_text())
    assert record["scores"].keys() == own["scores"].keys()
    for name, row in record["scores"].items():
        assert row["value"] == pytest.approx(own["scores"][name]["value"], rel=1e-6), name
        assert row["references"].keys() == {"constant"}
    assert Path("record/worst.png").exists()
    for file in Path("predicted").iterdir():
        np.save(file, np.repeat(np.load(file), 2, axis=0))
    assert "has 2 channels, its target 1" in mistake(capsys, "evaluate", "predicted", "--targets", "squares/labels")
    Path("predicted/cell0.npy").write_bytes(b"broken")
    assert "not an image" in mistake(capsys, "evaluate", "predicted", "--targets", "squares/labels")


def test_cases_of_one_group_count_as_one_in_the_errors(in_a_new_folder):
    write_pairs(Path("squares"))
    found = make_run(Path("run"), PairConfig(path="squares", folds=2, fold=None))
    pairs = {"path": "squares", "fold": None}
    alone, grouped = (
        evaluate_predictor(found, PairConfig(**pairs, group=group), log=quiet).record["scores"]["dice"]
        for group in (None, "(.)")
    )
    assert alone["value"] == grouped["value"]
    assert alone["error"] is not None and grouped["error"] is None  # one group


def test_the_command_scores_a_folder(in_a_new_folder, capsys):
    write_pairs(Path("squares"))
    assert run("evaluate", "squares/labels", "--targets", "squares/labels", "--output", "record") == 0
    output = capsys.readouterr().out
    assert output.startswith("8 cases of labels (all)\n")
    record = json.loads(Path("record/evaluation.json").read_text())
    assert record["scores"]["dice"]["value"] == 1
    assert Path("record/worst.png").exists()
    assert run("evaluate", "squares/labels", "--targets", "squares/labels") == 0
    assert {path.name for path in Path().iterdir()} == {"squares", "record"}


def test_places_without_a_target_are_free_in_a_folder(in_a_new_folder):
    write_pairs(Path("squares"), cases=3)
    for folder in ("truth", "one", "other"):
        Path(folder).mkdir()
    for place, file in enumerate(sorted(Path("squares/labels").iterdir())):
        labels = np.array(Image.open(file))
        truth, one, other = labels.copy(), labels.copy(), labels.copy()
        truth[10:20], one[10:20], other[10:20] = 7, 99, 255 * (place % 2)
        for name, values in {"truth": truth, "one": one, "other": other}.items():
            Image.fromarray(values).save(Path(name) / file.name)
    data = PairConfig(targets="truth", ignore=7)
    first, second = (evaluate_files(Path(name), data, log=quiet).record for name in ("one", "other"))
    assert first["scores"] == second["scores"]
    assert first["scores"]["dice"]["value"] == 1


def test_a_regression_is_scored_with_identity_as_reference(in_a_new_folder):
    write_pairs(Path("squares"))
    found = make_run(Path("run"), PairConfig(path="squares", folds=2), objective=RegressionConfig())
    evaluation = evaluate_predictor(found, log=quiet)
    record = evaluation.record
    assert record["scores"].keys() == {"rmse", "mae", "pearson", "psnr", "ssim"}
    assert record["definitions"] == {"data_range": 255, "ergas_ratio": 4}
    rmse = record["scores"]["rmse"]
    assert rmse["references"]["identity"] < rmse["references"]["constant"] < rmse["value"]
    order = sorted(record["per_case"], key=lambda case: -case["rmse"])
    assert record["worst"] == [case["name"] for case in order[:5]]
    assert not record["counts"]
    save_predictor_evaluation(evaluation, Path("record"))
    assert Image.open("record/worst.png").height > 4 * SIZE


def test_mistakes_are_one_line(cells, capsys):
    for folder, name, size in (("strangers", "x", SIZE), ("small", "cell0", 16), ("empty", "", 0)):
        Path(folder).mkdir()
        if name:
            Image.fromarray(np.zeros((size, size), np.uint8)).save(Path(folder) / f"{name}.png")
    targets = "--targets", "squares/labels"
    assert "no image in strangers has the name of a target in squares/labels" in mistake(
        capsys, "evaluate", "strangers", *targets
    )
    assert mistake(capsys, "evaluate", "small", *targets) == (
        "cell0: the prediction has 16×16 pixels, its target 32×32; crop or scale one"
    )
    assert "no image in empty" in mistake(capsys, "evaluate", "empty", *targets)
    assert mistake(capsys, "evaluate", "nowhere", *targets).startswith("nowhere: no such folder")
    assert mistake(capsys, "evaluate", "run", *targets).startswith("run: a run, ")
    assert mistake(capsys, "evaluate", "small", *targets, "--tile", "16").startswith("--tile: applies to predicting")
    assert mistake(capsys, "evaluate", "run", "--data.path", "nowhere").startswith("data.path: nowhere is no folder")
    assert mistake(capsys, "evaluate", "run", "--data.path", "stain").startswith("data.path: stain is no data set for")


def test_a_run_without_held_out_cases_is_refused(in_a_new_folder, capsys):
    write_pairs(Path("squares"))
    make_run(Path("run"), PairConfig(path="squares", fold=None))
    assert mistake(capsys, "evaluate", "run") == (
        "run: trained on all of its cases; score others with --data.path, or these with --data.fold null"
    )
    assert run("evaluate", "run", "--data.fold", "null") == 0
