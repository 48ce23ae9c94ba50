"""Autoencoders, and generators of their latents, from the command line."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler
from helpers import checkpoint, copy_with_first_checkpoint, mistake, run, train_small, write_image
from PIL import Image

from diffunet.conditions.image import ImageConfig
from diffunet.core.progress import no_progress
from diffunet.core.rng import BatchRNG
from diffunet.data import latents
from diffunet.data.config import DataConfig
from diffunet.data.dataset import ImageDataset, load_images
from diffunet.data.degradation import Degradation, Step
from diffunet.data.latents import LatentDataset, encode_images, statistics
from diffunet.data.pixels import denormalize, normalize
from diffunet.models.autoencoder import load_autoencoder
from diffunet.models.codec import Codec
from diffunet.runs.autoencoding import AutoencoderRunConfig
from diffunet.runs.run import Run
from diffunet.tasks.generation import generation
from stress.multi_node import output_of
from stress.program import program

AUTOENCODER = """
objective: {type: autoencoding, kl: 1e-4}
autoencoder: {channels: [8, 16], latent_channels: 3, norm_groups: 4}
data: {path: digits, random_flip: true}
train: {output: vae, steps: 12, batch_size: 8, gradient_accumulation_steps: 2, learning_rate: 1e-3, ema_decay: 0.9,
        log_every: 2, checkpoint_every: 4, preview_every: 6, snapshots: 0,
        runtime: {mixed_precision: no, compile: false}}
"""
ENCODING = """
import os, sys, time
from pathlib import Path
from diffunet.cli.train import train
from diffunet.data import latents
encode = latents._encoded
def counted(images, encoder, indices, progress):
    Path(f"encoded-{os.environ['RANK']}.txt").open("a").write(f"{len(indices)} ")
    time.sleep(4)  # for the other process to begin
    return encode(images, encoder, indices, progress)
latents._encoded = counted
train(sys.argv[1:])
"""


@pytest.fixture
def vae(small, monkeypatch) -> Path:
    """Return the run of an autoencoder of latents of half the side; latents are kept in this test's home."""
    monkeypatch.setenv("HOME", str(small))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    Path("vae.yaml").write_text(AUTOENCODER)
    assert run("train", "--config", "vae.yaml") == 0
    return Path("vae")


def test_an_autoencoder_is_resumed_to_the_byte(vae):
    whole = checkpoint(vae)
    copy_with_first_checkpoint("vae", "stopped")
    assert run("train", "--resume", "stopped") == 0
    assert checkpoint(Path("stopped")) == whole
    assert {file.name for file in Path("vae/samples").iterdir()} == {"step_00000006.png", "step_00000012.png"}


def test_diffusers_loads_its_folder(vae):
    theirs = AutoencoderKL.from_pretrained("vae/model").eval()
    image = torch.rand(3, 1, 8, 8) * 2 - 1
    with torch.no_grad():
        assert torch.equal(load_autoencoder("vae").encode(image)[0], theirs.encode(image).latent_dist.mean)


def test_latents_are_resumed_and_encoded_again_to_the_byte(vae, small):
    """Without the autoencoder, which the run keeps, and without the file of the latents."""
    train_small("--codec.from", "vae")
    whole = checkpoint(Path("run"))
    copy_with_first_checkpoint("run", "stopped")
    shutil.rmtree("vae")
    assert run("train", "--resume", "stopped") == 0
    assert checkpoint(Path("stopped")) == whole
    copy_with_first_checkpoint("run", "encoded")
    (cache,) = Path(small, ".cache/diffunet/latents").glob("*.npy")
    before = cache.read_bytes()
    cache.unlink()
    assert run("train", "--resume", "encoded") == 0
    assert cache.read_bytes() == before
    assert checkpoint(Path("encoded")) == whole


def test_batches_have_mean_zero_and_spread_one_and_depend_on_the_position_alone(vae):
    train_small("--codec.from", "vae", "--train.steps", "1", "--data.held_out", "0")
    config = Run("run").config()
    assert config.codec.factor == 2 and len(config.codec.scale) == 3
    assert config.unet.in_channels == config.unet.out_channels == 3
    data = generation(config).data
    number = len(data)
    batch = data.__getitems__(list(range(number)))
    image = data.prepare(dict(batch), BatchRNG.at(0, 1, slice(0, number), number, torch.device("cpu")))["image"]
    assert image.shape == (number, 3, 4, 4)
    assert image.mean((0, 2, 3)).abs().max() < 0.02 and (image.std((0, 2, 3)) - 1).abs().max() < 0.02
    part = data.__getitems__(list(range(10, 30)))
    alone = data.prepare(part, BatchRNG.at(0, 1, slice(10, 30), number, torch.device("cpu")))["image"]
    assert torch.equal(alone, image[10:30])


def test_mirrored_latents_are_those_of_mirrored_images(small, monkeypatch):
    monkeypatch.setenv("HOME", str(small))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    images = load_images(DataConfig(path="digits", random_flip=True), log=lambda text: None)
    weight = torch.randn(2, 1, 2, 2)

    def encode(pixels):
        mean = torch.nn.functional.conv2d(pixels, weight, stride=2)
        return mean, mean - 3

    moments = encode_images(images, encode, "checksum")
    assert moments.shape == (1797, 2, 4, 4, 4) and moments.dtype == torch.float16
    pixels = normalize(images.images, 8)
    expected = torch.stack([torch.cat(encode(view), 1) for view in (pixels, pixels.flip(-1))], 1)
    torch.testing.assert_close(moments.float(), expected, atol=2e-3, rtol=1e-3)
    assert encode_images(images, lambda pixels: pytest.fail("encoded again"), "checksum").shape == moments.shape
    assert encode_images(images, encode, "other weights").shape == moments.shape
    assert len(list(Path(small, ".cache/diffunet/latents").glob("*.npy"))) == 2
    mean, log_variance = expected.double().transpose(1, 2).split(2, dim=1)
    shift, scale = statistics(moments, 2, torch.arange(1797))
    np.testing.assert_allclose(shift, mean.mean((0, 2, 3, 4)), atol=1e-3)  # 16 bits
    variance = mean.var((0, 2, 3, 4), correction=0) + log_variance.exp().mean((0, 2, 3, 4))
    np.testing.assert_allclose(scale, variance.sqrt(), rtol=1e-3)


def test_an_interrupted_encoding_is_resumed(small, monkeypatch):
    """Also where a process has finished between the look for the file and the beginning of the work."""
    monkeypatch.setenv("HOME", str(small))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    images = load_images(DataConfig(path="digits"), log=lambda text: None)
    encoded = []

    def encode(pixels):
        encoded.append(len(pixels))
        return pixels[:, :, ::2, ::2], None

    def interrupted(pixels):
        if sum(encoded) >= 1100:
            raise KeyboardInterrupt
        return encode(pixels)

    with pytest.raises(KeyboardInterrupt):
        encode_images(images, interrupted, "checksum")
    cache = Path(small, ".cache/diffunet/latents")
    (unfinished,) = cache.iterdir()
    assert unfinished.name.endswith(".unfinished")
    encoded.clear()
    moments = encode_images(images, encode, "checksum")
    assert sum(encoded) == 1797 - 1024
    assert torch.equal(moments[:, 0], normalize(images.images, 8)[:, :, ::2, ::2].half())
    (file,) = cache.iterdir()
    latents._encode_missing(images, encode, file, no_progress)
    assert list(cache.iterdir()) == [file] and sum(encoded) == 1797 - 1024


@pytest.mark.slow
def test_two_processes_encode_the_bytes_of_one(vae, small):
    train_small("--codec.from", "vae", "--train.steps", "1")
    (cache,) = Path(small, ".cache/diffunet/latents").glob("*.npy")
    alone = cache.read_bytes()
    cache.unlink()
    Path("encode.py").write_text(ENCODING)
    training = "--config", "small.yaml", "--codec.from", "vae", "--train.steps", "1", "--train.output", "two"
    output_of(program("encode.py", *training, processes=2))
    assert cache.read_bytes() == alone and list(cache.parent.iterdir()) == [cache]
    assert {file.read_text() for file in Path().glob("encoded-*.txt")} == {"1024 ", "773 "}


def test_mirrored_examples_have_mirrored_latents_and_sources(small, monkeypatch):
    monkeypatch.setenv("HOME", str(small))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    source = ImageConfig.model_validate({"by": [{"downscale": 2}]})
    images = load_images(DataConfig(path="digits", random_flip=True), {"source": source}, log=lambda text: None)
    number = len(images)
    moments = torch.zeros(number, 2, 1, 4, 4, dtype=torch.float16)
    moments[:, 1] = 1  # those of mirrored images, without noise
    own = {name: getattr(images, name) for name in ImageDataset.__dataclass_fields__}
    data = LatentDataset(**own, moments=moments, shift=(0.0,), scale=(2.0,))
    batch = data.prepare(data.__getitems__(list(range(64))), BatchRNG(torch.Generator().manual_seed(0)))
    flip = torch.rand(64, generator=torch.Generator().manual_seed(0)) < 0.5
    assert torch.equal(batch["image"], (flip / 2.0)[:, None, None, None].expand(64, 1, 4, 4))
    pixels = normalize(images.images[:64], 8)
    pixels = torch.where(flip[:, None, None, None], pixels.flip(-1), pixels)
    plain = images.columns["source"]
    expected = plain.prepare(torch.empty(64, 0), pixels, BatchRNG())
    assert torch.equal(batch["source"], expected) and "pixels" not in batch
    assert not data.plain().prepare(data.__getitems__([0, 1]), BatchRNG())["image"].any()


def test_samples_are_decoded_latents(vae, monkeypatch):
    """As diffusers decodes them; clipping of estimates, for pixels alone, is off."""
    train_small("--codec.from", "vae")
    trained = Run("run")
    sampler, codec = trained.sampler(trained.config().sample), trained.config().codec
    assert sampler.objective.limit is None and sampler.objective.sampler("dpm++", 5).limit is None
    assert not sampler.objective.sampler("unipc", 5).config.thresholding
    latents = []
    decode = Codec.decode
    monkeypatch.setattr(Codec, "decode", lambda self, latent: latents.append(latent) or decode(self, latent))
    found = trained.sample(num_images=3, seed=5).pixels
    theirs = AutoencoderKL.from_pretrained("run/model/codec").eval()
    scale, shift = (torch.tensor(values)[:, None, None] for values in (codec.scale, codec.shift))
    with torch.no_grad():
        expected = theirs.decode(latents[0] * scale + shift).sample
    assert torch.equal(found, denormalize(expected, 8)) and found.shape == (3, 1, 8, 8)


def test_a_run_of_latents_is_evaluated_edited_and_described(vae, capsys):
    train_small("--codec.from", "vae")
    assert run("evaluate", "run", "--num_images", "8") == 0
    image = write_image(Path("a.png"), "L", (8, 8))
    write_image(Path("b.png"), "L", (8, 8), seed=1)
    assert run("edit", "run", image, "--strength", "0.5", "--steps", "3") == 0
    assert run("edit", "run", image, "--between", "b.png", "--num_images", "3", "--steps", "4") == 0
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[:, 6:] = 255
    Image.fromarray(mask).save("mask.png")
    assert run("edit", "run", image, "--mask", "mask.png", "--steps", "3", "--output", "filled") == 0
    before, after = (np.asarray(Image.open(file)) for file in (image, "filled/a.png"))
    assert np.array_equal(before[:, :6], after[:, :6]) and not np.array_equal(before[:, 6:], after[:, 6:])
    small = write_image(Path("low.png"), "L", (4, 4))
    assert "no counterpart in the latents" in mistake(capsys, "edit", "run", small, "--degradation", "{downscale: 2}")
    assert run("edit", "run", image, "--extend", "[4, 4, 0, 0]", "--steps", "3", "--tile", "8") == 0
    odd = ["edit", "run", image, "--extend", "[3, 0, 0, 0]", "--tile", "8"]
    assert "image: of 8×11, but each latent stands for 2×2 pixels" in mistake(capsys, *odd)
    assert run("describe", "run") == 0
    assert "4×4" in capsys.readouterr().out


def test_an_export_samples_the_same_images_without_diffunet(vae):
    """By the code of its README.md, with diffusers alone."""
    plain = ["--unet.levels", "[{channels: 8, blocks: 1}]", "--conditions", "{}", "--sample.guidance_scale", "1"]
    train_small("--codec.from", "vae", *plain)
    assert run("export", "run", "out") == 0
    (code,) = re.findall(r"```python\n(.*?)```", Path("out/README.md").read_text(), re.S)
    code = code.replace("FOLDER", "out").replace("set_timesteps(1000)", "set_timesteps(5)")
    code = code.replace("x = torch", "torch.manual_seed(0)\nx = torch") + "\ntorch.save(images, 'images.pt')"
    subprocess.run([sys.executable, "-c", code], check=True)
    trained = Run("run")
    scheduler = DDPMScheduler.from_pretrained("out", subfolder="scheduler")
    assert not scheduler.config.clip_sample
    scheduler.set_timesteps(5)
    denoiser, codec = trained.denoiser(), trained.codec(trained.config())
    torch.manual_seed(0)
    x = torch.randn(4, 3, 4, 4)
    for t in scheduler.timesteps:
        x = scheduler.step(denoiser(x, t), t, x).prev_sample
    torch.testing.assert_close(torch.load("images.pt"), codec.decode(x), atol=1e-4, rtol=0)
    theirs = AutoencoderKL.from_pretrained("out/vae")
    np.testing.assert_allclose(theirs.config.latents_std, trained.config().codec.scale, rtol=1e-6)


def test_conditioning_images_enter_as_channels_of_fewer_positions(vae):
    """A small copy of the image itself, of which each position of a latent has four pixels."""
    upscale = "{source: {type: image, by: [{downscale: 2}]}}"
    train_small("--codec.from", "vae", "--conditions", upscale, "--train.steps", "2")
    trained = Run("run")
    assert trained.config().unet.plane_channels == 4 * 2
    assert trained.denoiser().plane_side == 2
    Image.fromarray(np.linspace(60, 190, 16).astype(np.uint8).reshape(4, 4)).save("low.png")
    sampling = "sample", "run", "--source", "low.png", "--num_images", "2", "--steps", "2"
    assert run(*sampling) == 0
    assert run(*sampling, "--agree", "true", "--output", "agreeing") == 0
    image = torch.tensor(np.asarray(Image.open(next(Path("agreeing").glob("low*.png")))))[None, None] / 127.5 - 1
    again = Degradation([Step(downscale=2)], (1, 8, 8)).apply(image)[0, 0]
    np.testing.assert_allclose(again, np.asarray(Image.open("low.png")) / 127.5 - 1, atol=1.01 / 255)


def test_an_autoencoder_is_scored_on_the_images_that_it_holds_out(vae, capsys):
    assert run("evaluate", "vae") == 0
    output = capsys.readouterr().out
    assert "89 held-out images" in output and "1.33 times fewer numbers" in output
    record = json.loads(Path("vae/evaluations/000/evaluation.json").read_text())
    held_out = load_images(Run("vae").config(AutoencoderRunConfig).data, log=lambda text: None).split_held_out()[1]
    pixels = held_out.__getitems__(list(range(89)))["image"]
    theirs = AutoencoderKL.from_pretrained("vae/model").eval()
    with torch.no_grad():
        latent = theirs.encode(normalize(pixels, 8)).latent_dist
        after = denormalize(theirs.decode(latent.mean).sample, 8)
    error = (after.double() - pixels.double()).div(255).square().mean((1, 2, 3))
    assert record["scores"]["psnr"]["value"] == pytest.approx((-10 * error.log10()).mean().item(), abs=1e-4)
    nats = 0.5 * (latent.mean**2 + latent.var - 1 - latent.logvar).mean((0, 2, 3))
    np.testing.assert_allclose(record["latents"]["kl"], nats, rtol=1e-4)
    assert record["collapsed"] == [number for number, value in enumerate(nats) if value < 0.05]
    assert Path("vae/evaluations/000/changed_most.png").exists()


def test_mistakes_are_one_line(vae, capsys):
    small = ["--config", "small.yaml", "--codec.from", "vae"]
    assert "does not divide 9×9; use --data.resolution 8" in mistake(capsys, "train", *small, "--data.resolution", "9")
    assert "data.augmentation" in mistake(capsys, "train", *small, "--data.augmentation", "0.1")
    for index in range(4):
        write_image(Path("photos") / f"{index}.png", "RGB", (8, 8), seed=index)
    assert run("train", *small, "--data.path", "photos") == 2
    assert "codec.from: vae takes images of 1 channels" in capsys.readouterr().err  # below the bar of decoding
    missing = mistake(capsys, "train", "--config", "small.yaml", "--codec.from", "nothing")
    assert "nothing: no autoencoder here" in missing
    assert "a run of autoencoding, not of generation" in mistake(capsys, "sample", "vae")
    odd = ["--config", "vae.yaml", "--data.resolution", "9", "--train.output", "odd"]
    assert "autoencoder.channels" in mistake(capsys, "train", *odd)
    train_small("--codec.from", "vae", "--train.steps", "1")
    assert "agree: no source is given" in mistake(capsys, "sample", "run", "--agree", "true")
    assert "tile: each latent stands for 2×2 pixels (got 7); use 8" in mistake(capsys, "sample", "run", "--tile", "7")
