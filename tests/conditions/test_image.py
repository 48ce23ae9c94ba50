import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import small_unet
from PIL import Image

from diffunet.conditions.base import ABSENT
from diffunet.conditions.image import ImageConfig
from diffunet.core.errors import UserError
from diffunet.core.rng import BatchRNG
from diffunet.data.config import DataConfig
from diffunet.data.dataset import load_images
from diffunet.data.pixels import denormalize, normalize
from diffunet.models.conditioning import PlaneEmbedding

SIDE = 16
MASK = [{"mask": [0.2, 0.5]}]


def config(**settings) -> ImageConfig:
    return ImageConfig.model_validate(settings)


def rng() -> BatchRNG:
    return BatchRNG(torch.Generator().manual_seed(0))


@pytest.fixture
def pairs(tmp_path):
    """Return an image folder whose sources are the images mirrored top to bottom; the third has none."""
    random = np.random.default_rng(0)
    records = []
    (tmp_path / "sources").mkdir()
    for index in range(8):
        image = random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / f"{index}.png")
        Image.fromarray(image[::-1].copy()).save(tmp_path / "sources" / f"{index}.png")
        source = None if index == 2 else f"sources/{index}.png"
        records.append({"file_name": f"{index}.png", "source_file_name": source, "file": source, "number": index})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, records)))
    return tmp_path


def load(path, condition, **settings):
    data = DataConfig(path=str(path), **settings)
    return load_images(data, {"source": condition}, log=lambda line: None)


def prepared(images, indices):
    return images.prepare(images.__getitems__(indices), rng())


# ── data ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("column", [None, "source", "file"])
@pytest.mark.parametrize("memory_budget", [2.0, 0.0])
def test_pairs_are_read_from_images_or_their_files(pairs, column, memory_budget):
    images = load(pairs, config(column=column), memory_budget=memory_budget)
    batch = prepared(images, [0, 1, 2, 5])
    assert torch.equal(batch["source"][[0, 1, 3]], batch["image"][[0, 1, 3]].flip(-2))
    assert batch["source"][2].isnan().all()
    assert images.conditions["source"].channels == 3
    words = images.columns["source"].words(images.__getitems__([1, 2])["source"], batch["image"][:2], rng())
    assert torch.equal(words[0], denormalize(batch["source"][1], 8)) and words[1] is None


def test_pairs_are_flipped_and_distorted_with_their_image(pairs):
    images = load(pairs, config(), random_flip=True)
    batch = prepared(images, [0, 1, 3, 4, 5, 6, 7])
    assert torch.equal(batch["source"], batch["image"].flip(-2))
    assert not torch.equal(batch["image"], prepared(load(pairs, config()), [0, 1, 3, 4, 5, 6, 7])["image"])
    distorted = prepared(load(pairs, config(), augmentation=0.5), [0, 1, 2])
    assert distorted["source"][:2].isfinite().all() and distorted["source"][2].isnan().all()


def test_a_condition_is_made_from_the_augmented_image(pairs):
    images = load(pairs, config(by=[{"gray": True}]), random_flip=True, augmentation=0.5)
    batch = prepared(images, list(range(8)))
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    torch.testing.assert_close(batch["source"], (batch["image"] * luma).sum(1, keepdim=True), atol=1e-5, rtol=0)


def test_the_fingerprint_follows_the_sources(pairs):
    before, alone = load(pairs, config()).fingerprint, load(pairs, config(by=[{"downscale": 2}])).fingerprint
    assert before == load(pairs, config(), memory_budget=0.0).fingerprint != alone
    Image.new("RGB", (SIDE, SIDE)).save(pairs / "sources" / "4.png")
    assert load(pairs, config()).fingerprint != before
    assert load(pairs, config(by=[{"blur": 1}])).fingerprint == alone


def test_noise_on_the_condition_is_an_input_too(pairs):
    plain = prepared(load(pairs, config(by=MASK)), [0, 1, 2, 3])["source"]
    images = load(pairs, config(by=MASK, noise=[0.1, 0.4]))
    planes = prepared(images, [0, 1, 2, 3])["source"]
    values, mask, level = planes.split([3, 1, 1], dim=1)
    assert torch.equal(mask, plain[:, 3:])
    assert (level == level[:, :, :1, :1]).all() and level.amin() >= 0.1 and level.amax() <= 0.4
    noise = (values - (1 - level**2).sqrt() * plain[:, :3]) / level
    assert noise.std().item() == pytest.approx(1, abs=0.05) and noise.mean().abs() < 0.05


@pytest.mark.parametrize("by", [(), MASK, [{"gray": True}, {"downscale": 2}], [{"extend": [1, 1, 2, 2]}]])
@pytest.mark.parametrize("noise", [None, [0, 0.2]])
def test_the_network_has_a_channel_for_each_plane(pairs, by, noise):
    images = load(pairs, config(by=by, noise=noise))
    resolved, planes = images.conditions["source"], prepared(images, [0, 1, 2])["source"]
    embedding = resolved.build_embedding("source", small_unet())
    assert embedding(planes).planes.shape[1] == resolved.plane_channels == embedding(None).planes.shape[1]
    assert ImageConfig.model_validate(resolved.model_dump(mode="json")) == resolved


def test_unusable_columns_are_refused(pairs):
    for column, message in (
        ("surce", "conditions.source.column: no column surce in .*; did you mean source"),
        ("number", "column number of .* does not contain images"),
    ):
        with pytest.raises(UserError, match=message):
            load(pairs, config(column=column))
    assert "source" not in load_images(DataConfig(path=str(pairs)), {"other": config()}, log=print).columns
    Image.new("RGB", (SIDE, SIDE // 2)).save(pairs / "sources" / "0.png")
    with pytest.raises(UserError, match="images of another shape .got 8×16 beside 16×16"):
        load(pairs, config())
    with pytest.raises(UserError, match="conditions.source.by.0.downscale: does not divide 16×16"):
        load(pairs, config(by=[{"downscale": 3}]))


def test_files_outside_of_the_folder_are_refused(pairs):
    records = [json.loads(line) for line in (pairs / "metadata.jsonl").read_text().splitlines()]
    outside = pairs.parent / "private.png"
    Image.new("RGB", (SIDE, SIDE)).save(outside)
    for file, message in ((f"../{outside.name}", "outside of the folder"), ("sources/none.png", "which is no file")):
        lines = [json.dumps({**record, "file": file}) for record in records]
        (pairs / "metadata.jsonl").write_text("\n".join(lines))
        with pytest.raises(UserError, match=message):
            load(pairs, config(column="file"))


def test_an_unreadable_source_is_absent(pairs, capsys):
    (pairs / "sources" / "1.png").write_bytes(b"no image")
    batch = prepared(load(pairs, config()), [0, 1])
    assert batch["source"][0].isfinite().all() and batch["source"][1].isnan().all()
    assert "without its source" in capsys.readouterr().out


# ── embedding ─────────────────────────────────────────────────────────────────────────────────────


def test_nan_is_an_absent_image_without_a_trace_in_gradients():
    embedding, layer = PlaneEmbedding(channels=2), torch.nn.Conv2d(3, 1, 3)
    image = torch.randn(4, 2, 6, 6)
    image[1, 0, 2, 3] = image[2] = torch.nan
    image.requires_grad_()
    planes = embedding(image, torch.tensor([True, True, False, False])).planes
    assert (planes[1:] == 0).all() and (planes[0, 2] == 1).all() and torch.equal(planes[0, :2], image[0])
    assert torch.equal(embedding(image).planes[1:3], torch.zeros(2, 3, 6, 6))
    layer(planes).square().sum().backward()
    assert image.grad.isfinite().all() and layer.weight.grad.isfinite().all()


# ── use ───────────────────────────────────────────────────────────────────────────────────────────


def parse(condition, words, size=(SIDE, SIDE)):
    return condition.parse("source", words, Path(), size)


def complete(**settings):
    return config(channels=3, bit_depth=8, **settings)


@pytest.mark.parametrize("by", [[{"downscale": 4}], [{"gray": True}], MASK, [{"extend": [1, 2, 3, 4]}]])
def test_files_of_held_out_words_give_the_planes_of_training(pairs, tmp_path, by):
    images = load(pairs, config(by=by))
    batch = images.__getitems__([0, 1, 2])
    planes = images.prepare(batch, rng())["source"]
    words = images.columns["source"].words(batch["source"], normalize(batch["image"], 8), rng())
    for index, word in enumerate(words):
        Image.fromarray(word.permute(1, 2, 0).squeeze().numpy()).save(tmp_path / f"word-{index}.png")
    values = parse(images.conditions["source"], [str(tmp_path / f"word-{index}.png") for index in range(3)])
    found = torch.stack([value.tensor for value in values])
    torch.testing.assert_close(found, planes, atol=2.5 / 255, rtol=0)
    assert all(value.size == (SIDE, SIDE) for value in values)


def test_folders_are_sorted_and_none_is_absent(pairs):
    values = parse(complete(), str(pairs / "sources"))
    assert [Path(value.word).name for value in values] == [f"{index}.png" for index in range(8)]
    assert parse(complete(), "none") == [ABSENT]
    mixed = parse(complete(), [None, str(pairs / "0.png")])
    assert mixed[0] is ABSENT and mixed[1].tensor.shape == (3, SIDE, SIDE)


def test_a_larger_source_determines_the_size_of_its_sample(tmp_path):
    Image.new("RGB", (10, 5)).save(tmp_path / "low.png")
    (value,) = parse(complete(by=[{"downscale": 4}]), str(tmp_path / "low.png"))
    assert value.size == (20, 40) and value.tensor.shape == (3, 20, 40) and value.measurement.shape == (3, 5, 10)
    with pytest.raises(UserError, match=r"too small \(got 5×10\); this run needs at least 8×8"):
        parse(complete(by=[{"downscale": 4}]), str(tmp_path / "low.png"), (32, 32))


def test_unusable_sources_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes(b"no image")
    for word, message in (
        ("empty", "source: .*empty contains no images"),
        ("missing.png", "source: .*missing.png does not exist"),
        ("broken.png", "source: .*broken.png cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            parse(complete(), str(tmp_path / word))


@pytest.mark.parametrize("by", [[{"downscale": 4}], MASK])
def test_samples_agree_with_their_source(tmp_path, by):
    condition = complete(by=by)
    operator = condition._degradation((SIDE, SIDE))
    truth = torch.rand(2, 3, SIDE, SIDE) * 1.8 - 0.9
    values, mask = operator.split(operator.degrade(truth, rng()))
    pixels = denormalize(values, 8)
    if mask is not None:
        pixels = torch.cat([pixels, ((1 - mask) * 255).to(torch.uint8)], dim=1)
    for index, source in enumerate(pixels):
        Image.fromarray(source.permute(1, 2, 0).numpy()).save(tmp_path / f"{index}.png")
    turn = [*parse(condition, str(tmp_path)), ABSENT]
    condition.check_agreement("source", turn)
    sample = torch.randn(3, 3, SIDE, SIDE)
    agreed = condition.agree(sample, turn)
    assert torch.equal(agreed[2], sample[2])
    image = normalize(denormalize(agreed[:2], 8), 8)
    again = denormalize(operator.apply(image, mask), 8)
    known = torch.ones_like(again, dtype=torch.bool) if mask is None else (mask == 0).expand_as(again)
    assert torch.equal(again[known], pixels[:, : again.shape[1]][known])


def test_only_fixed_linear_conditions_can_be_agreed_with():
    for condition, message in (
        (complete(column="source"), "not made from the image itself"),
        (complete(by=[{"blur": [0, 1]}, {"jpeg": [10, 50]}]), "made by blur, jpeg, which has no exact inverse"),
    ):
        with pytest.raises(UserError, match=message):
            condition.check_agreement("source", [])
