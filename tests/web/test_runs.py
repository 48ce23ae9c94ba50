"""The list of runs: nothing outside of the folder, whatever a client names."""

import pytest

from diffunet.core.errors import UserError
from diffunet.runs.config import Config
from diffunet.runs.prediction import PredictionConfig
from diffunet.runs.run import Run
from diffunet.web.runs import RunFolder


@pytest.fixture
def runs(tmp_path):
    """Return a folder of two runs beside a third one that is not in it."""
    for name in ("runs/a", "runs/b", "secret"):
        Run(tmp_path / name).create(Config())
    (tmp_path / "runs" / "photos").mkdir()
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "runs" / "file.yaml").touch()
    return RunFolder(tmp_path / "runs")


def test_the_runs_of_a_folder(runs):
    assert sorted(runs.names()) == ["a", "b"]
    assert runs.open("a").folder == runs.folder / "a"


def test_runs_that_predict_are_listed_and_others_are_not(runs):
    Run(runs.folder / "p").create(PredictionConfig())
    Run(runs.folder / "c").create(PredictionConfig())
    (runs.folder / "c" / "run.json").write_text('{"format": 2, "task": "classification"}')
    assert sorted(runs.names()) == ["a", "b", "p"]
    assert runs.open("p").task == "prediction"
    with pytest.raises(UserError, match="c: no such run"):
        runs.open("c")


def test_a_run_alone(runs):
    alone = RunFolder(runs.folder / "a")
    assert alone.names() == ["a"]
    assert alone.open("a").folder == runs.folder / "a"
    with pytest.raises(UserError, match="b: no such run"):
        alone.open("b")


@pytest.mark.parametrize(
    "name", ["../secret", "link", "a/../../secret", "/etc", "", ".", "..", "a/", "a\0", None, 3, ["a"]]
)
def test_path_tricks(runs, name):
    with pytest.raises(UserError, match="no such run"):
        runs.open(name)


def test_a_folder_without_runs(tmp_path):
    with pytest.raises(UserError, match="photos: no such folder; python train.py makes a run"):
        RunFolder(tmp_path / "photos").check()
    with pytest.raises(UserError, match="no run to show in it; python train.py makes one"):
        RunFolder(tmp_path).check()


def test_a_damaged_run_is_listed_with_its_problem(runs):
    (runs.folder / "a" / "run.json").write_text("{")
    assert "a" in runs.names()
    with pytest.raises(UserError, match=r"run\.json"):
        runs.open("a")
