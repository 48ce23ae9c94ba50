"""Runs of format 1, written by the former version, are sampled, evaluated, exported and resumed.

tests/fixtures/format1_expected holds results of the former version: of `evaluate --num_images 60`, and the weights
after `--resume --train.steps 40`.
"""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import mistake, run, write_image
from PIL import Image

from diffunet.conditions.augmentation import AugmentationConfig
from diffunet.conditions.label import LabelConfig
from diffunet.core.errors import UserError
from diffunet.core.settings import settings_from, to_yaml
from diffunet.core.storage import load_tensors
from diffunet.models.denoiser import TimeConfig
from diffunet.objectives.ddpm import DDPM
from diffunet.objectives.edm import EDMConfig
from diffunet.runs.config import Config, ModelConfig
from diffunet.runs.figures import save_grid
from diffunet.runs.migration import migrate_config, migrate_folder, migrate_model
from diffunet.runs.run import Run, load_run

FIXTURES = Path(__file__).parents[1] / "fixtures"
EXPECTED = FIXTURES / "format1_expected"
WEIGHTS = "model/diffusion_pytorch_model.safetensors"


@pytest.fixture
def old(in_a_new_folder):
    """A copy of the run of format 1, 30 steps long."""
    shutil.copytree(FIXTURES / "format1", "old")
    return Path("old")


@pytest.fixture
def former_sampler(monkeypatch):
    """Sample with the steps that dpm++ had in the former version: those of diffusers in its continuous schedule."""

    def sampler(self, name, steps, size=None):
        assert name == "dpm++"
        options = {"thresholding": True, "sample_max_value": 1.0, "use_lu_lambdas": True, "final_sigmas_type": "zero"}
        scheduler = self.config.scheduler("DPMSolverMultistepScheduler", **options)
        scheduler.set_timesteps(steps)
        return scheduler

    monkeypatch.setattr(DDPM, "sampler", sampler)


def max_difference(a: Path, b: Path) -> int:
    a, b = (np.array(Image.open(path)).astype(int) for path in (a, b))
    assert a.shape == b.shape
    return int(abs(a - b).max())


def test_sampling_reproduces_the_last_preview(old, former_sampler):
    """20 images of the classes 1 and 7, guided; the former version wrote the preview and the single image."""
    assert run("sample", "old") == 0
    images = torch.stack([torch.tensor(np.array(Image.open(f"old/images/000/{n:05d}.png"))) for n in range(20)])[
        :, None
    ]
    save_grid(images, 8, Path("grid.png"), columns=10)  # the former layout: one column for each class of the run
    assert max_difference(Path("grid.png"), old / "samples/step_00000030.png") <= 1
    assert max_difference(Path("old/images/000/00000.png"), EXPECTED / "00000.png") <= 1
    records = [json.loads(line) for line in Path("old/images/000/metadata.jsonl").read_text().splitlines()]
    assert [record["label"] for record in records] == [1, 7] * 10


@pytest.mark.slow
def test_evaluation_gives_the_former_figures(old, former_sampler):
    assert run("evaluate", "old", "--num_images", "60", "--output", "record") == 0
    found = json.loads(Path("record/evaluation.json").read_text())
    expected = json.loads((EXPECTED / "evaluation.json").read_text())
    pairs = [(found["metrics"][name], expected["metrics"][name]) for name in expected["metrics"]]
    pairs += [(found["memorization"]["features"], expected["memorised"]["features"])]
    pairs += [(found["class_accuracy"], expected["named_as_asked"])]
    assert found["metrics"].keys() == expected["metrics"].keys()
    for now, before in pairs:
        assert before.keys() <= now.keys()
        for name, value in before.items():
            assert now[name] == pytest.approx(value, rel=1e-6, abs=1e-9), name
    assert found["real"] == expected["real"]
    assert found["features"] == expected["features"]


@pytest.mark.slow
def test_a_resumed_run_has_the_former_weights_and_is_of_format_2(old, capsys):
    snapshots = sorted(file.name for file in (old / "averages").iterdir())
    assert run("train", "--resume", "old", "--train.steps", "40") == 0
    expected = load_tensors(EXPECTED / "resumed_to_40.safetensors")
    found = load_tensors(old / WEIGHTS)
    assert found.keys() == expected.keys()
    torch.manual_seed(0)
    same_dropout = int((F.dropout(torch.ones(4096), 0.1) > 0).sum()) == 3661  # torch 2.6 draws other masks
    for name, tensor in expected.items():  # on a CPU with other kernels they are 2e-5 off
        torch.testing.assert_close(found[name], tensor, atol=1e-4 if same_dropout else 0.03, rtol=0)
    assert any((tensor != load_tensors(FIXTURES / "format1" / WEIGHTS)[name]).any() for name, tensor in found.items())
    assert json.loads((old / "run.json").read_text()) == {"format": 2, "task": "generation"}
    config = Run("old").config()
    assert config == settings_from(old / "config.yaml", Config)  # without migration
    assert config.train.steps == 40
    assert settings_from(old / "model/config.json", ModelConfig).conditions == config.conditions
    assert not (old / "averages").exists()
    assert {file.name for file in (old / "ema_snapshots").iterdir()} >= set(snapshots)
    assert {file.name for file in (old / "checkpoints/step_00000040").glob("ema*")} == {
        "ema.safetensors",
        "ema_0.05.safetensors",
        "ema_0.1.safetensors",
    }
    lines = [json.loads(line) for line in (old / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert [line["step"] for line in lines if "val_loss" in line] == [15, 30, 40]
    assert run("sample", "old", "--num_images", "2") == 0
    assert run("ema", "old", "0.1") == 0
    assert run("train", "--resume", "old", "--train.steps", "41") == 0


@pytest.mark.slow
def test_former_images_are_kept_beside_new_ones(old):
    (old / "pictures/000").mkdir(parents=True)
    (old / "pictures/000/grid.png").touch()
    assert run("train", "--resume", "old", "--train.steps", "31") == 0
    assert (old / "images/000/grid.png").exists()
    assert run("sample", "old", "--num_images", "2") == 0
    assert (old / "images/001/grid.png").exists()


def test_resuming_without_more_steps_is_complete(old, capsys):
    assert run("train", "--resume", "old") == 0
    output = capsys.readouterr().out.strip().splitlines()  # before it, another version of torch
    assert output[-1] == "old: complete at step 30; a larger --train.steps continues it"


def test_changes_are_checked_against_the_migrated_config(old, capsys):
    line = mistake(capsys, "train", "--resume", "old", "--objective.beta_schedule", "linear")
    assert line.startswith("--objective.beta_schedule: cannot change from cosine to linear")


def test_ema_is_reconstructed_before_resuming(old):
    before = load_tensors(old / WEIGHTS)
    assert run("ema", "old", "0.1") == 0
    after = load_tensors(old / WEIGHTS)
    assert after.keys() == before.keys()
    assert any((after[name] != before[name]).any() for name in after)
    kept = load_tensors(old / "checkpoints/step_00000030/average_0.1.safetensors")
    for name, tensor in kept.items():  # snapshots are in half precision
        torch.testing.assert_close(after[name], tensor, atol=2e-3, rtol=0)


def test_ema_with_real_images_of_another_shape_is_one_line(old, capsys):
    before = (old / WEIGHTS).read_bytes()
    few = ["--num_images", "10", "--steps", "2"]
    for flags in (["--data.path", "photos", "--data.channels", "3"], ["--data.resolution", "16"]):
        write_image(Path("photos/0.png"), "RGB", (8, 8))
        for command, argv in (("ema", ["old", "0.05", "0.1"]), ("evaluate", ["old"])):
            line = mistake(capsys, command, *argv, *few, *flags)
            assert line.startswith("--data: the run samples images of ")
            assert line.endswith("; use matching images")
    assert mistake(capsys, "ema", "old", "0.05", "0.1", *few, "--data.channels", "3").startswith("data: ")
    assert (old / WEIGHTS).read_bytes() == before


@pytest.mark.slow
def test_export_and_import_before_resuming(old):
    assert run("export", "old", "exported", "--label", "7") == 0
    assert run("import", "exported", "back") == 0
    how = ["--num_images", "2", "--steps", "3", "--guidance_scale", "1"]
    assert run("sample", "back", *how, "--output", "a") == 0
    assert run("sample", "old", *how, "--label", "7", "--output", "b") == 0
    assert max_difference(Path("a/00001.png"), Path("b/00001.png")) <= 1


def test_describe_before_resuming(old, capsys):
    assert run("describe", "old") == 0
    parameters = sum(parameter.numel() for parameter in Run("old").denoiser().parameters())
    assert f"(label: 10 classes): {parameters:,} parameters" in capsys.readouterr().out


def test_a_run_samples_from_python(old):
    batch = load_run("old").sample(num_images=3, conditions={"label": 7})
    assert batch.pixels.shape == (3, 1, 8, 8)
    assert batch.conditions == {"label": [7, 7, 7]}


# ── values ────────────────────────────────────────────────────────────────────────────────────────


def migrated(values: dict) -> Config:
    """Return the config of values of format 1, written to a file and read as a run reads it."""
    Path("config.yaml").write_text(to_yaml(values))
    return settings_from(Path("config.yaml"), Config, transform=migrate_config)


def test_the_objective_section_becomes_the_objective(in_a_new_folder):
    edm = {"sigma_data": 0.4, "log_sigma_mean": -1.0, "log_sigma_std": 1.5, "condition_dropout": 0.2}
    old = {"objective": "edm", "edm": edm, "diffusion": {"prediction_type": "epsilon"}, "flow": {}}
    assert migrated(old).objective == EDMConfig(sigma_data=0.4, P_mean=-1.0, P_std=1.5, condition_dropout=0.2)
    flow = migrated({"objective": "flow", "flow": {"condition_dropout": 0.3}})
    assert (flow.objective.type, flow.objective.condition_dropout) == ("flow", 0.3)
    ddpm = migrated({"diffusion": {"prediction_type": "epsilon"}})  # the default was diffusion
    assert (ddpm.objective.type, ddpm.objective.prediction_type) == ("ddpm", "epsilon")


def test_classes_become_a_label_condition(in_a_new_folder):
    old = {"conditions": {"classes": 2, "class_names": ["a", "b"], "augmentation": 9, "time_freq_shift": 1}}
    config = migrated(old)
    assert config.conditions == {
        "label": LabelConfig(num_classes=2, class_names=("a", "b")),
        "augmentation": AugmentationConfig(width=9),
    }
    assert config.time == TimeConfig(freq_shift=1)
    assert migrated({"conditions": {"classes": 0}}).conditions == {}
    assert migrated({"conditions": {"classes": "auto"}}).conditions == {"label": LabelConfig()}


def test_the_label_column_becomes_the_column_of_the_condition(in_a_new_folder):
    old = {"conditions": {"classes": 2}, "data": {"path": "x", "label_column": "kind"}}
    assert migrated(old).labels["label"].column == "kind"
    assert migrated(old | {"conditions": {"classes": 0}}).conditions == {}
    assert migrated({"conditions": {"classes": 2}, "data": {"label_column": None}}).labels["label"].column is None


def test_runtime_and_sampled_labels_move_to_their_sections(in_a_new_folder):
    runtime = {"mixed_precision": "bf16", "channels_last": False, "compile": True}
    config = migrated({"train": runtime | {"steps": 5}, "sample": runtime | {"label": "3", "output": None}})
    assert config.train.runtime == config.sample.runtime
    assert config.train.runtime.model_dump() == runtime
    assert config.sample.conditions == {"label": "3"}
    assert migrated({"sample": {"label": None, "steps": 3}}).sample.conditions == {}


def test_values_of_format_2_stay():
    config = Config(conditions={"label": LabelConfig(num_classes=2), "digit": LabelConfig(column="classes")})
    values = config.model_dump(mode="json", include=set(ModelConfig.model_fields))
    assert migrate_model(values) == values


def test_migration_leaves_its_argument_unchanged():
    old = {"data": {"label_column": "x"}, "train": {"compile": True}, "sample": {"label": "3"}, "conditions": {}}
    copy = json.loads(json.dumps(old))
    migrate_config(old)
    assert old == copy


MALFORMED = [5, None, "word", [], [1], {}, {"classes": {}}, {"classes": -1}, {"type": "edm"}, {"label": 3}]


@pytest.mark.parametrize("section", ["conditions", "objective", "diffusion", "edm", "data", "train", "sample", "unet"])
def test_malformed_sections_are_left_to_validation(in_a_new_folder, section):
    column = {"data": {"label_column": "x"}}
    others = (column, {"objective": "edm"}, {"conditions": {"classes": 2}}, {"conditions": {"label": 3}, **column})
    for value, other in itertools.product(MALFORMED, others):
        try:
            migrated({**other, section: value})
        except UserError as error:
            assert str(error).startswith("config.yaml: "), error


def test_subfolders_are_renamed_once(in_a_new_folder):
    for name in ("averages", "pictures"):
        Path("run", name).mkdir(parents=True)
        Path("run", name, "file").write_text(name)
    for _ in range(2):
        migrate_folder(Path("run"))
    assert Path("run/ema_snapshots/file").read_text() == "averages"
    assert Path("run/images/file").read_text() == "pictures"
    assert sorted(path.name for path in Path("run").iterdir()) == ["ema_snapshots", "images"]
