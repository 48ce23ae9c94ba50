import json
import os
import shutil
import zlib
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pytest
import torch
from helpers import write_image
from PIL import Image
from pyarrow import parquet
from sklearn.datasets import load_digits

from diffunet.data.dataset import DataConfig, ImageDataset, load_images, normalize, denormalize
from diffunet.core.rng import BatchRNG
from diffunet.core.errors import UserError
from diffunet.data.sources import class_labels, split_patterns
from stress.fuzz_images import png


def opened(path, labelled=False, **options):
    """The pictures of a path, and what was said while opening them."""
    said = []
    return load_images(DataConfig(path=str(path), **options), labelled, say=said.append), "\n".join(said)


def test_digits_are_scikit_learns():
    pictures, _ = opened("digits", labelled=True)
    found = load_digits()
    assert torch.equal((pictures.images[:, 0].double() * 16 / 255).round(), torch.from_numpy(found.images))
    assert pictures.labels.tolist() == found.target.tolist()
    assert pictures.class_names == tuple("0123456789")


@pytest.mark.parametrize("bit_depth", [8, 16])
def test_pixels_survive_the_way_to_the_model_and_back(bit_depth):
    pixels = torch.arange(2**bit_depth).reshape(1, 1, -1, 16)
    image = normalize(pixels, bit_depth)
    assert image.min() == -1
    assert image.max() == 1
    assert torch.equal(denormalize(image, bit_depth).int(), pixels.int())


def test_values_outside_are_clipped_and_nan_is_never_drawn():
    assert denormalize(torch.tensor([-3.0, 3.0]), 8).tolist() == [0, 255]
    with pytest.raises(UserError, match="not finite"):
        denormalize(torch.tensor([0.0, torch.nan]), 8)


@pytest.fixture
def mixed(tmp_path):
    """Two class folders of JPEG and PNG in many sizes and modes."""
    write_image(tmp_path / "cat" / "colour.png", "RGB", (30, 20))
    write_image(tmp_path / "cat" / "grey.png", "L", (16, 16))
    write_image(tmp_path / "cat" / "deep.png", "I;16", (20, 24))
    write_image(tmp_path / "dog" / "photo.jpg", "RGB", (40, 25))
    write_image(tmp_path / "dog" / "palette.png", "P", (18, 30))
    write_image(tmp_path / "dog" / "see through.png", "RGBA", (16, 20))
    return tmp_path


def test_a_folder_of_mixed_pictures(mixed):
    pictures, said = opened(mixed, labelled=True, resolution=(16, 12))
    assert len(pictures) == 6
    batch = pictures.__getitems__([0, 5])
    assert batch["image"].shape == (2, 3, 16, 12)
    assert batch["image"].dtype == torch.uint8
    assert pictures.class_names == ("cat", "dog")
    assert sorted(pictures.labels.tolist()) == [0, 0, 0, 1, 1, 1]
    assert "3 channels, 8 bits" in said
    assert "laid on white" in said
    assert "1 I;16 16-bit" in said


def test_decoding_as_needed_gives_the_same_pictures(mixed):
    kept, _ = opened(mixed, resolution=16)
    needed, said = opened(mixed, resolution=16, memory_budget=0.0)
    assert "decoded as needed" in said
    assert kept.workers == 0
    assert needed.workers == 2
    every = list(range(6))
    assert torch.equal(kept.__getitems__(every)["image"], needed.__getitems__(every)["image"])


def test_transparency_is_kept_when_asked_for_and_white_otherwise(tmp_path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert opened(tmp_path)[0].config.channels == 4
    assert (opened(tmp_path, channels=3)[0].images == 255).all()
    assert opened(tmp_path, channels=4)[0].images[0, :, 0, 0].tolist() == [255, 0, 0, 0]


def test_sixteen_bits_are_kept(tmp_path):
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    pictures, said = opened(tmp_path)
    assert "16 bits" in said
    assert pictures.images[0, 0].tolist() == ramp.tolist()
    eight = opened(tmp_path, bit_depth=8)[0].images[0, 0]
    assert eight.tolist() == np.round(ramp / 257).astype(int).tolist()


def test_sixteen_bit_colour_is_kept(tmp_path):
    """Pillow opens such files with 8 bits and says nothing."""
    pixels = np.random.default_rng(0).integers(0, 65536, (4, 5, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    (tmp_path / "colour.png").write_bytes(png(5, 4, zlib.compress(rows), bits=16, colour=2))
    pictures, said = opened(tmp_path)
    assert "3 channels, 16 bits" in said
    assert pictures.images[0].permute(1, 2, 0).tolist() == pixels.tolist()


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6                                                           # a quarter turn
    write_image(tmp_path / "turned.jpg", "RGB", (24, 16), exif=exif)
    assert opened(tmp_path)[0].config.size == (24, 16)


def test_pictures_are_scaled_to_cover_and_cropped_to_the_centre(tmp_path):
    wide = np.zeros((8, 24), dtype=np.uint8)
    wide[:, 8:16] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert (opened(tmp_path, resolution=8)[0].images == 200).all()


def test_broken_pictures_are_named_counted_and_left_out(tmp_path):
    for number in range(3):
        write_image(tmp_path / "a" / f"{number}.png", size=(16, 16), seed=number)
        write_image(tmp_path / "b" / f"{number}.png", size=(16, 16), seed=9 + number)
    (tmp_path / "a" / "1.png").write_bytes(b"this is no picture")
    cut = (tmp_path / "b" / "2.png").read_bytes()
    (tmp_path / "b" / "2.png").write_bytes(cut[: len(cut) // 2])
    pictures, said = opened(tmp_path, labelled=True)
    assert len(pictures) == 4
    assert pictures.labels.tolist() == [0, 0, 1, 1]
    assert "left out 2 of 6 pictures" in said
    assert "1.png (not a picture)" in said
    assert "2.png (" in said

    as_needed, _ = opened(tmp_path, memory_budget=0.0)
    assert as_needed.__getitems__(list(range(6)))["image"].shape == (6, 3, 16, 16)


def test_nothing_usable_is_an_error_for_people(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"data.path: .*empty holds no pictures"):
        opened(tmp_path / "empty")
    with pytest.raises(UserError, match=r"data.path: .*emty does not exist; did you mean empty\?"):
        opened(tmp_path / "emty")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"")
    with pytest.raises(UserError, match="none of the 1 pictures"):
        opened(tmp_path / "bad")
    write_image(tmp_path / "two" / "a.png", size=(8, 8))
    write_image(tmp_path / "two" / "b.png", size=(9, 8))
    with pytest.raises(UserError, match=r"data.resolution: .* 2 sizes, 8×8 to 8×9 \(height×width\)"):
        opened(tmp_path / "two")


def test_parquet(tmp_path):
    import datasets

    for number in range(4):
        write_image(tmp_path / f"{number}.png", size=(8, 8), seed=number)
    files = [str(tmp_path / f"{number}.png") for number in range(4)]
    images = [{"bytes": Path(file).read_bytes(), "path": file} for file in files]
    columns = {"img": images, "kind": ["b", "a", "b", "b"], "grade": [0, 2, 1, 0]}
    rows = datasets.Dataset.from_dict(columns).cast_column("img", datasets.Image())
    (tmp_path / "set").mkdir()
    rows.to_parquet(tmp_path / "set" / "train-0.parquet")
    rows.select([0]).to_parquet(tmp_path / "set" / "test-0.parquet")

    pictures, _ = opened(tmp_path / "set", labelled=True, label_column="kind")
    assert pictures.class_names == ("a", "b")
    assert pictures.labels.tolist() == [1, 0, 1, 1]
    assert np.array_equal(pictures.images[2].permute(1, 2, 0), np.array(Image.open(files[2])))
    assert opened(tmp_path / "set" / "train-0.parquet", labelled=True, label_column="grade")[0].class_names == (
        "0",
        "1",
        "2",
    )
    with pytest.raises(UserError, match=r"no column image in .*; did you mean img\?"):
        opened(tmp_path / "set", image_column="image")
    with pytest.raises(UserError, match="data.label_column: no column kinds in .*; did you mean kind"):
        opened(tmp_path / "set", labelled=True, label_column="kinds")


def test_columns_of_metadata_become_labels(tmp_path):
    lines = []
    for number, colour in enumerate(["red", "blue", "red"]):
        write_image(tmp_path / f"{number}.png", size=(8, 8))
        lines.append(json.dumps({"file_name": f"{number}.png", "colour": colour}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    pictures, _ = opened(tmp_path, labelled=True, label_column="colour")
    assert pictures.class_names == ("blue", "red")
    assert sorted(pictures.labels.tolist()) == [0, 1, 1]
    write_image(tmp_path / "unnamed.png", size=(8, 8))
    assert "1 pictures in" in opened(tmp_path)[1]


def test_flips_are_whole_pictures_and_follow_the_position():
    pictures, _ = opened("digits", random_flip=True)
    batch = pictures.__getitems__(list(range(200)))
    plain = normalize(batch["image"], 8)
    rng = BatchRNG.at(0, 0, slice(0, 200), 200, torch.device("cpu"))
    flipped = pictures.prepare(batch, rng)["image"]
    same = (flipped == plain).flatten(1).all(1)
    mirrored = (flipped == plain.flip(-1)).flatten(1).all(1)
    assert (same | mirrored).all()
    assert 60 < same.sum() < 140
    half = BatchRNG.at(0, 0, slice(100, 200), 200, torch.device("cpu"))
    later = {name: values[100:] for name, values in batch.items()}
    assert torch.equal(pictures.prepare(later, half)["image"], flipped[100:])


def test_pictures_held_out_are_never_trained_on():
    pictures = load_images(DataConfig(held_out=0.1), labelled=True)
    trained, held_out = pictures.split_held_out()
    assert (len(trained), len(held_out)) == (1618, 179)
    assert sorted([*trained.places.tolist(), *held_out.places.tolist()]) == list(range(1797))
    batch = held_out.__getitems__([3, 0])
    places = held_out.places[[3, 0]]
    assert torch.equal(batch["image"], pictures.images[places])
    assert torch.equal(batch["label"], pictures.labels[places])
    assert len(held_out.places.unique()) == 179
    again, _ = load_images(DataConfig(held_out=0.1), labelled=False).split_held_out()
    assert torch.equal(again.places, trained.places)
    few, none = load_images(DataConfig(held_out=0.0), labelled=True).split_held_out()
    assert (len(few), len(none)) == (1797, 0)


def test_no_more_are_held_out_than_needed():
    images = torch.zeros(30_000, 1, 1, 1, dtype=torch.uint8)
    config = DataConfig(resolution=1, channels=1, bit_depth=8, held_out=0.5)
    trained, held_out = ImageDataset(config, images, None).split_held_out()
    assert (len(trained), len(held_out)) == (29_000, 1000)


def test_distortions_are_told():
    pictures = load_images(DataConfig(augmentation=0.3), labelled=True)
    batch = pictures.__getitems__(list(range(200)))
    found = pictures.prepare(batch, BatchRNG(torch.Generator().manual_seed(0)))
    plain = load_images(DataConfig(), labelled=True).prepare(batch, BatchRNG())
    assert found["augmentation"].shape == (200, 8)
    same = (found["image"] == plain["image"]).flatten(1).all(1)
    assert torch.equal(same, (found["augmentation"] == 0).all(1))
    assert "augmentation" not in plain
    assert torch.equal(found["label"], batch["label"])


def test_a_data_set_is_known_again(mixed, tmp_path_factory):
    """Wherever it lies and however it is decoded, but not with one byte or label changed."""
    elsewhere = shutil.copytree(mixed, tmp_path_factory.mktemp("elsewhere") / "moved")
    (mark,) = {
        opened(path, labelled=True, resolution=16, memory_budget=budget)[0].fingerprint
        for path in (mixed, elsewhere)
        for budget in (0.0, 2.0)
    }
    pictures, _ = opened(mixed, labelled=True, resolution=16)
    assert {half.fingerprint for half in pictures.split_held_out()} == {mark}
    digits = opened("digits", labelled=True)[0].fingerprint
    assert digits == opened("digits", labelled=True, resolution=16)[0].fingerprint

    photo = elsewhere / "dog" / "photo.jpg"
    encoded = photo.read_bytes()
    photo.write_bytes(encoded[:300] + bytes([encoded[300] ^ 1]) + encoded[301:])
    assert opened(elsewhere, labelled=True, resolution=16)[0].fingerprint != mark
    photo.write_bytes(encoded)
    photo.rename(elsewhere / "cat" / "photo.jpg")
    assert opened(elsewhere, labelled=True, resolution=16)[0].fingerprint not in (mark, digits, "")


def test_a_strip_is_cut_before_it_is_enlarged(tmp_path):
    """A line of 20,000 pixels that covers 64×64 would be 1,280,000 pixels wide in between."""
    line = np.zeros((1, 20_000, 3), dtype=np.uint8)
    line[:, 9_990:10_010] = (10, 200, 30)
    Image.fromarray(line).save(tmp_path / "line.png")
    Image.fromarray(line.transpose(1, 0, 2)).save(tmp_path / "post.png")
    pictures, _ = opened(tmp_path, resolution=64)
    assert (pictures.images == torch.tensor([10, 200, 30])[:, None, None]).all()


@pytest.mark.parametrize(
    "tree",
    [
        ("cat/1.png", "dog/2.png"),
        ("train/cat/1.png", "train/dog/2.png", "test/cat/3.png"),
        ("a/training 2/cat/1.png", "a/my-eval/cat/2.png", "b/cat/3.png"),
        ("train_1.png", "2-validation.png", "other.png", "sub/3.dev.png"),
        ("test.png", "sub/train/1.png"),
        ("test", "__eval.png", "1.png"),
        ("latest/1.png", "valley/2.png", "Train/3.png", "detest_4.png"),
        (".train/1.png", "__test/2.png", "cat/3.png", ".val.png"),
        ("val[1]/1.png", "x[train]/2.png", "train*/3.png"),
        ("train_test/1.png", "val.test/2.png"),
    ],
)
def test_splits_are_those_that_datasets_finds(tmp_path, tree):
    for name in tree:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    own = datasets.load_dataset_builder("imagefolder", data_dir=str(tmp_path)).config.data_files
    ours = datasets.load_dataset_builder("imagefolder", data_dir=str(tmp_path), data_files=split_patterns(tmp_path))
    assert {split: sorted(files) for split, files in ours.config.data_files.items()} == {
        str(split): sorted(files) for split, files in own.items()
    }


def test_pictures_that_are_no_pictures_are_named_with_the_reason(tmp_path):
    write_image(tmp_path / "good.png", size=(8, 8))
    Image.new("F", (8, 8)).save(tmp_path / "depth.tif")
    (tmp_path / "bomb.png").write_bytes(png(12_000, 12_000, b""))
    (tmp_path / "huge.png").write_bytes(png(2**31 - 1, 2**31 - 1, b""))
    (tmp_path / "drawing.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    (tmp_path / "two\nlines.png").touch()
    _, said = opened(tmp_path)
    *_, last = said.splitlines()
    assert last.startswith("left out 5 of 6 pictures: ")
    for reason in (
        "depth.tif (floating-point pixels are not supported)",
        "bomb.png (12000 × 12000 pixels are too many)",
        "huge.png (Image size",
        "drawing.eps (PostScript is a program, and is not run)",
        r"two\nlines.png (not a picture)",
    ):
        assert reason in last


def test_of_what_moves_the_first_picture_is_taken(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime")]
    frames[0].save(tmp_path / "moving.png", save_all=True, append_images=frames[1:])
    assert opened(tmp_path)[0].images[0, :, 0, 0].tolist() == [255, 0, 0]


def test_a_broken_picture_is_named_once_while_decoding_as_needed(tmp_path, capsys):
    write_image(tmp_path / "0.png", size=(8, 8))
    write_image(tmp_path / "1.png", size=(8, 8))
    cut = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(cut[: len(cut) // 2])
    pictures, _ = opened(tmp_path, memory_budget=0.0)
    for _ in range(3):
        pictures.__getitems__([0, 1])
    assert capsys.readouterr().out.count("left out") == 1
    (tmp_path / "0.png").unlink()
    with pytest.raises(UserError, match="not one of the 2 pictures in .* can be read any more"):
        pictures.__getitems__([0])


@pytest.mark.parametrize("name", ["../secret.png", "SECRET", "a/../../secret.png", "pipe.png", "nothing.png"])
def test_metadata_cannot_name_what_is_not_in_the_folder(tmp_path, name):
    secret = write_image(tmp_path / "secret.png", size=(8, 8))
    write_image(tmp_path / "set" / "0.png", size=(8, 8))
    os.mkfifo(tmp_path / "set" / "pipe.png")
    name = name.replace("SECRET", str(secret))
    (tmp_path / "set" / "metadata.jsonl").write_text(json.dumps({"file_name": name}))
    with pytest.raises(UserError, match=f"data.path: .*{name}"):
        opened(tmp_path / "set")


def test_a_parquet_file_cannot_name_files_either(tmp_path):
    secret = write_image(tmp_path / "secret.png", size=(8, 8))
    (tmp_path / "set").mkdir()
    file = tmp_path / "set" / "0.parquet"
    parquet.write_table(pyarrow.table({"image": [{"bytes": None, "path": str(secret)}]}), file)
    with pytest.raises(UserError, match="names .*secret.png, which is outside of it"):
        opened(file, image_column="image")


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([0, None], "empty values"),
        ([-1, 0], "neither classes nor words"),
        ([0.5, 1.0], "neither classes nor words"),
        ([[0], [1]], "neither classes nor words"),
        ([0, 10**9], "classes up to 1000000000"),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path, labels, reason):
    picture = {"bytes": write_image(tmp_path / "x.png", size=(8, 8)).read_bytes(), "path": None}
    parquet.write_table(pyarrow.table({"image": [picture] * 2, "label": labels}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=f"data.label_column: column label of .*x.parquet .*{reason}"):
        opened(tmp_path / "x.parquet", labelled=True, image_column="image")


def test_rows_without_a_picture_are_named_by_their_number(tmp_path):
    picture = {"bytes": write_image(tmp_path / "x.png", size=(8, 8)).read_bytes(), "path": None}
    rows = [picture, None, {"bytes": b"none", "path": None}, {"bytes": None, "path": None}]
    parquet.write_table(pyarrow.table({"image": rows}), tmp_path / "x.parquet")
    pictures, said = opened(tmp_path / "x.parquet", image_column="image")
    assert len(pictures) == 1
    assert "3 of 4 pictures: row 1 (no picture there), row 2 (not a picture), row 3 (no picture there)" in said


def test_damaged_parquet_files_are_named(tmp_path):
    parquet.write_table(pyarrow.table({"image": []}), tmp_path / "0.parquet")
    with pytest.raises(UserError, match="holds no rows"):
        opened(tmp_path)
    (tmp_path / "1.parquet").write_bytes((tmp_path / "0.parquet").read_bytes()[:-9])
    with pytest.raises(UserError, match="1.parquet is no parquet file: "):
        opened(tmp_path)


def test_classes_without_a_name_are_refused():
    """So the hub marks what a test set does not tell."""
    import datasets

    rows = datasets.Dataset.from_dict({"label": [0, -1]}).cast_column("label", datasets.ClassLabel(names=["a", "b"]))
    with pytest.raises(UserError, match="column label of there has classes without a name, such as -1"):
        class_labels(rows, None, "there")
