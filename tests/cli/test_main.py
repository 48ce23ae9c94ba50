"""The commands: the straight line from training to samples, real data, export, describe, and mistakes."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import checkpoint, mistake, run, train_small, write_image
from PIL import Image

from diffunet.core.settings import settings_from
from diffunet.core.storage import load_tensors
from diffunet.runs.config import Config
from diffunet.runs.run import Run
from diffunet.tasks.kinds import kind_of
from stress.program import ROOT

# ── the straight line ─────────────────────────────────────────────────────────────────────────────


def test_train_then_sample(small, capsys):
    train_small()
    output = capsys.readouterr()
    assert "10 classes" in output.out
    assert "images/s" in output.err
    folder = Path("run")
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {
        "config.yaml",
        "log.jsonl",
        "curves.png",
        "model/config.json",
        "model/diffusion_pytorch_model.safetensors",
        "samples/step_00000006.png",
        "samples/step_00000012.png",
        "samples/strip.png",
        "ema_snapshots/step_00000012.safetensors",
        "checkpoints/step_00000012/ema.safetensors",
        "checkpoints/step_00000012/ema_0.05.safetensors",
        "checkpoints/step_00000012/optimizer.safetensors",
    } <= names
    assert not [name for name in names if "partial" in name or name.endswith((".pt", ".pkl", ".bin"))]
    line = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
    bins = {"loss_noise0-25", "loss_noise25-50", "loss_noise50-75", "loss_noise75-100"}
    assert {"step", "loss", "learning_rate", "grad_norm", "images_per_second", *bins} <= line.keys()

    assert run("sample", "run") == 0
    assert "4 images: run/images/000" in capsys.readouterr().out
    images = folder / "images" / "000"
    assert (images / "grid.png").read_bytes() == (folder / "samples" / "step_00000012.png").read_bytes()
    records = [json.loads(line) for line in (images / "metadata.jsonl").read_text().splitlines()]
    assert records[3] == {"file_name": "00003.png", "seed": 3, "label": 3, "label_name": "3"}
    assert Image.open(images / "00003.png").size == (8, 8)

    import datasets

    rows = datasets.load_dataset("imagefolder", data_dir=str(images.resolve()), split="train")
    assert rows["seed"] == [0, 1, 2, 3]

    sevens = ["--num_images", "2", "--label", "7", "--sampler", "unipc", "--output", "sevens"]
    assert run("sample", "run", *sevens) == 0
    assert [json.loads(line)["label"] for line in Path("sevens/metadata.jsonl").read_text().splitlines()] == [7, 7]
    assert run("sample", "run", "--num_images", "1") == 0
    assert (folder / "images" / "001").exists()


def test_shipped_configs_are_valid_and_digits_is_the_default(capsys):
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        settings_from(path, kind_of(path))
    assert run("train", "--print_config", "--train.steps", "7") == 0
    output = capsys.readouterr().out
    assert "output: runs/digits" in output
    assert "steps: 7" in output


@pytest.mark.slow
def test_top_level_scripts_are_commands():
    for name in ("train.py", "sample.py"):
        done = subprocess.run([sys.executable, ROOT / name, "--help"], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0
        assert name in done.stdout


# ── real data ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_class_folder_of_mixed_image_modes(small, capsys):
    for number, mode in enumerate(["RGB", "L", "P", "RGBA", "I;16", "RGB"]):
        kind, suffix = ("cat", "png") if number % 2 else ("dog", "jpg" if mode == "RGB" else "png")
        write_image(Path("photos") / kind / f"{number}.{suffix}", mode, (20 + number, 16 + 2 * number), seed=number)
    write_image(Path("photos/cat/cut.png"), size=(20, 20))
    Path("photos/cat/cut.png").write_bytes(Path("photos/cat/cut.png").read_bytes()[:200])
    Path("photos/dog/bad.png").write_bytes(b"not an image")
    train_small("--data.path", "photos", "--data.resolution", "[12, 16]", "--train.steps", "4")
    output = capsys.readouterr().out
    assert "skipped 2 of 8 images" in output
    assert "cut.png" in output
    assert "6 images of 12×16, 2 classes" in output
    assert run("sample", "run", "--num_images", "2", "--label", "dog", "--steps", "3") == 0
    image = Image.open("run/images/000/00001.png")
    assert (image.mode, image.size) == ("RGB", (16, 12))
    assert run("train", "--resume", "run", "--train.steps", "6") == 0
    assert run("evaluate", "run", "--num_images", "3", "--steps", "2") == 0
    assert json.loads(Path("run/evaluations/000/evaluation.json").read_text())["real"]["num_images"] == 6


@pytest.mark.slow
def test_images_decoded_on_demand_give_the_same_run(small):
    for number in range(6):
        write_image(Path("photos") / f"{number}.png", "L", (8, 8), seed=number)
    argv = ["--data.path", "photos", "--train.steps", "3", "--data.workers", "1"]
    train_small(*argv, "--train.output", "in_memory")
    train_small(*argv, "--train.output", "on_demand", "--data.memory_budget", "0")
    assert checkpoint(Path("in_memory"), 3) == checkpoint(Path("on_demand"), 3)


@pytest.mark.slow
def test_16_bit_images_are_sampled_with_16_bits(small):
    for number in range(4):
        write_image(Path("scans") / f"{number}.png", "I;16", (8, 8), seed=number)
    train_small("--data.path", "scans", "--train.steps", "2")
    assert run("sample", "run", "--num_images", "1", "--steps", "2") == 0
    assert Image.open("run/images/000/00000.png").mode.startswith("I")


@pytest.mark.slow
def test_the_network_of_2015_trains_as_a_denoiser(small):
    """With the time in every block; the statistics of batch norm are part of the sampled weights."""
    plain = {"block": "plain", "norm": "batch", "skips": "level", "resampling": "pool"}
    train_small(*(word for key, value in plain.items() for word in (f"--unet.{key}", value)))
    assert run("sample", "run", "--num_images", "2", "--steps", "3", "--output", "images") == 0
    tensors = load_tensors(Path("run/model/diffusion_pytorch_model.safetensors"))
    statistics = [tensor for name, tensor in tensors.items() if name.endswith("running_var")]
    assert statistics
    assert all((tensor != 1).all() for tensor in statistics)


@pytest.mark.slow
def test_log_with_tensorboard_writes_events(small, capsys):
    train_small("--train.log_with", "tensorboard", "--train.steps", "2")
    assert list(Path("run/tensorboard").rglob("events.*"))


# ── export and import ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_export_to_diffusers_and_import(small, capsys):
    train_small("--train.steps", "2")
    assert run("export", "run", "out", "--label", "7") == 0
    assert Path("out/model_index.json").exists()
    assert run("import", "out", "back") == 0
    assert run("sample", "back", "--num_images", "2", "--steps", "3", "--output", "a") == 0
    assert run("sample", "run", "--label", "7", "--num_images", "2", "--steps", "3", "--output", "b") == 0
    for name in ("00000.png", "00001.png"):
        a, b = (torch.tensor(list(Image.open(Path(folder, name)).tobytes())) for folder in "ab")
        assert (a.int() - b.int()).abs().max() <= 1
    assert "exists already; choose another name" in mistake(capsys, "export", "run", "out")
    assert "out: not a .pt file; leave out --config and --attention_order" in mistake(
        capsys, "import", "out", "again", "--config", "small.yaml"
    )


@pytest.mark.slow
def test_export_to_guided_diffusion_and_import(small, capsys):
    levels = "[{channels: 32, blocks: 1}, {channels: 32, blocks: 1, attention: true}]"
    train_small("--train.steps", "2", "--unet.levels", levels, "--unet.norm_groups", "32")
    assert run("export", "run", "model.pt") == 0
    assert "num_classes=11" in capsys.readouterr().out
    assert "exists already; choose another name" in mistake(capsys, "export", "run", "model.pt")
    assert "other.pt keeps all classes" in mistake(capsys, "export", "run", "other.pt", "--label", "3")
    assert "does not describe its network; add --config FILE" in mistake(
        capsys, "import", "model.pt", "back", "--attention_order", "new"
    )
    incomplete = mistake(capsys, "import", "model.pt", "back", "--attention_order", "new", "--config", "small.yaml")
    assert "small.yaml: set unet.levels, data.resolution and conditions.NAME.num_classes" in incomplete
    assert not Path("back").exists()
    back = ["back", "--attention_order", "new", "--config", "run/config.yaml"]
    assert run("import", "model.pt", *back) == 0
    for folder in ("back", "run"):
        assert run("sample", folder, "--num_images", "2", "--steps", "3", "--output", f"{folder}_images") == 0
    for name in ("00000.png", "00001.png"):
        assert Path("back_images", name).read_bytes() == Path("run_images", name).read_bytes()


@pytest.mark.slow
def test_channels_of_a_learned_variance_are_ignored_in_sampling(small):
    """The output of an imported ADM has twice the channels, of which the first half makes the image."""
    train_small("--train.steps", "2")
    config = settings_from(Path("run/config.yaml"), Config)
    denoiser = Run("run").denoiser()
    head = denoiser.unet.head[2]
    wider = torch.nn.Conv2d(head.in_channels, 2, 3, padding=1)
    with torch.no_grad():
        wider.weight[:1], wider.bias[:1] = head.weight, head.bias
    denoiser.unet.head[2] = wider
    wide = Run("wide")
    wide.create(config.model_copy(update={"unet": config.unet.model_copy(update={"out_channels": 2})}))
    wide.publish(denoiser)
    for folder in ("run", "wide"):
        assert run("sample", folder, "--num_images", "2", "--steps", "3", "--output", f"{folder}_images") == 0
    for name in ("00000.png", "00001.png"):
        a, b = (torch.tensor(list(Image.open(f"{folder}_images/{name}").tobytes())) for folder in ("run", "wide"))
        assert (a.int() - b.int()).abs().max() <= 1


# ── describe ──────────────────────────────────────────────────────────────────────────────────────


def table(capsys, *argv) -> list[str]:
    capsys.readouterr()
    assert run("describe", *argv) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.slow
def test_describe_presets_files_and_runs(small, capsys):
    heading, *rows, valid = table(capsys, "unet2015", "--size", "572")
    assert heading.split() == ["size", "channels", "attention", "parameters", "GFLOP", "receptive", "field"]
    assert rows[0].split() == ["level", "0", "568×568", "64", "148,288", "57.688", "5"]
    assert rows[-1].split() == ["network", "388×388", "2", "31,030,658", "300.857", "204"]
    assert "572, 588, 604, 620" in valid
    lines = table(capsys, "configs/cifar10.yaml")
    assert any(line.split()[:3] == ["level", "1", "16×16"] and "yes" in line for line in lines)
    assert "35,746,307 parameters" in lines[-1]
    lighter = table(capsys, "configs/cifar10.yaml", "--unet.skips", "level")
    assert "35,746,307" not in lighter[-1]
    train_small("--train.steps", "2")
    of_the_run = table(capsys, "run")
    assert "8×8" in of_the_run[1]
    parameters = sum(parameter.numel() for parameter in Run("run").denoiser().parameters())
    assert f"(label: 10 classes): {parameters:,} parameters" in of_the_run[-1]


@pytest.mark.slow
def test_describe_plans_a_predictor_for_its_data(small_predictor, capsys):
    rows = table(capsys, "predictor.yaml")
    assert rows[-1].startswith("--data.path FOLDER")
    lines = table(capsys, "predictor.yaml", "--data.path", "pairs", "--data.patch", "64")
    assert "8 pairs of 24×20 pixels" in lines[0]
    assert next(line for line in lines if line.startswith("network")).split()[1:3] == ["64×64", "2"]
    (flag, value), *_ = [shlex.split(line)[:2] for line in lines if line.startswith("--data.patch")]
    again = table(capsys, "predictor.yaml", "--data.path", "pairs", flag, value)
    assert any(line.startswith(f"  data.patch {value} ") for line in again)
    lines = table(capsys, "predictor.yaml", "--weights.border", "10", "--data.labels", "instances")
    assert any(line.startswith("  weights.border 10") for line in lines)


def test_mistakes_of_planning_are_one_line(small_predictor, capsys):
    for flags, expected in (
        ("--data.path elsewhere", "data.path: elsewhere is no folder; give a folder of images and targets"),
        ("--data.path pairs --data.patch 63", "data.patch: some level would not halve 63 evenly; use 62 or 64"),
        ("--data.path stain", "data.path: stain is no data set for segmentation; use "),
        ("--data.pathh pairs", "--data.pathh: unknown argument; did you mean --data.path?"),
        ("--data.fold 9", "data.fold: 9, but there are folds 0 to 4; choose one of them"),
        ("--data.path pairs --unet.dims 3", "images has images; set unet.dims 2 to train on them"),
    ):
        assert expected in mistake(capsys, "describe", "predictor.yaml", *flags.split())
    assert "--data.path: unknown argument" in mistake(capsys, "describe", "unet2015", "--data.path", "pairs")


def test_mistakes_of_describe_are_one_line(small, capsys):
    for argv, expected in (
        (["unet2016"], "did you mean unet2015?"),
        (["unet2015", "--size", "999999"], "--size: size (999999, 999999): 999,998,000,001 positions; use at most"),
        (["unet3d", "--size", "99999"], "positions; use at most"),
        (["unet2015", "--size", "1000000000000000000000"], "positions; use at most"),
        (["unet2015", "--size", "20"], "--size: an input of (20, 20) is too small; each side needs 188"),
        (["unet3d", "--size", "1,x"], "--size: expected one number, or several separated by commas (got 1,x)"),
        (["unet3d", "--size=-5"], "--size: each side must be at least 1 (got -5)"),
        (
            ["ddpm_cifar10", "--conditions.label.type", "label"],
            "ddpm_cifar10: conditions.label.num_classes: not set; give",
        ),
        (["unet3d", "--size", "132,132"], "--size: x: expected shape (B, 3, D, H, W), got (1, 3, 132, 132)"),
        (["small.yml"], "small.yml: no such file; did you mean small.yaml?"),
        (["small.yaml", "--unet.preset", "adm64"], "did you mean adm_64?"),
    ):
        assert expected in mistake(capsys, "describe", *argv)


# ── mistakes ──────────────────────────────────────────────────────────────────────────────────────


def test_mistakes_are_one_line_and_exit_code_2(small, capsys):
    Path("typo.yaml").write_text("train:\n  learing_rate: 1e-3\n")
    Path("empty").mkdir()
    for argv, expected in (
        (["--config", "typo.yaml"], "typo.yaml:2: train.learing_rate: unknown key; did you mean learning_rate?"),
        (["--train.learing_rate", "1"], "did you mean --train.learning_rate?"),
        (["--config", "smal.yaml"], "smal.yaml: no such file; did you mean small.yaml?"),
        (["--train.steps", "many"], "--train.steps: input should be a valid integer; got many"),
        (["--unet.dropout", "1.5"], "--unet.dropout: input should be less than 1; got 1.5"),
        (["--data.path", "empty", "--data.resolution", "8"], "data.path: empty contains no images"),
        (["--data.path", "./nowhere"], "data.path: ./nowhere does not exist"),
        (
            ["--conditions.label.num_classes", "7"],
            "conditions.label.num_classes: 7, but digits has 10 classes; use 10 or null",
        ),
        (["--train.batch_size", "7"], "try 8"),
        (["--sample.sampler", "dpm+"], "did you mean dpm++?"),
        (["--train.log_with", "tensorbord"], "did you mean tensorboard?"),
        (["--resume", "nowhere"], "nowhere: no such run folder"),
        (["--unet.padding", "valid"], "unet.padding: a generator of images needs same (got valid)"),
        (["--unet.resampling", "pol"], "--unet.resampling: input should be 'conv', "),
    ):
        config = ["--config", "small.yaml"] if argv[0] not in ("--config", "--resume") else []
        assert expected in mistake(capsys, "train", *config, *argv)
    assert not Path("run").exists()


@pytest.mark.slow
def test_mistakes_at_sampling_leave_no_files(small, capsys):
    train_small("--train.steps", "2")
    for argv, expected in (
        (["rum"], "rum: no such run folder; did you mean run?"),
        (["run", "--label", "eleven"], "label: eleven is not one of the 10 classes"),
        (["run", "--sampler", "dpm+"], "did you mean dpm++?"),
        (["run", "--sampler", "ddim", "--steps", "30"], "steps: ddim needs a divisor of 1000 (got 30); try 25"),
        (["run", "--num_images", "0"], "--num_images: input should be greater than or equal to 1; got 0"),
        (["run", "--output", "run"], "--output: run is not empty"),
        ([], "the following arguments are required: RUN"),
    ):
        assert expected in mistake(capsys, "sample", *argv)
    assert not Path("run/images").exists()
    for few in ("1", "2"):
        line = mistake(capsys, "evaluate", "run", "--num_images", few)
        found = f"got {few} samples and 1797 real images"
        assert f"too few images to compare ({found}); at least 3 and 6 are needed" in line
    assert not Path("run/evaluations").exists()
    weights = Path("run/model/diffusion_pytorch_model.safetensors")
    assert load_tensors(weights)
    network = Path("run/model/config.json")
    network.write_text(network.read_text().replace('"channels": 16', '"channels": 24'))
    assert "the weights do not match" in mistake(capsys, "sample", "run")


def test_an_unknown_command_suggests_the_closest(capsys):
    assert "unknown command; did you mean sample?" in mistake(capsys, "sampel")
    assert run() == 0
    assert "evaluate" in capsys.readouterr().out
