"""Folders from an untrusted source: no attack in them executes code, or writes outside of the run folder."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from helpers import run, write_image

from diffunet.core.settings import settings_from
from diffunet.runs.config import Config
from diffunet.runs.run import Run
from stress.program import SMALL_RUN

FORMAT_1 = Path(__file__).parents[1] / "fixtures/format1"
MARK = "executed"
"""File that a successful attack creates."""


class Attack:
    """Executes a command when it is unpickled."""

    def __reduce__(self):
        return os.system, (f"touch {Path(MARK).absolute()}",)


def poison(path: Path) -> None:
    """Write a file of `torch.save` that executes a command when it is unpickled."""
    torch.save({"state_dict": Attack()}, path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a run of two steps."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "small.yaml").write_text(SMALL_RUN)
    options = ["--train.steps", "2", "--train.output", folder / "run"]
    assert run("train", "--config", folder / "small.yaml", *options) == 0
    return folder / "run"


@pytest.fixture
def planted(trained, in_a_new_folder):
    """Return a copy of that run; everything beside it has to be unchanged afterwards."""
    shutil.copytree(trained, "run")
    Path("precious").mkdir()
    Path("precious/file").write_text("precious")
    yield Path("run")
    assert not Path(MARK).exists()
    assert Path("precious/file").read_text() == "precious"
    assert [path.name for path in Path("precious").iterdir()] == ["file"]


def test_the_attack_works_where_pickles_are_loaded(in_a_new_folder):
    poison(Path("a.pt"))
    torch.load("a.pt", weights_only=False)
    assert Path(MARK).exists()
    Path(MARK).unlink()
    pickle.loads(pickle.dumps(Attack()))
    assert Path(MARK).exists()


@pytest.mark.parametrize(
    ("file", "argv"),
    [
        ("model/diffusion_pytorch_model.safetensors", ["sample", "run"]),
        ("ema_snapshots/step_00000002.safetensors", ["ema", "run", "0.1"]),
        ("checkpoints/step_00000002/optimizer.safetensors", ["train", "--resume", "run", "--train.steps", "3"]),
        ("checkpoints/step_00000002/state.json", ["train", "--resume", "run", "--train.steps", "3"]),
        ("model/config.json", ["sample", "run"]),
        ("config.yaml", ["sample", "run"]),
        ("run.json", ["sample", "run"]),
    ],
)
def test_a_pickle_in_a_run_is_not_loaded(planted, capsys, file, argv):
    poison(planted / file)
    assert run(*argv) == 2
    assert Path(file).name in capsys.readouterr().err


@pytest.mark.parametrize("word", ["!!python/object/apply:os.system ['touch executed']", "!!python/name:os.system"])
def test_yaml_creates_no_objects(planted, capsys, word):
    Path("evil.yaml").write_text(f"train:\n  output: {word}\n")
    assert run("train", "--config", "evil.yaml") == 2
    assert run("train", "--train.steps", word) == 2
    (planted / "config.yaml").write_text(f"train: {word}\n...\n")
    assert run("sample", "run") == 2
    assert "evil.yaml:2: not valid YAML: could not determine a constructor" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_does_not_decide_where_images_are_written(planted, capsys):
    """Format 1 had a key for it, which is ignored there, and refused in format 2."""
    config = planted / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("sample:\n", "sample:\n  output: precious/images\n"))
    assert "precious/images" in config.read_text()
    assert run("sample", "run", "--num_images", "1", "--steps", "2") == 2
    assert "sample.output: unknown key" in capsys.readouterr().err
    shutil.copytree(FORMAT_1, "old")
    old = Path("old/config.yaml")
    old.write_text(old.read_text().replace("  output: null", "  output: precious/images"))
    assert "precious/images" in old.read_text()
    assert run("sample", "old", "--num_images", "1", "--steps", "2") == 0
    assert Path("old/images/000/00000.png").exists()
    config.write_text(text)
    assert run("sample", "run", "--num_images", "1", "--steps", "2") == 0
    assert run("evaluate", "run", "--num_images", "3", "--steps", "2") == 0
    assert (planted / "images/000/00000.png").exists()
    assert (planted / "evaluations/000/evaluation.json").exists()


@pytest.mark.slow
def test_a_run_does_not_decide_where_it_is_resumed(planted):
    config = planted / "config.yaml"
    config.write_text(config.read_text().replace("output: ", "output: precious/run #", 1))
    assert settings_from(config, Config).train.output == "precious/run"
    assert run("train", "--resume", "run", "--train.steps", "3") == 0
    assert (planted / "checkpoints/step_00000003").exists()


@pytest.mark.slow
def test_class_names_are_not_used_as_paths(planted):
    """The first class is sampled, written to the record, and exported."""
    for file in (planted / "config.yaml", planted / "model/config.json"):
        text = file.read_text()
        file.write_text(text.replace('"0"', '"../precious/x"').replace("- '0'", "- ../precious/x"))
    assert Run("run").config().class_names["label"][0] == "../precious/x"
    assert run("sample", "run", "--num_images", "1", "--steps", "2", "--output", "out") == 0
    assert json.loads(Path("out/metadata.jsonl").read_text())["label_name"] == "../precious/x"
    assert sorted(path.name for path in Path("out").iterdir()) == ["00000.png", "grid.png", "metadata.jsonl"]
    assert run("export", "run", "exported", "--label", "../precious/x") == 0


def test_checksums_of_files_elsewhere_are_refused(planted, capsys):
    sums = planted / "checkpoints/step_00000002/SHA256SUMS"
    sums.write_text(sums.read_text() + "0" * 64 + "  ../../../precious/file\n")
    assert run("train", "--resume", "run", "--train.steps", "3") == 2
    assert "SHA256SUMS: damaged" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("file", ["log.jsonl", ".lock", "curves.png", "samples/strip.png", "config.yaml"])
def test_symbolic_links_are_not_written_through(planted, file):
    link, text = planted / file, Path("precious/file").read_text()
    if file == "config.yaml":  # must be read first
        text = link.read_text()
        Path("precious/file").write_text(text)
    link.unlink(missing_ok=True)
    link.symlink_to(Path("precious/file").absolute())
    run("train", "--resume", "run", "--train.steps", "3")
    assert Path("precious/file").read_text() == text
    Path("precious/file").write_text("precious")


def test_weights_of_others_are_loaded_as_tensors_only(planted, capsys):
    poison(Path("evil.pt"))
    options = ["--attention_order", "new", "--config", "configs/adm64.yaml"]
    assert run("import", "evil.pt", "back", *options) == 2
    assert "evil.pt: not a file of tensors" in capsys.readouterr().err
    assert run("evaluate", "run", "--num_images", "3", "--features", "inception", "--weights", "evil.pt") == 2


@pytest.mark.slow
def test_a_diffusers_folder_executes_no_code(planted, capsys):
    assert run("export", "run", "folder", "--label", "7") == 0
    code = f"import pathlib; pathlib.Path({str(Path(MARK).absolute())!r}).touch()\nclass Evil: pass\n"
    for place in ("", "unet", "scheduler"):
        Path("folder", place, "evil.py").write_text(code)
        Path("folder", place, "__init__.py").write_text(code)
    index = json.loads(Path("folder/model_index.json").read_text())
    index |= {"_class_name": ["evil", "Evil"], "unet": ["evil", "Evil"]}
    Path("folder/model_index.json").write_text(json.dumps(index))
    network = json.loads(Path("folder/unet/config.json").read_text())
    Path("folder/unet/config.json").write_text(json.dumps(network | {"auto_map": {"AutoModel": "evil.Evil"}}))
    run("import", "folder", "back")
    shutil.rmtree("back", ignore_errors=True)
    weights = Path("folder/unet/diffusion_pytorch_model.safetensors")
    weights.unlink()
    poison(weights.with_suffix(".bin"))
    capsys.readouterr()
    assert run("import", "folder", "back") == 2
    assert "not a DDPMPipeline folder with safetensors" in capsys.readouterr().err


@pytest.mark.slow
def test_a_data_set_executes_no_code(planted):
    code = f"import pathlib; pathlib.Path({str(Path(MARK).absolute())!r}).touch()\n"
    for number in range(3):
        write_image(Path("photos") / f"{number}.png", "L", (8, 8), seed=number)
    for name in ("photos.py", "dataset.py", "__init__.py", "loading_script.py"):
        Path("photos", name).write_text(code)
    poison(Path("photos/data.pkl"))
    poison(Path("photos/dataset.pt"))
    Path("photos/dataset_infos.json").write_text("{")
    run("train", "--config", "run/config.yaml", "--data.path", "photos", "--train.output", "new")
