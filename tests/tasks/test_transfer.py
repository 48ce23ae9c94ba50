"""Predictors that begin with a run's weights or an encoder: what is kept, what is fresh, resuming, and mistakes."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import mistake, run, write_pairs
from PIL import Image
from torch import nn

import diffunet
from diffunet.core.storage import load_tensors
from diffunet.models.inspection import features
from diffunet.models.predictor import Predictor
from diffunet.models.pretrained import IMAGENET_MEAN, IMAGENET_STD
from diffunet.models.saving import WEIGHTS
from diffunet.runs.config import Config
from diffunet.runs.prediction import PredictionConfig, load_predictor, model_file
from diffunet.runs.run import Run
from diffunet.tasks.finetuning import INITIAL_WEIGHTS
from diffunet.tasks.kinds import kind_of, new
from stress.crash import differences

FROM = ["train", "--finetune.from", "old"]
PLAIN = ["--unet.block", "plain", "--unet.norm", "none", "--unet.resampling", "pool_relu"]
ENCODER = ["train", "--config", "predictor.yaml", *PLAIN, "--finetune.encoder", "encoder.pth"]


@pytest.fixture
def old(small_predictor) -> Predictor:
    """Return the predictor of the run `old`, whose weights are random and which has seen `pairs`."""
    config, make = new(Path("predictor.yaml"), {"train.output": "old"})
    made = make(config).config
    folder = Run("old")
    folder.create(made, files=model_file(made))
    predictor = made.build_predictor()
    for name, parameter in predictor.named_parameters():
        nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3)
    statistics = make(config).build_model(made.train)
    predictor.normalized(input_mean=statistics.input_mean, input_std=statistics.input_std)
    folder.publish(predictor)
    return predictor.eval()


def begun(*words: str) -> Predictor:
    """Return the network of a finetuning with these flags, before its first step."""
    file = Path("predictor.yaml") if "--finetune.encoder" in words else None
    flags = dict(zip((word.removeprefix("--") for word in words[::2]), words[1::2], strict=True))
    config, make = new(file, flags | {"train.runtime.channels_last": "false"})
    return make(config).build_model(config.train).eval()


def an_image(channels: int = 1) -> torch.Tensor:
    return torch.randint(0, 256, (1, channels, 16, 16)).float()


def encoder(channels: int = 3, width: int = 4) -> nn.Sequential:
    """Return convolutions of the widths of predictor.yaml, in encoder.pth with a classifier."""
    first, second = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, 8, 3, padding=1)
    layers = nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(2), second)
    torch.save({**layers.state_dict(prefix="features."), "classifier.weight": torch.zeros(2, 2)}, "encoder.pth")
    return layers


def in_color() -> None:
    """Make the images of `pairs` colored."""
    for path in Path("pairs/images").iterdir():
        gray = np.asarray(Image.open(path))
        Image.fromarray(np.stack([gray, 255 - gray, gray // 2], axis=-1)).save(path)


# ── from a run ────────────────────────────────────────────────────────────────────────────────────


def test_the_first_step_predicts_what_the_source_predicts_to_the_bit(old, capsys):
    image = an_image()
    assert torch.equal(begun("--finetune.from", "old")(image), old(image))
    assert "afresh" not in capsys.readouterr().out


def test_outputs_are_kept_by_the_names_of_their_classes(old, capsys):
    """The values 0 and 255 are classes of the source, in another order here, beside 100."""
    write_pairs(Path("pairs"), (0, 100, 255))
    found, image = begun("--finetune.from", "old", "--data.values", "[255, 100, 0]"), an_image()
    assert "finetune.from: new to old, begin afresh: the output of 100\n" in capsys.readouterr().out
    found.normalized(input_mean=old.input_mean, input_std=old.input_std)
    assert not found(image)[:, 1].any()
    torch.testing.assert_close(found(image)[:, [2, 0]], old(image), rtol=1e-5, atol=1e-5)


def test_inputs_are_normalized_by_the_new_images(old):
    for path in Path("pairs/images").iterdir():
        Image.fromarray(np.asarray(Image.open(path)).astype(np.uint16) * 200).save(path)
    found = begun("--finetune.from", "old")
    torch.testing.assert_close(found.input_mean, 200 * old.input_mean)
    torch.testing.assert_close(found.input_std, 200 * old.input_std)


def test_images_of_other_channels_have_a_fresh_first_convolution(old, capsys):
    in_color()
    kept = begun("--finetune.from", "old")  # converts to gray, as its source
    assert kept.input_mean.shape == (1,)
    capsys.readouterr()
    found = begun("--finetune.from", "old", "--data.channels", "3").state_dict()
    assert "finetune.from: new to old, begin afresh: unet.stem.weight\n" in capsys.readouterr().out
    same = {name for name, tensor in old.unet.state_dict().items() if torch.equal(found[f"unet.{name}"], tensor)}
    assert same == old.unet.state_dict().keys() - {"stem.weight"}


def test_a_regression_can_begin_from_a_segmentation(old, capsys):
    for path in list(Path("pairs/labels").iterdir()):
        np.save(path.with_suffix(".npy"), np.asarray(Image.open(path), dtype=np.float32))
        path.unlink()
    found = begun("--finetune.from", "old", "--objective", "regression")
    assert "begin afresh: the output of number 1 of 1\n" in capsys.readouterr().out
    image = an_image()
    torch.testing.assert_close(found(image), found.output_mean + found.linear * image)
    assert torch.equal(found.unet.stem.weight, old.unet.stem.weight)


def test_the_configuration_of_the_source_is_the_base(old):
    Path("new.yaml").write_text("finetune: {from: old}\ntrain: {seed: 3}\nunet: {dropout: 0.2}\n")
    source = Run("old").config(PredictionConfig)
    config, _ = new(Path("new.yaml"), {"data.path": "other", "train.batch_size": "2"})
    assert config.unet == source.unet.model_copy(update={"dropout": 0.2})
    assert (config.objective, config.augment) == (source.objective, source.augment)
    assert (source.data.values, source.data.class_names) == ((0, 255), ("0", "255"))
    data = {"path": "other", "values": None, "class_names": None}
    assert config.data == source.data.model_copy(update=data)
    train = config.train
    assert (train.output, train.steps, train.seed, train.batch_size) == ("runs/old-finetuned", 1, 3, 2)
    assert (train.ema_share, train.publish, train.learning_rate) == (0.1, "least_val_loss", source.train.learning_rate)


def test_the_run_that_is_named_decides_about_the_kind(old):
    assert kind_of(None, {"finetune.from": "old"}) is PredictionConfig
    assert kind_of(None, changes={"finetune": {"from": "old"}}) is PredictionConfig
    assert kind_of(None, {"finetune.from": "old", "objective": "ddpm"}) is Config
    assert kind_of(None, {"finetune.from": "elsewhere/none"}) is Config


def test_finetuning_from_python(old):
    made = diffunet.train({"finetune": {"from": "old"}}, train={"output": "new", "steps": 1})
    assert made.config(PredictionConfig).finetune.pretrained == "old"
    kept = load_tensors(made.folder / INITIAL_WEIGHTS)
    assert kept.keys() == {f"unet.{name}" for name in old.unet.state_dict()}
    assert all(torch.equal(kept[f"unet.{name}"], tensor) for name, tensor in old.unet.state_dict().items())


# ── from an encoder ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("channels", [1, 3])
def test_a_predictor_has_the_features_of_the_encoder_on_images_of_8_bits(small_predictor, capsys, channels):
    """Normalized as for ImageNet; a gray image as its repetition in three channels, by the means over the colors."""
    if channels == 3:
        in_color()
    layers = encoder()
    predictor = begun("--finetune.encoder", "encoder.pth", *PLAIN)
    line = "finetune.encoder: the way down begins with 2 convolutions of encoder.pth; left out: classifier.weight\n"
    assert line in capsys.readouterr().out
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    if channels == 1:
        mean, std = mean.mean(), std.mean()
    image = an_image(channels)
    inputs = (image - predictor.input_mean.reshape(-1, 1, 1)) / predictor.input_std.reshape(-1, 1, 1)
    with torch.no_grad():
        found = features(predictor.unet, inputs)
        theirs = layers[:2](((image.expand(1, 3, 16, 16) / 255) - mean) / std)
        torch.testing.assert_close(found["down.0"], theirs, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["down.1"], layers[2:](theirs).relu(), rtol=1e-4, atol=1e-5)


def test_images_of_16_bits_are_normalized_by_themselves(small_predictor):
    encoder()
    paths = sorted(Path("pairs/images").iterdir())
    for path in paths:
        Image.fromarray(np.asarray(Image.open(path)).astype(np.uint16) * 200).save(path)
    predictor = begun("--finetune.encoder", "encoder.pth", *PLAIN, "--data.fold", "null")
    values = np.stack([np.asarray(Image.open(path)) for path in paths]).astype(np.float64)
    assert predictor.input_mean.item() == pytest.approx(values.mean(), rel=1e-6)
    assert predictor.input_std.item() == pytest.approx(values.std(), rel=1e-6)


def test_a_run_with_an_encoder_keeps_its_normalization_when_it_is_finetuned(small_predictor):
    encoder()
    assert run(*ENCODER, "--train.output", "first", "--train.steps", 1) == 0
    Path("encoder.pth").unlink()
    assert run("train", "--finetune.from", "first", "--train.output", "second", "--train.steps", 1) == 0
    first, second = (load_predictor(Run(folder)) for folder in ("first", "second"))
    assert second.input_mean.item() == pytest.approx(255 * np.mean(IMAGENET_MEAN), rel=1e-6)
    assert torch.equal(first.input_std, second.input_std)
    assert Run("second").config(PredictionConfig).finetune.encoder == "encoder.pth"


# ── resuming ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("source", [pytest.param("run", marks=pytest.mark.slow), "encoder"])
def test_a_resumed_finetuning_equals_an_uninterrupted_one_without_its_source(old, source):
    """From a checkpoint, and from before the first one."""
    encoder()
    begin = [*FROM, "--train.steps", 4] if source == "run" else [*ENCODER, "--train.steps", 4]
    begin += ["--train.checkpoint_every", 2, "--train.preview_every", 4, "--train.keep_checkpoints", 9]
    assert run(*begin, "--train.output", "whole") == 0
    shutil.copytree("whole", "run")
    shutil.rmtree("old")
    Path("encoder.pth").unlink()
    shutil.rmtree("run/checkpoints/step_00000004")
    assert run("train", "--resume", "run") == 0
    assert differences(Path("whole"), Path("run")) == []
    for folder in ("checkpoints", "model", "samples"):
        shutil.rmtree(f"run/{folder}")
    assert run("train", "--resume", "run") == 0
    weights = [(Path(folder) / "model" / WEIGHTS).read_bytes() for folder in ("whole", "run")]
    assert weights[0] == weights[1]


# ── mistakes ──────────────────────────────────────────────────────────────────────────────────────


def a_generator() -> None:
    Run("generator").create(Config())


def with_five_channels() -> None:
    for path in list(Path("pairs/images").iterdir()):
        np.save(path.with_suffix(".npy"), np.zeros((5, 24, 20), np.uint8) + 3)
        path.unlink()


NOTHING = lambda: None  # noqa: E731
MISTAKES = {
    "no run": (NOTHING, "--finetune.from olt", "olt: no such run folder; did you mean old?"),
    "generates": (a_generator, "--finetune.from generator --objective segmentation", "generator: a run of generation"),
    "no weights": (lambda: shutil.rmtree("old/model"), "--finetune.from old", "old/model/.*: missing; the run has no"),
    "objective": (NOTHING, "--finetune.from old --objective ddpm", "old: a run of prediction, not of generation"),
    "lora": (NOTHING, "--finetune.from old --finetune.lora_rank 2", "--finetune.lora_rank: unknown argument"),
    "network": (
        NOTHING,
        "--finetune.from old --unet.norm_groups 2",
        "unet.norm_groups: the network of old was trained with 4 .got 2.; leave unet.norm_groups out",
    ),
    "encoder of a run": (
        NOTHING,
        "--finetune.from old --finetune.encoder vgg11",
        "finetune.encoder: the network of old was trained with None .got vgg11.; leave finetune.encoder out",
    ),
    "no file": (NOTHING, "--finetune.encoder gone.pth", "finetune.encoder: gone.pth: no such file"),
    "no network": (NOTHING, "--finetune.encoder vgg1", "finetune.encoder: vgg1: neither .*did you mean vgg1"),
    "other network": (
        encoder,
        "--finetune.encoder encoder.pth",
        r"finetune.encoder: needs block plain, norm none, resampling by pool \(got residual, group, conv\); use",
    ),
    "other widths": (
        lambda: encoder(width=6),
        f"--finetune.encoder encoder.pth {' '.join(PLAIN)}",
        r"finetune.encoder: features.0 does not fit \(weight \(6, 3, 3, 3\), bias True\); the U-Net has weight \(4, 1",
    ),
    "other channels": (
        lambda: [encoder(), with_five_channels()],
        f"--finetune.encoder encoder.pth {' '.join(PLAIN)} --augment.elastic 0",
        r"finetune.encoder: encoder.pth takes images of 3 channels \(got 5\); set data.channels 3, or use gray",
    ),
    "channels of the encoder": (
        lambda: [encoder(2), in_color()],
        f"--finetune.encoder encoder.pth {' '.join(PLAIN)}",
        r"finetune.encoder: encoder.pth takes images of 2 channels \(got 3\); use images of 2",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line_before_anything_is_trained(old, capsys, name):
    spoil, flags, message = MISTAKES[name]
    spoil()
    base = [] if "finetune.from" in flags else ["--config", "predictor.yaml"]
    line = mistake(capsys, "train", *base, *flags.split(), "--train.output", "new")
    assert re.search(message, line), line
    assert not Path("new").exists()


def test_a_resumed_run_has_no_other_source(old, capsys):
    assert run(*FROM, "--train.output", "new", "--train.steps", 1) == 0
    line = mistake(capsys, "train", "--resume", "new", "--train.steps", 2, "--finetune.from", "null")
    assert line.startswith("--finetune.from: cannot change from old to None in a resumed run")
    (Path("new") / INITIAL_WEIGHTS).unlink()
    shutil.rmtree("new/checkpoints")
    shutil.rmtree("new/model")
    assert mistake(capsys, "train", "--resume", "new") == f"new/{INITIAL_WEIGHTS}: missing"
