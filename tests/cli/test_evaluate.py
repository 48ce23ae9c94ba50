"""What measures, chooses and settles: evaluate, ema, classifier, and the levers of a training as people use them."""

import json
from pathlib import Path

import pytest
from helpers import checkpoint, mistake, run, train_small, write_image
from PIL import Image
from sklearn.datasets import load_digits

from diffunet.cli import main as commands
from diffunet.cli import network as network_commands
from diffunet.runs.run import Run
from diffunet.core.storage import load_tensors, sha256_of_file, sha256_of_tensors


def test_evaluate_writes_one_record_and_shows_it(small, capsys):
    train_small()
    capsys.readouterr()
    assert run(commands.evaluate, "run", "--num_images", "20", "--steps", "2", "--seed", "5") == 0
    shown = capsys.readouterr().out
    record = json.loads(Path("run/evaluations/000/evaluation.json").read_text())
    assert record["drawn"] | {"num_images": 20, "steps": 2, "seed": 5, "sampler": "dpm++"} == record["drawn"]
    assert record["drawn"]["weights_sha256"] == sha256_of_tensors(Run("run").denoiser().state_dict())
    assert record["real"] | {"path": "digits", "num_images": 1797, "held_out": 89} == record["real"]
    assert record["features"] == {
        "name": "64 pixels, 0 to 16", "dimensions": 64, "resize": "none", "weights_sha256": None
    }
    assert record["diffunet"]["commit"] is None or len(record["diffunet"]["commit"]) >= 40
    assert 0 <= record["class_accuracy"]["value"] <= 1
    distance = record["metrics"]["frechet_distance"]
    assert distance["value"] > distance["floor"]
    assert f"{distance['value']:.4g} ± " in shown
    other = mistake(capsys, commands.evaluate, "run", "--num_images", "20", "--data.resolution", "16")
    assert other == "--data: pictures of size (16, 16), but the run draws size (8, 8)"
    width, height = Image.open("run/evaluations/000/closest_in_pixels.png").size
    assert height > 5 * width


def test_a_resumed_run_evaluates_to_the_same_record(small):
    train_small()
    train_small("--train.output", "parts", "--train.steps", "4")
    assert run(commands.train, "--resume", "parts", "--train.steps", "12") == 0
    for folder in ("run", "parts"):
        assert run(commands.evaluate, folder, "--num_images", "12", "--steps", "2", "--output", f"{folder}-record") == 0
    assert Path("run-record/evaluation.json").read_bytes() == Path("parts-record/evaluation.json").read_bytes()


def test_evaluate_a_folder_of_pictures(small, capsys):
    """Real digits drawn by nobody: as near as real ones, named rightly, and all of them copies."""
    digits = load_digits()
    Path("copies").mkdir()
    lines = []
    for number in range(40):
        pixels = (digits.images[number] * 255 / 16).round().astype("uint8")
        Image.fromarray(pixels).save(Path("copies") / f"{number:05d}.png")
        lines.append(json.dumps({"file_name": f"{number:05d}.png", "label": int(digits.target[number])}) + "\n")
    Path("copies/metadata.jsonl").write_text("".join(lines))
    assert run(commands.evaluate, "copies", "--data.path", "digits", "--output", "record") == 0
    assert "MEMORISED" in capsys.readouterr().out
    record = json.loads(Path("record/evaluation.json").read_text())
    assert record["drawn"] == {"folder": "copies", "num_images": 40}
    assert record["memorization"]["features"]["value"] > 0.9
    assert record["class_accuracy"]["value"] > 0.95
    for argv, expected in (
        (["copies"], "copies: no run; a folder of pictures needs --data.path DATA and --output FOLDER, too"),
        (["copies", "--data.path", "digits", "--output", "r", "--steps", "3"], "--steps: only says how a run draws"),
        (["copies", "--data.path", "digits", "--output", "r", "--num_images", "41"], "41, but copies holds 40"),
        (["copies", "--data.path", "digits", "--output", "r", "--features", "incept"], "did you mean inception?"),
    ):
        assert expected in mistake(capsys, commands.evaluate, *argv)
    assert not Path("r").exists()


def test_an_average_is_chosen_after_the_training(small, capsys):
    train_small()
    trained = load_tensors(Path("run/model/diffusion_pytorch_model.safetensors"))
    assert run(commands.ema, "run", "0.1") == 0
    chosen = load_tensors(Path("run/model/diffusion_pytorch_model.safetensors"))
    kept = load_tensors(Path("run/checkpoints/step_00000012/average_0.1.safetensors"))

    def away(tensors: dict) -> float:
        return sum(float((tensors[name] - tensor).abs().sum()) for name, tensor in kept.items())

    assert away(chosen) < 0.2 * away(trained)                                  # snapshots are in half precision
    capsys.readouterr()
    assert run(commands.ema, "run", "0.05", "0.2", "--num_images", "10", "--steps", "2") == 0
    told = json.loads(Path("run/model/average.json").read_text())
    distances = told["frechet_distances"]
    assert told["length"] == float(min(distances, key=distances.__getitem__))
    assert set(distances) == {"0.05", "0.2"}
    assert run(commands.sample, "run", "--num_images", "1", "--steps", "2") == 0
    assert run(commands.train, "--resume", "run", "--train.steps", "14") == 0
    assert not Path("run/model/average.json").exists()                         # these are the usual weights again
    assert "0.9: a length is a number from 0.02 to 0.25" in mistake(capsys, commands.ema, "run", "0.9")
    train_small("--train.output", "without", "--train.snapshots", "0", "--train.steps", "2")
    assert "no snapshots; train with --train.snapshots 16" in mistake(capsys, commands.ema, "without", "0.1")
    assert "no snapshot yet" in mistake(capsys, commands.sample, "without", "--guide", "0.5", "--guidance_scale", "2")


def test_an_early_snapshot_guides(small):
    train_small()
    how = ["--num_images", "2", "--steps", "3", "--label", "3"]
    for name, flags in (("alone", ["--guidance_scale", "1"]), ("guided", ["--guidance_scale", "3", "--guide", "0.25"])):
        assert run(commands.sample, "run", *how, *flags, "--output", name) == 0
    assert Path("alone/00001.png").read_bytes() != Path("guided/00001.png").read_bytes()
    train_small("--train.output", "guided-run", "--sample.guide", "0.25", "--train.preview_every", "1")
    assert len(list(Path("guided-run/samples").glob("step_*.png"))) == 12       # also before the first snapshot
    assert run(commands.sample, "guided-run") == 0
    drawn, preview = "guided-run/pictures/000/grid.png", "guided-run/samples/step_00000012.png"
    assert Path(drawn).read_bytes() == Path(preview).read_bytes()


@pytest.mark.parametrize("objective", ["edm", "flow"])
def test_other_objectives_are_trained_resumed_drawn_and_told_apart(small, capsys, objective):
    train_small("--objective", objective, "--train.steps", "4")
    assert run(commands.train, "--resume", "run", "--train.steps", "6") == 0
    line = json.loads((Path("run") / "log.jsonl").read_text().splitlines()[-1])
    assert line["val_loss"] > 0
    assert run(commands.sample, "run", "--num_images", "2", "--steps", "3") == 0
    assert "sampler: ddim is not one of dpm++" in mistake(capsys, commands.sample, "run", "--sampler", "ddim")
    assert "DDPMPipeline cannot draw from" in mistake(capsys, network_commands.export, "run", "out")
    line = mistake(capsys, commands.train, "--resume", "run", "--objective", "diffusion", "--train.steps", "8")
    assert f"--objective: was {objective} and cannot change" in line


def test_told_distortions_are_trained_resumed_and_exported(small):
    train_small("--data.augmentation", "0.3", "--train.steps", "4")
    assert run(commands.train, "--resume", "run", "--train.steps", "6") == 0
    assert run(commands.sample, "run", "--num_images", "2", "--steps", "3") == 0
    tensors = load_tensors(Path("run/model/diffusion_pytorch_model.safetensors"))
    assert tensors["embeddings.augmentation.project.weight"].shape == (32, 8)
    assert run(network_commands.export, "run", "out", "--label", "3") == 0


def test_minutes_settle_the_steps_and_leave_an_ordinary_run(small, capsys):
    rarely = ["--train.preview_every", "1000", "--train.checkpoint_every", "1000"]
    train_small(*rarely, "--train.minutes", "0.05", "--train.output", "timed")
    steps = Run("timed").config().train.steps
    said = capsys.readouterr().out
    assert f"{steps:,} steps of" in said
    assert "minutes of training where 0.05 were asked for" in said
    assert steps > 12
    train_small(*rarely, "--train.steps", str(steps), "--train.output", "untimed")
    assert checkpoint(Path("timed"), steps) == checkpoint(Path("untimed"), steps)


def test_a_classifier_is_trained_and_compared_by(small, capsys):
    argv = ["--data.path", "digits", "--train.output", "namer", "--train.steps", "30", "--train.batch_size", "32"]
    quick = ["--blocks", "[1, 1, 1, 1]", "--train.warmup_steps", "5", "--train.preview_every", "30"]
    assert run(commands.classifier, *argv, *quick) == 0
    assert "of 89 pictures rightly" in capsys.readouterr().out
    accuracy = json.loads(Path("namer/classifier.json").read_text())["accuracy"]
    assert accuracy > 0.3
    assert "namer: is not empty" in mistake(capsys, commands.classifier, *argv)
    weights = Path("namer/classifier.safetensors").read_bytes()
    assert run(commands.classifier, *argv, *quick) == 0                        # complete: nothing to go on with
    assert Path("namer/classifier.safetensors").read_bytes() == weights
    train_small("--train.steps", "2")
    how = ["--num_images", "10", "--steps", "2", "--features", "namer"]
    assert run(commands.evaluate, "run", *how) == 0
    record = json.loads(Path("run/evaluations/000/evaluation.json").read_text())
    assert record["features"]["dimensions"] == 512
    assert record["features"]["weights_sha256"] == sha256_of_file(Path("namer/classifier.safetensors"))
    assert record["class_accuracy"]["floor"] == pytest.approx(accuracy)
    assert record["memorization"].keys() == {"features", "pixels"}
    assert Path("run/evaluations/000/closest_in_features.png").exists()
    write_image(Path("photos/a.png"))
    assert "has no classes to learn" in mistake(capsys, commands.classifier, "--data.path", "photos")
