"""Data and configurations of predictors that are wrong: one line, before anything is trained."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import mistake, run
from PIL import Image, ImageFilter

IMAGE = Path("pairs/images/a3.png")
LABEL = Path("pairs/labels/a3.png")


def each_label(change) -> None:
    for path in sorted(Path("pairs/labels").iterdir()):
        change(path)


def resized() -> None:
    Image.open(LABEL).resize((10, 24)).save(LABEL)


def smoothed(path: Path) -> None:
    image = Image.open(path).convert("RGB")
    colored = Image.merge("RGB", (image.getchannel(0), *[Image.new("L", image.size, 9)] * 2))
    colored.filter(ImageFilter.GaussianBlur(3)).save(path)


def as_jpeg(path: Path) -> None:
    shifted = np.roll(np.asarray(Image.open(path)), 3, (0, 1))  # JPEG keeps blocks of 8 pixels that have one value
    Image.fromarray(shifted).save(path.with_suffix(".jpg"), quality=95)
    path.unlink()


def as_stacks(counts: tuple[int, int]) -> None:
    for name, count in zip(("image", "label"), counts, strict=True):
        pages = [Image.fromarray(np.full((24, 20), page, np.uint8)) for page in range(count)]
        pages[0].save(f"pairs/{name}.tif", save_all=True, append_images=pages[1:])
    shutil.rmtree("pairs/images")


def as_channels(*missing: str) -> None:
    Path("pairs/images").rename("pairs/imagesTr")
    Path("pairs/labels").rename("pairs/labelsTr")
    for path in list(Path("pairs/imagesTr").iterdir()):
        for channel in range(2):
            if f"{path.stem}_{channel:04d}" not in missing:
                shutil.copy(path, path.with_name(f"{path.stem}_{channel:04d}.png"))
        path.unlink()


def with_metadata(line: str) -> None:
    Path("pairs/metadata.jsonl").write_text('{"file_name": "images/a0.png", "target": "labels/a0.png"}\n' + line)


def save(path: Path, array: np.ndarray) -> None:
    Image.fromarray(array).save(path)


def numbers() -> None:
    for path in list(Path("pairs/labels").iterdir()):
        np.save(path.with_suffix(".npy"), np.random.default_rng(0).random((24, 20)).astype(np.float32))
        path.unlink()


NOTHING = lambda: None  # noqa: E731
BLOCKS = np.kron(np.arange(30).reshape(6, 5), np.ones((4, 4), int))
DATA = {
    "mask of another size": (resized, "", "a3: the image has 24×20 pixels, its target 24×10; crop or scale one"),
    "smoothed colors": (lambda: each_label(smoothed), "", "data.labels: 2.* colors or more; list those of the classes"),
    "JPEG": (
        lambda: each_label(as_jpeg),
        "",
        "pairs/labels/a0.jpg: no label image: JPEG has blurred its values; save it as PNG",
    ),
    "one class": (
        lambda: each_label(lambda path: save(path, np.zeros((24, 20), np.uint8))),
        "",
        r"data.labels: the targets have one value \(0\); a segmentation needs at least two classes",
    ),
    "empty folder": (
        lambda: [shutil.rmtree("pairs"), Path("pairs").mkdir()],
        "",
        r"data.path: pairs has no pairs .*noth",
    ),
    "no folder": (lambda: shutil.move("pairs", "pair"), "", "data.path: pairs is no folder; did you mean pair?"),
    "other names": (
        lambda: each_label(lambda path: path.rename(path.with_name("mask_" + path.name))),
        "",
        r"no image in pairs/images has the name of a target in pairs/labels \(such as a0 and mask_a0",
    ),
    "objects as classes": (
        lambda: each_label(
            lambda path: save(path, (BLOCKS * 300 + len(path.stem) * 9 + int(path.stem[1])).astype("u2"))
        ),
        "",
        "more than 32 values .*; set data.labels instances if each is an object",
    ),
    "gray and colors": (
        lambda: save(LABEL, np.eye(24, dtype=np.uint8)[:, :20, None] * np.asarray([255, 0, 0], np.uint8)),
        "",
        "some targets are gray and some have colors",
    ),
    "fold out of range": (NOTHING, "--data.fold 5", "data.fold: 5, but there are folds 0 to 4"),
    "empty fold": (NOTHING, "--data.folds 500", "data.fold: 0 of 500 has none of the 8 cases"),
    "group": (NOTHING, "--data.group (b)", r"data.group: \(b\) does not match a0; it must match all"),
    "group without group": (NOTHING, "--data.group a.*", r"--data.group: a\.\* has no group; write"),
    "value not listed": (
        NOTHING,
        "--data.values [0,254]",
        "data.values: the targets also have 255; list these classes",
    ),
    "absent ignore": (NOTHING, "--data.ignore 254", "data.ignore: no target has the value 254; did you mean 255?"),
    "channels differ": (
        lambda: Image.open(IMAGE).convert("RGB").save(IMAGE),
        "",
        "data.channels: the image of a3 has 3, that of a0 1; choose 1 or 3",
    ),
    "broken image": (lambda: IMAGE.write_bytes(b"png"), "", "pairs/images/a3.png: not an image"),
    "cut image": (lambda: IMAGE.write_bytes(IMAGE.read_bytes()[:60]), "", "pairs/images/a3.png: "),
    "broken target": (lambda: LABEL.write_bytes(b"png"), "", "pairs/labels/a3.png: no label image: not an image"),
    "no channel": (lambda: as_channels("a3_0000"), "", "data.path: a3 has no channel 0000; add it"),
    "no last channel": (
        lambda: as_channels("a3_0001"),
        "",
        "data.channels: the image of a3 has 1, that of a0 2; .*missing",
    ),
    "twins": (
        lambda: shutil.copy(LABEL, LABEL.with_suffix(".bmp")),
        "",
        "labels/a3.* have the same name; rename or rem",
    ),
    "metadata, missing": (
        lambda: with_metadata('{"file_name": "images/b.png", "target": "labels/a0.png"}'),
        "",
        "pairs/metadata.jsonl:2: images/b.png does not exist",
    ),
    "metadata, outside": (
        lambda: with_metadata('{"file_name": "../predictor.yaml", "target": "labels/a0.png"}'),
        "",
        "pairs/metadata.jsonl:2: ../predictor.yaml is outside of pairs; move it inside",
    ),
    "metadata, no JSON": (lambda: with_metadata("{'a'}"), "", "pairs/metadata.jsonl:2: not JSON: .*one object on each"),
    "pages": (
        lambda: [shutil.rmtree("pairs/labels"), as_stacks((3, 2))],
        "",
        "image.tif has 3 pages, label.tif 2; they",
    ),
    "patch": (NOTHING, "--data.patch 17", "data.patch: some level would not halve 17 evenly; use 16 or 18"),
    "objective": (NOTHING, "--objective regresion", "objective: regresion is not one of .*; did you mean regression?"),
    "fractions as classes": (numbers, "", "pairs/labels/a0.npy: no label image: expected integers .*got float32"),
    "3-D": (NOTHING, "--unet.dims 3", "data.path: .*images has images; set unet.dims 2 to train on them"),
    "1-D": (NOTHING, "--unet.dims 1", "unet.dims: predictors need 2, for images, or 3, for volumes .got 1."),
    "no loss": (
        NOTHING,
        "--objective.cross_entropy 0 --objective.dice 0",
        "every term of the loss has the factor 0; raise one of cross_entropy, dice, jaccard",
    ),
    "conditions": (
        NOTHING,
        "--unet.vector_dim 8",
        "unet: a predictor has no vector, tokens or planes; set their widths",
    ),
    "patch of many": (NOTHING, "--data.patch [16,16,16]", "data.patch: 3 sides for 2 axes; give one side, or 2"),
    "classes of a regression": (NOTHING, "--objective regression --objective.dice 1", "objective.dice: unknown"),
    "other key": (NOTHING, "--sample.steps 9", "--sample.steps: unknown argument"),
    "value for a regression": (
        NOTHING,
        "--objective regression --data.path cells",
        "cells is no data set for regression",
    ),
}


@pytest.mark.parametrize("name", DATA)
def test_wrong_data_are_one_line_before_anything_is_trained(small_predictor, capsys, name):
    spoil, flags, message = DATA[name]
    spoil()
    line = mistake(capsys, "train", "--config", "predictor.yaml", *flags.split())
    assert re.search(message, line), line
    assert not Path("run").exists()


def test_fractions_are_numbers_of_a_regression(small_predictor, capsys):
    """The same files that a segmentation refuses."""
    numbers()
    assert run("train", "--config", "predictor.yaml", "--objective", "regression", "--print_config") == 0
    assert "type: regression" in capsys.readouterr().out
