import shutil

import pytest
import torch
from helpers import write_image
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader

from diffunet.conditions.label import LabelConfig
from diffunet.core.errors import UserError
from diffunet.core.rng import BatchRNG
from diffunet.data.columns import Column
from diffunet.data.config import DataConfig
from diffunet.data.dataset import ImageDataset, load_images
from diffunet.data.pixels import normalize
from diffunet.data.sources import fingerprint

LABEL = {"label": None}


def class_names(dataset):
    return {name: condition.class_names for name, condition in dataset.conditions.items()}


def load(path, labels=None, **options):
    """Return the dataset at a path, and what was logged."""
    conditions = {name: LabelConfig(column=column) for name, column in (labels or {}).items()}
    logged = []
    return load_images(DataConfig(path=str(path), **options), conditions, log=logged.append), "\n".join(logged)


def test_digits_are_those_of_scikit_learn():
    dataset, _ = load("digits", LABEL)
    found = load_digits()
    assert torch.equal((dataset.images[:, 0].double() * 16 / 255).round(), torch.from_numpy(found.images))
    assert dataset.columns["label"].values.tolist() == found.target.tolist()
    assert class_names(dataset) == {"label": tuple("0123456789")}


@pytest.fixture
def mixed(tmp_path):
    """Two class folders of JPEG and PNG in many sizes and modes."""
    write_image(tmp_path / "cat" / "color.png", "RGB", (30, 20))
    write_image(tmp_path / "cat" / "gray.png", "L", (16, 16))
    write_image(tmp_path / "cat" / "deep.png", "I;16", (20, 24))
    write_image(tmp_path / "dog" / "photo.jpg", "RGB", (40, 25))
    write_image(tmp_path / "dog" / "palette.png", "P", (18, 30))
    write_image(tmp_path / "dog" / "see through.png", "RGBA", (16, 20))
    return tmp_path


def test_a_folder_of_mixed_images(mixed):
    dataset, logged = load(mixed, LABEL, resolution=(16, 12))
    assert len(dataset) == 6
    batch = dataset.__getitems__([0, 5])
    assert batch["image"].shape == (2, 3, 16, 12)
    assert batch["image"].dtype == torch.uint8
    assert class_names(dataset) == {"label": ("cat", "dog")}
    assert sorted(dataset.columns["label"].values.tolist()) == [0, 0, 0, 1, 1, 1]
    assert "3 channels, 8 bits" in logged
    assert "composited on white" in logged
    assert "1 I;16 16-bit" in logged


def test_decoding_as_needed_gives_the_same_images(mixed):
    decoded, _ = load(mixed, resolution=16)
    lazy, logged = load(mixed, resolution=16, memory_budget=0.0)
    assert "decoded as needed" in logged
    assert decoded.workers == 0
    assert lazy.workers == 2
    every = list(range(6))
    assert torch.equal(decoded.__getitems__(every)["image"], lazy.__getitems__(every)["image"])


def test_broken_images_are_counted_and_skipped(tmp_path):
    for number in range(3):
        write_image(tmp_path / "a" / f"{number}.png", size=(16, 16), seed=number)
        write_image(tmp_path / "b" / f"{number}.png", size=(16, 16), seed=9 + number)
    (tmp_path / "a" / "1.png").write_bytes(b"this is not an image")
    truncated = (tmp_path / "b" / "2.png").read_bytes()
    (tmp_path / "b" / "2.png").write_bytes(truncated[: len(truncated) // 2])
    dataset, logged = load(tmp_path, LABEL)
    assert len(dataset) == 4
    assert dataset.columns["label"].values.tolist() == [0, 0, 1, 1]
    assert "skipped 2 of 6 images" in logged
    assert "1.png (not an image)" in logged
    assert "2.png (" in logged

    lazy, _ = load(tmp_path, memory_budget=0.0)
    assert lazy.__getitems__(list(range(6)))["image"].shape == (6, 3, 16, 16)


def test_indices_out_of_range_are_an_error():
    for dataset in load("digits")[0].split_held_out():
        dataset.__getitems__([0, len(dataset) - 1])
        for indices in ([len(dataset)], [0, -1]):
            with pytest.raises(IndexError, match=f"indices .* of a dataset of {len(dataset)} images"):
                dataset.__getitems__(indices)


def test_flips_mirror_whole_images_and_follow_the_position():
    dataset, _ = load("digits", random_flip=True)
    batch = dataset.__getitems__(list(range(200)))
    plain = normalize(batch["image"], 8)
    rng = BatchRNG.at(0, 0, slice(0, 200), 200, torch.device("cpu"))
    flipped = dataset.prepare(batch, rng)["image"]
    same = (flipped == plain).flatten(1).all(1)
    mirrored = (flipped == plain.flip(-1)).flatten(1).all(1)
    assert (same | mirrored).all()
    assert 60 < same.sum() < 140
    half = BatchRNG.at(0, 0, slice(100, 200), 200, torch.device("cpu"))
    later = {name: values[100:] for name, values in batch.items()}
    assert torch.equal(dataset.prepare(later, half)["image"], flipped[100:])


def test_training_and_held_out_images_are_disjoint():
    dataset = load_images(DataConfig(held_out=0.1), {"label": LabelConfig()})
    trained, held_out = dataset.split_held_out()
    assert (len(trained), len(held_out)) == (1618, 179)
    assert sorted([*trained.indices.tolist(), *held_out.indices.tolist()]) == list(range(1797))
    batch = held_out.__getitems__([3, 0])
    indices = held_out.indices[[3, 0]]
    assert torch.equal(batch["image"], dataset.images[indices])
    assert torch.equal(batch["label"], dataset.columns["label"].values[indices])
    assert len(held_out.indices.unique()) == 179
    again, _ = load_images(DataConfig(held_out=0.1)).split_held_out()
    assert torch.equal(again.indices, trained.indices)
    all_of_them, none = load_images(DataConfig(held_out=0.0)).split_held_out()
    assert (len(all_of_them), len(none)) == (1797, 0)


def test_at_most_1000_images_are_held_out():
    images = torch.zeros(30_000, 1, 1, 1, dtype=torch.uint8)
    config = DataConfig(resolution=1, channels=1, bit_depth=8, held_out=0.5)
    trained, held_out = ImageDataset(config, images).split_held_out()
    assert (len(trained), len(held_out)) == (29_000, 1000)


def test_augmented_batches_carry_augment_labels():
    dataset = load_images(DataConfig(augmentation=0.3), {"label": LabelConfig()})
    batch = dataset.__getitems__(list(range(200)))
    augmented = dataset.prepare(batch, BatchRNG(torch.Generator().manual_seed(0)))
    plain = load_images(DataConfig(), {"label": LabelConfig()}).prepare(batch, BatchRNG())
    assert augmented["augmentation"].shape == (200, 8)
    same = (augmented["image"] == plain["image"]).flatten(1).all(1)
    assert torch.equal(same, (augmented["augmentation"] == 0).all(1))
    assert "augmentation" not in plain
    assert torch.equal(augmented["label"], batch["label"])


def test_the_fingerprint_depends_on_files_and_labels_only(mixed, tmp_path_factory):
    elsewhere = shutil.copytree(mixed, tmp_path_factory.mktemp("elsewhere") / "moved")
    (whole,) = {
        load(path, LABEL, resolution=16, memory_budget=budget)[0].fingerprint
        for path in (mixed, elsewhere)
        for budget in (0.0, 2.0)
    }
    dataset, _ = load(mixed, LABEL, resolution=16)
    assert {half.fingerprint for half in dataset.split_held_out()} == {whole}
    digits = load("digits", LABEL)[0].fingerprint
    assert digits == load("digits", LABEL, resolution=16)[0].fingerprint

    photo = elsewhere / "dog" / "photo.jpg"
    encoded = photo.read_bytes()
    photo.write_bytes(encoded[:300] + bytes([encoded[300] ^ 1]) + encoded[301:])
    assert load(elsewhere, LABEL, resolution=16)[0].fingerprint != whole
    photo.write_bytes(encoded)
    photo.rename(elsewhere / "cat" / "photo.jpg")
    assert load(elsewhere, LABEL, resolution=16)[0].fingerprint not in (whole, digits, "")


def test_fingerprints_of_checkpoints_stay_valid():
    """Checkpoints of format 1 contain these values, of digits without and with classes."""
    start = {labels: load("digits", dict.fromkeys(labels))[0].fingerprint[:16] for labels in ((), ("label",))}
    assert start == {(): "7352071287e44659", ("label",): "a5857fc5d4eb3ecf"}
    assert load("digits", {"digit": "label"})[0].fingerprint.startswith("a5857fc5d4eb3ecf")
    a, b = Column(torch.tensor([0, 1])), Column(torch.tensor([1, 0]))
    both = fingerprint(2, {"a": a, "b": b}, [])
    assert both == fingerprint(2, {"b": b, "a": a}, [])
    assert both not in (fingerprint(2, {"a": b, "b": a}, []), fingerprint(2, {"a": a}, []))


def broken_pair(tmp_path):
    """Return a lazy dataset of which the second of two images is truncated."""
    write_image(tmp_path / "0.png", size=(8, 8))
    write_image(tmp_path / "1.png", size=(8, 8))
    png = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(png[: len(png) // 2])
    return load(tmp_path, memory_budget=0.0)[0]


def test_a_broken_image_is_reported_once_while_decoding_as_needed(tmp_path, capsys):
    dataset = broken_pair(tmp_path)
    for _ in range(3):
        dataset.__getitems__([0, 1])
    assert capsys.readouterr().out.count("skipped") == 1
    (tmp_path / "0.png").unlink()
    with pytest.raises(UserError, match="none of the 2 images in .* is readable any more"):
        dataset.__getitems__([0])


def test_workers_share_the_reported_images(tmp_path):
    """Two generations of workers: the second one finds what the first one reported."""
    dataset = broken_pair(tmp_path)
    assert not dataset.images.reported.any()
    for _ in range(2):
        list(DataLoader(dataset, batch_sampler=[[0, 1]] * 4, num_workers=2, collate_fn=lambda batch: batch))
    assert dataset.images.reported.tolist() == [False, True]
