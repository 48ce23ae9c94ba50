"""Training any task: automatic batch sizes, benchmarks, tiny data sets, the classifier, and training from Python."""

import json
from pathlib import Path

import pytest
import torch
from helpers import mistake, run, train_small, write_image

import diffunet
from diffunet.core.errors import UserError
from diffunet.core.settings import settings_from
from diffunet.runs.config import Config
from diffunet.training import benchmark
from stress.program import SMALL_RUN


@pytest.fixture
def quick(monkeypatch):
    """Benchmarks of a moment."""
    monkeypatch.setattr("diffunet.tasks.fit.BENCHMARK_SECONDS", 0.02)
    monkeypatch.setattr(benchmark, "peak_conv_flops", lambda device, precision: 1e9)
    monkeypatch.setattr("diffunet.tasks.sizing.SLOW", 0)


# ── batch sizes and benchmarks ────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_benchmark_prints_a_table_and_writes_nothing(small, capsys, monkeypatch):
    monkeypatch.setattr("diffunet.tasks.fit.BENCHMARK_SECONDS", 0.05)
    monkeypatch.setattr(benchmark, "MAX_STEP", 1e9)
    assert run("train", "--config", "small.yaml", "--benchmark", "--train.batch_size", "auto") == 0
    output = capsys.readouterr().out
    for line in (
        "train.batch_size: 1024, the largest that fits into memory",
        "GFLOP per image",
        "images/s with batches of 1024",
        "data alone",
        "12 steps of 1024 images take about",
    ):
        assert line in output
    assert not Path("run").exists()


def test_a_benchmark_of_a_slow_network_uses_smaller_batches_and_shows_progress(small, capsys, monkeypatch, quick):
    monkeypatch.setattr(benchmark, "MAX_STEP", 1e-9)
    big = ["--train.batch_size", "512"]
    assert run("train", "--config", "small.yaml", "--benchmark", *big) == 0
    output = capsys.readouterr().out
    assert output.index("measuring one example") < output.index("measuring training with batches of 2 ...")
    assert "images/s with batches of 2:" in output
    assert "12 steps of 512 images take about" in output


@pytest.mark.slow
def test_an_automatic_batch_size_is_kept_by_a_resumed_run(small, capsys, monkeypatch):
    argv = ["--config", "small.yaml", "--train.batch_size", "auto", "--train.steps", "1"]
    assert run("train", *argv, "--train.gradient_accumulation_steps", "1", "--unet.dropout", "0") == 0
    assert settings_from(Path("run/config.yaml"), Config).train.batch_size == 1024
    monkeypatch.setattr(benchmark, "free_memory", lambda device: 0)  # not measured again
    assert run("train", "--resume", "run", "--train.steps", "2", "--train.batch_size", "auto") == 0
    assert settings_from(Path("run/config.yaml"), Config).train.batch_size == 1024
    assert "--train.batch_size" in mistake(capsys, "train", "--config", "small.yaml", "--train.batch_size", "all")


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
def test_data_sets_of_one_and_two_images(small, capsys, quick, number):
    """A benchmark, an automatic batch size, and samples."""
    for index in range(number):
        write_image(Path("photos") / f"{index}.png", "L", (8, 8), seed=index)
    few = ["--config", "small.yaml", "--data.path", "photos", "--data.workers", "0", "--train.steps", "2"]
    assert run("train", *few, "--benchmark") == 0
    assert "data alone" in capsys.readouterr().out
    assert run("train", *few, "--train.batch_size", "auto") == 0
    assert settings_from(Path("run/config.yaml"), Config).train.batch_size == 2
    assert run("sample", "run", "--num_images", "1", "--steps", "2") == 0


# ── the classifier ────────────────────────────────────────────────────────────────────────────────

CLASSIFIER = ["--data.path", "digits", "--train.output", "classifier", "--train.steps", "1", "--train.log_every", "1"]


@pytest.mark.slow
def test_a_classifier_takes_an_automatic_batch_size(in_a_new_folder, monkeypatch):
    """Of 8, the power of two below the 9 images that fit beside a network of 4.9 million parameters."""
    measured = benchmark.bytes_per_image
    monkeypatch.setattr(benchmark, "bytes_per_image", lambda trainer: measured(trainer) * 0 + 1e8)
    monkeypatch.setattr(benchmark, "free_memory", lambda device: (9.1 * 1.5e8 + 3 * 4 * 4.9e6) / 0.8)
    assert run("classifier", *CLASSIFIER, "--blocks", "[1, 1, 1, 1]", "--train.batch_size", "auto") == 0
    assert "batch_size: 8\n" in Path("classifier/config.yaml").read_text()
    assert json.loads(Path("classifier/run.json").read_text()) == {"format": 2, "task": "classification"}


@pytest.mark.parametrize("blocks", ["[1, 1]", "[1, 1, 1, 1, 1]", "[0, 1, 1, 1]", "3", "[]", "[1, 1, 1, x]"])
def test_wrong_numbers_of_blocks_are_one_line(in_a_new_folder, capsys, blocks):
    assert mistake(capsys, "classifier", *CLASSIFIER, "--blocks", blocks).startswith("--blocks: ")
    assert not Path("classifier").exists()


@pytest.mark.slow
def test_a_classifier_trains_on_augmented_images(in_a_new_folder):
    argv = ["--blocks", "[1, 1, 1, 1]", "--train.batch_size", "4", "--data.augmentation", "0.5"]
    assert run("classifier", *CLASSIFIER, *argv) == 0
    assert Path("classifier/classifier.safetensors").exists()


def test_a_classifier_needs_batches_of_two_images(in_a_new_folder, capsys):
    """Batch norm cannot normalize a single image."""
    line = mistake(capsys, "classifier", *CLASSIFIER, "--train.batch_size", "1")
    assert line == "train.batch_size: batch norm needs at least 2 images per micro-batch (got 1); raise it"
    argv = ["--train.batch_size", "4", "--train.gradient_accumulation_steps", "4"]
    assert "(got 1)" in mistake(capsys, "classifier", *CLASSIFIER, *argv)


def test_a_classifier_is_not_sampled_or_resumed_as_a_generator(in_a_new_folder, capsys):
    Path("classifier").mkdir()
    Path("classifier/config.yaml").write_text("blocks: [1, 1, 1, 1]\n...\n")
    Path("classifier/run.json").write_text('{"format": 2, "task": "classification"}')
    for command, argv in (("sample", ["classifier"]), ("train", ["--resume", "classifier"])):
        assert mistake(capsys, command, *argv) == "classifier: a run of classification, not of generation"


# ── conditions ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def two_columns(small):
    """An image folder with metadata of two columns, small.yaml, and flags for both as conditions."""
    lines = []
    for index in range(12):
        write_image(Path("photos") / f"{index}.png", "L", (8, 8), seed=index)
        record = {"file_name": f"{index}.png", "shape": ["disk", "ring"][index % 2], "count": index % 3}
        lines.append(json.dumps(record) + "\n")
    Path("photos/metadata.jsonl").write_text("".join(lines))
    mapping = "{shape: {type: label}, number: {type: label, column: count}}"
    return ["--data.path", "photos", "--data.workers", "0", "--train.steps", "2", "--conditions", mapping]


def test_two_label_conditions_train_and_sample_with_a_flag_each(two_columns, capsys):
    train_small(*two_columns)
    assert "2 classes, 3 classes" in capsys.readouterr().out
    config = Config.model_validate_json(settings_from(Path("run/config.yaml"), Config).model_dump_json())
    assert config.class_names == {"shape": ("disk", "ring"), "number": ("0", "1", "2")}
    one = ["--num_images", "2", "--steps", "2"]
    assert run("sample", "run", *one, "--shape", "ring", "--number", "0,2", "--output", "a") == 0
    records = [json.loads(line) for line in Path("a/metadata.jsonl").read_text().splitlines()]
    assert [(record["shape_name"], record["number"]) for record in records] == [("ring", 0), ("ring", 2)]
    assert run("sample", "run", *one, "--number", "none", "--output", "b") == 0
    records = [json.loads(line) for line in Path("b/metadata.jsonl").read_text().splitlines()]
    assert [record["shape"] for record in records] == [0, 1]
    assert all("number" not in record for record in records)
    assert "number: 3 is not one of the 3 classes" in mistake(capsys, "sample", "run", "--number", "3")
    assert "did you mean --shape" in mistake(capsys, "sample", "run", "--shap", "ring")
    assert run("sample", "run", "--help") == 0
    output = capsys.readouterr().out
    assert "--shape LABEL" in output
    assert "--number LABEL" in output


def test_a_condition_without_its_column_is_an_error_only_if_the_column_is_named(two_columns, capsys):
    argv = ["--config", "small.yaml", *two_columns[:-1]]
    line = mistake(capsys, "train", *argv, "{kind: {type: label, column: shap}}")
    assert line.startswith("conditions.kind.column: no column shap in photos; did you mean shape?")
    train_small(*two_columns[:-1], "{kind: {type: label}}")
    assert Config.model_validate(settings_from(Path("run/config.yaml"), Config)).conditions == {}


# ── Python ────────────────────────────────────────────────────────────────────────────────────────


def test_train_sample_and_resume_from_python(in_a_new_folder, capsys):
    unet = {"levels": ({"channels": 8, "blocks": 1},), "norm_groups": 8}
    trained = diffunet.train(
        {"unet": unet, "data": {"path": "digits"}, "conditions": {"label": {"type": "label"}}},
        train={"steps": 2, "batch_size": 4, "output": "run", "runtime": {"compile": False}},
        sample={"num_images": 2, "steps": 2},
    )
    assert isinstance(trained, diffunet.Run)
    loaded = diffunet.load_run("run")
    assert loaded.config() == trained.config()
    assert loaded.config().train.steps == 2
    batch = trained.sample(num_images=2, conditions={"label": 7})
    assert (batch.pixels.shape, batch.pixels.dtype) == ((2, 1, 8, 8), torch.uint8)
    assert batch.conditions == {"label": [7, 7]}
    assert torch.equal(loaded.sample(num_images=2, conditions={"label": 7}).pixels, batch.pixels)
    with pytest.raises(UserError, match="run: already holds a run"):
        diffunet.train(trained.config())
    resumed = diffunet.train(trained.config(), resumed=True, train={"steps": 4})
    assert "run: resuming from step 2" in capsys.readouterr().out
    assert resumed.config().train.steps == 4
    assert Path("run/checkpoints/step_00000004").exists()
    with pytest.raises(UserError, match="--unet.dropout: cannot change from 0.0 to 0.5 in a resumed run"):
        diffunet.train(trained.config(), resumed=True, unet={"dropout": 0.5}, train={"steps": 5})


@pytest.mark.slow
def test_training_from_python_equals_the_command(small):
    train_small("--train.steps", "4")
    diffunet.train("small.yaml", train={"steps": 4, "output": "python"})
    weights = "model/diffusion_pytorch_model.safetensors"
    assert Path("run", weights).read_bytes() == Path("python", weights).read_bytes()
    diffunet.train("small.yaml", train={"steps": 2, "output": "python"}, overwrite=True)
    assert [path.name for path in Path("python/checkpoints").iterdir()] == ["step_00000002"]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"stpes": 3}}, r"train.stpes: unknown key; did you mean steps\?"),
        ({"trian": {}}, r"trian: unknown key; did you mean train\?"),
        ({"unet": {"padding": "valid"}}, "unet.padding: a generator of images needs same"),
        ({"objective": {"type": "edn"}}, r"objective.*: edn is not one of .*did you mean edm\?"),
    ],
)
def test_mistakes_in_python_raise_user_errors(in_a_new_folder, sections, message):
    Path("small.yaml").write_text(SMALL_RUN)
    with pytest.raises(UserError, match=message):
        diffunet.train("small.yaml", **sections)
    assert not Path("run").exists()
