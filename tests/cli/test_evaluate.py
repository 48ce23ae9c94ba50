"""The commands evaluate, ema and classifier, and options of a training that they judge."""

import json
from pathlib import Path

import pytest
from helpers import checkpoint, mistake, run, train_small, write_image
from PIL import Image
from sklearn.datasets import load_digits

from diffunet.core.storage import load_tensors, sha256_of_file, sha256_of_tensors
from diffunet.runs.run import Run


@pytest.mark.slow
def test_evaluate_writes_a_record_and_prints_it(small, capsys):
    train_small()
    capsys.readouterr()
    assert run("evaluate", "run", "--num_images", "20", "--steps", "2", "--seed", "5") == 0
    output = capsys.readouterr().out
    record = json.loads(Path("run/evaluations/000/evaluation.json").read_text())
    assert record["samples"] | {"num_images": 20, "steps": 2, "seed": 5, "sampler": "dpm++"} == record["samples"]
    assert record["samples"]["weights_sha256"] == sha256_of_tensors(Run("run").denoiser().state_dict())
    assert record["real"] | {"path": "digits", "num_images": 1797, "held_out": 89} == record["real"]
    assert record["features"] == {
        "name": "64 pixels, 0 to 16",
        "dimensions": 64,
        "resize": "none",
        "weights_sha256": None,
    }
    assert record["diffunet"]["commit"] is None or len(record["diffunet"]["commit"]) >= 40
    assert 0 <= record["class_accuracy"]["value"] <= 1
    distance = record["metrics"]["frechet_distance"]
    assert distance["value"] > distance["floor"]
    assert f"{distance['value']:.4g} ± " in output
    other = mistake(capsys, "evaluate", "run", "--num_images", "20", "--data.resolution", "16")
    assert other == "--data: the run samples images of size (8, 8) (got (16, 16)); use matching images"
    width, height = Image.open("run/evaluations/000/closest_in_pixels.png").size
    assert height > 5 * width


@pytest.mark.slow
def test_a_resumed_run_evaluates_to_the_same_record(small):
    train_small()
    train_small("--train.output", "resumed", "--train.steps", "4")
    assert run("train", "--resume", "resumed", "--train.steps", "12") == 0
    for folder in ("run", "resumed"):
        assert run("evaluate", folder, "--num_images", "12", "--steps", "2", "--output", f"{folder}-record") == 0
    assert Path("run-record/evaluation.json").read_bytes() == Path("resumed-record/evaluation.json").read_bytes()


@pytest.mark.slow
def test_copies_of_real_images_are_memorized_and_of_the_right_class(small, capsys):
    """A folder of real digits: as close as real ones, of the right classes, and all of them copies."""
    digits = load_digits()
    Path("copies").mkdir()
    lines = []
    for number in range(40):
        pixels = (digits.images[number] * 255 / 16).round().astype("uint8")
        Image.fromarray(pixels).save(Path("copies") / f"{number:05d}.png")
        lines.append(json.dumps({"file_name": f"{number:05d}.png", "label": int(digits.target[number])}) + "\n")
    Path("copies/metadata.jsonl").write_text("".join(lines))
    assert run("evaluate", "copies", "--data.path", "digits", "--output", "record") == 0
    assert "MEMORIZED" in capsys.readouterr().out
    record = json.loads(Path("record/evaluation.json").read_text())
    assert record["samples"] == {"folder": "copies", "num_images": 40}
    assert record["memorization"]["features"]["value"] > 0.9
    assert record["class_accuracy"]["value"] > 0.95
    for argv, expected in (
        (["copies"], "copies: not a run; for a folder of images add --data.path DATA and --output FOLDER"),
        (
            ["copies", "--data.path", "digits", "--output", "r", "--steps", "3"],
            "--steps: applies to sampling from a run, but copies is a folder of images",
        ),
        (
            ["copies", "--data.path", "digits", "--output", "r", "--num_images", "41"],
            "--num_images: copies holds 40 images (got 41); pass fewer",
        ),
        (["copies", "--data.path", "digits", "--output", "r", "--features", "incept"], "did you mean inception?"),
    ):
        assert expected in mistake(capsys, "evaluate", *argv)
    assert not Path("r").exists()


@pytest.mark.slow
def test_an_ema_length_is_chosen_after_the_training(small, capsys):
    train_small()
    trained = load_tensors(Path("run/model/diffusion_pytorch_model.safetensors"))
    assert run("ema", "run", "0.1") == 0
    chosen = load_tensors(Path("run/model/diffusion_pytorch_model.safetensors"))
    kept = load_tensors(Path("run/checkpoints/step_00000012/ema_0.1.safetensors"))

    def distance(tensors: dict) -> float:
        return sum(float((tensors[name] - tensor).abs().sum()) for name, tensor in kept.items())

    assert distance(chosen) < 0.2 * distance(trained)  # snapshots are in half precision
    capsys.readouterr()
    assert run("ema", "run", "0.05", "0.2", "--num_images", "10", "--steps", "2") == 0
    record = json.loads(Path("run/model/ema.json").read_text())
    distances = record["frechet_distances"]
    assert record["length"] == float(min(distances, key=distances.__getitem__))
    assert set(distances) == {"0.05", "0.2"}
    assert run("sample", "run", "--num_images", "1", "--steps", "2") == 0
    assert run("train", "--resume", "run", "--train.steps", "14") == 0
    assert not Path("run/model/ema.json").exists()  # the EMA of train.ema_decay again
    assert "LENGTH: 0.9 is not a number from 0.02 to 0.25; try 0.1" in mistake(capsys, "ema", "run", "0.9")
    train_small("--train.output", "without", "--train.snapshots", "0", "--train.steps", "2")
    assert "no snapshots; train with --train.snapshots 16" in mistake(capsys, "ema", "without", "0.1")
    assert "no snapshot to guide with yet; leave sample.guide out" in mistake(
        capsys, "sample", "without", "--guide", "0.5", "--guidance_scale", "2"
    )


@pytest.mark.slow
def test_an_early_snapshot_is_a_guide(small):
    train_small()
    how = ["--num_images", "2", "--steps", "3", "--label", "3"]
    for name, flags in (("alone", ["--guidance_scale", "1"]), ("guided", ["--guidance_scale", "3", "--guide", "0.25"])):
        assert run("sample", "run", *how, *flags, "--output", name) == 0
    assert Path("alone/00001.png").read_bytes() != Path("guided/00001.png").read_bytes()
    train_small("--train.output", "guided-run", "--sample.guide", "0.25", "--train.preview_every", "1")
    assert len(list(Path("guided-run/samples").glob("step_*.png"))) == 12  # also before the first snapshot
    assert run("sample", "guided-run") == 0
    grid, preview = "guided-run/images/000/grid.png", "guided-run/samples/step_00000012.png"
    assert Path(grid).read_bytes() == Path(preview).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["edm", "flow"])
def test_other_objectives_train_resume_sample_and_refuse_export(small, capsys, objective):
    train_small("--objective", objective, "--train.steps", "4")
    assert run("train", "--resume", "run", "--train.steps", "6") == 0
    line = json.loads((Path("run") / "log.jsonl").read_text().splitlines()[-1])
    assert line["val_loss"] > 0
    assert run("sample", "run", "--num_images", "2", "--steps", "3") == 0
    assert "sampler: ddim is not one of dpm++" in mistake(capsys, "sample", "run", "--sampler", "ddim")
    assert "DDPMPipeline cannot sample from a network trained with" in mistake(capsys, "export", "run", "out")
    line = mistake(
        capsys,
        "train",
        "--resume",
        "run",
        "--objective",
        "ddpm",
        "--train.steps",
        "8",
        "--objective.condition_dropout",
        "0.1",
    )
    assert (
        line == f"--objective.type: cannot change from {objective} to ddpm in a resumed run; start another, or --force"
    )


@pytest.mark.slow
def test_augmentation_labels_train_resume_and_are_left_out_of_an_export(small):
    train_small("--data.augmentation", "0.3", "--train.steps", "4")
    assert run("train", "--resume", "run", "--train.steps", "6") == 0
    assert run("sample", "run", "--num_images", "2", "--steps", "3") == 0
    tensors = load_tensors(Path("run/model/diffusion_pytorch_model.safetensors"))
    assert tensors["embeddings.augmentation.project.weight"].shape == (32, 8)
    assert run("export", "run", "out", "--label", "3") == 0


@pytest.mark.slow
def test_minutes_choose_the_steps_of_an_otherwise_equal_run(small, capsys):
    rarely = ["--train.preview_every", "1000", "--train.checkpoint_every", "1000"]
    train_small(*rarely, "--train.minutes", "0.1", "--train.output", "timed")
    steps = Run("timed").config().train.steps
    output = capsys.readouterr().out
    assert f"{steps:,} steps of" in output
    assert "of 0.1 minutes" in output
    assert steps > 12
    train_small(*rarely, "--train.steps", str(steps), "--train.output", "untimed")
    assert checkpoint(Path("timed"), steps) == checkpoint(Path("untimed"), steps)


@pytest.mark.slow
def test_a_classifier_is_trained_and_its_features_are_used(small, capsys):
    argv = ["--data.path", "digits", "--train.output", "classifier", "--train.steps", "30", "--train.batch_size", "32"]
    quick = ["--blocks", "[1, 1, 1, 1]", "--train.warmup_steps", "5", "--train.preview_every", "30"]
    assert run("classifier", *argv, *quick) == 0
    assert "on 89 images not trained on" in capsys.readouterr().out
    accuracy = json.loads(Path("classifier/classifier.json").read_text())["accuracy"]
    assert accuracy > 0.3
    assert "--blocks: cannot change from [1, 1, 1, 1] to [2, 2, 2, 2] in a resumed run" in mistake(
        capsys, "classifier", *argv, "--blocks", "[2, 2, 2, 2]"
    )
    weights = Path("classifier/classifier.safetensors").read_bytes()
    assert run("classifier", *argv, *quick) == 0  # complete already
    assert Path("classifier/classifier.safetensors").read_bytes() == weights
    train_small("--train.steps", "2")
    how = ["--num_images", "10", "--steps", "2", "--features", "classifier"]
    assert run("evaluate", "run", *how) == 0
    record = json.loads(Path("run/evaluations/000/evaluation.json").read_text())
    assert record["features"]["dimensions"] == 512
    assert record["features"]["weights_sha256"] == sha256_of_file(Path("classifier/classifier.safetensors"))
    assert record["class_accuracy"]["floor"] == pytest.approx(accuracy)
    assert record["memorization"].keys() == {"features", "pixels"}
    assert Path("run/evaluations/000/closest_in_features.png").exists()
    write_image(Path("photos/a.png"))
    assert "has no classes to learn" in mistake(capsys, "classifier", "--data.path", "photos")
