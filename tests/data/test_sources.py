"""Folders, parquet files and their columns, read through `load_images`."""

import json
import logging
import os
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pytest
import torch
from helpers import write_image
from PIL import Image
from pyarrow import parquet

from diffunet.conditions.label import LabelConfig, class_labels
from diffunet.core.errors import UserError
from diffunet.data.config import DataConfig
from diffunet.data.dataset import load_images
from diffunet.data.sources import Table, split_patterns


def class_names(dataset):
    return {name: condition.class_names for name, condition in dataset.conditions.items()}


def load(path, labels=None, **options):
    """Return the dataset at a path, and what was logged."""
    conditions = {name: LabelConfig(column=column) for name, column in (labels or {}).items()}
    logged = []
    return load_images(DataConfig(path=str(path), **options), conditions, log=logged.append), "\n".join(logged)


def encoded(tmp_path: Path) -> dict:
    """Return a row of an image column."""
    return {"bytes": write_image(tmp_path / "x.png", size=(8, 8)).read_bytes(), "path": None}


def test_nothing_usable_is_a_user_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"data.path: .*empty contains no images"):
        load(tmp_path / "empty")
    with pytest.raises(UserError, match=r"data.path: .*emty does not exist; did you mean empty\?"):
        load(tmp_path / "emty")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"")
    with pytest.raises(UserError, match="none of the 1 images"):
        load(tmp_path / "bad")
    write_image(tmp_path / "two" / "a.png", size=(8, 8))
    write_image(tmp_path / "two" / "b.png", size=(9, 8))
    with pytest.raises(UserError, match=r"data.resolution: .* 2 sizes, 8×8 to 8×9 \(height×width\)"):
        load(tmp_path / "two")


def test_parquet(tmp_path):
    for number in range(4):
        write_image(tmp_path / f"{number}.png", size=(8, 8), seed=number)
    files = [str(tmp_path / f"{number}.png") for number in range(4)]
    images = [{"bytes": Path(file).read_bytes(), "path": file} for file in files]
    columns = {"img": images, "kind": ["b", "a", "b", "b"], "grade": [0, 2, 1, 0]}
    rows = datasets.Dataset.from_dict(columns).cast_column("img", datasets.Image())
    (tmp_path / "set").mkdir()
    rows.to_parquet(tmp_path / "set" / "train-0.parquet")
    rows.select([0]).to_parquet(tmp_path / "set" / "test-0.parquet")

    dataset, _ = load(tmp_path / "set", {"kind": None, "score": "grade"})
    assert class_names(dataset) == {"kind": ("a", "b"), "score": ("0", "1", "2")}
    assert dataset.columns["kind"].values.tolist() == [1, 0, 1, 1]
    batch = dataset.__getitems__([3, 1])
    assert {name: values.tolist() for name, values in batch.items() if name != "image"} == {
        "kind": [1, 0],
        "score": [0, 2],
    }
    assert np.array_equal(dataset.images[2].permute(1, 2, 0), np.array(Image.open(files[2])))
    assert len(load(tmp_path / "set" / "test-0.parquet", split="test")[0]) == 1
    with pytest.raises(UserError, match=r"no column image in .*; did you mean img\?"):
        load(tmp_path / "set", image_column="image")
    with pytest.raises(UserError, match="conditions.label.column: no column kinds in .*; did you mean kind"):
        load(tmp_path / "set", {"label": "kinds"})


def test_a_label_without_a_column_of_its_name_is_left_out_and_logged(tmp_path):
    write_image(tmp_path / "0.png", size=(8, 8))
    dataset, logged = load(tmp_path, {"digit": None})
    assert dataset.columns == dataset.conditions == {}
    assert f"conditions.digit: no column digit in {tmp_path}; training without it" in logged
    dataset, logged = load("digits", {"digit": None, "other": "label"})
    assert class_names(dataset) == {"other": tuple("0123456789")}
    assert logged == "conditions.digit: no column digit in digits; training without it"
    with pytest.raises(UserError, match="conditions.digit.column: no column digits in digits; choose one of label"):
        load("digits", {"digit": "digits"})


def test_columns_of_metadata_become_labels(tmp_path):
    lines = []
    for number, color in enumerate(["red", "blue", "red"]):
        write_image(tmp_path / f"{number}.png", size=(8, 8))
        write_image(tmp_path / "sources" / f"{number}.png", size=(8, 8))
        lines.append(json.dumps({"file_name": f"{number}.png", "color": color, "path": f"sources/{number}.png"}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    dataset, logged = load(tmp_path, {"color": None})
    assert "skipped" not in logged
    assert class_names(dataset) == {"color": ("blue", "red")}
    assert sorted(dataset.columns["color"].values.tolist()) == [0, 1, 1]
    write_image(tmp_path / "unlisted.png", size=(8, 8))
    assert f"skipped 1 images in {tmp_path} that its metadata file does not list" in load(tmp_path)[1]


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
def test_split_patterns_match_those_of_datasets(tmp_path, tree):
    for name in tree:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    own = datasets.load_dataset_builder("imagefolder", data_dir=str(tmp_path)).config.data_files
    ours = datasets.load_dataset_builder("imagefolder", data_dir=str(tmp_path), data_files=split_patterns(tmp_path))
    assert {split: sorted(files) for split, files in ours.config.data_files.items()} == {
        str(split): sorted(files) for split, files in own.items()
    }


def test_library_verbosity_is_restored(tmp_path):
    write_image(tmp_path / "0.png", size=(8, 8))
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    datasets.enable_progress_bars()
    for logger in loggers:
        logger.setLevel(logging.INFO)
    try:
        load(tmp_path)
        with pytest.raises(UserError):
            load(tmp_path, split="test")
        assert [logger.level for logger in loggers] == [logging.INFO] * 2
        assert not datasets.are_progress_bars_disabled()
    finally:
        for logger in loggers:
            logger.setLevel(logging.WARNING)


@pytest.mark.parametrize("name", ["../secret.png", "SECRET", "a/../../secret.png", "pipe.png", "nothing.png"])
def test_metadata_cannot_refer_to_files_outside_the_folder(tmp_path, name):
    secret = write_image(tmp_path / "secret.png", size=(8, 8))
    write_image(tmp_path / "set" / "0.png", size=(8, 8))
    os.mkfifo(tmp_path / "set" / "pipe.png")
    name = name.replace("SECRET", str(secret))
    (tmp_path / "set" / "metadata.jsonl").write_text(json.dumps({"file_name": name}))
    with pytest.raises(UserError, match=f"data.path: .*{Path(name).name}"):
        load(tmp_path / "set")


def test_a_parquet_file_cannot_refer_to_files_outside_its_folder(tmp_path):
    secret = write_image(tmp_path / "secret.png", size=(8, 8))
    (tmp_path / "set").mkdir()
    file = tmp_path / "set" / "0.parquet"
    parquet.write_table(pyarrow.table({"image": [{"bytes": None, "path": str(secret)}]}), file)
    with pytest.raises(UserError, match="refers to .*secret.png outside of it"):
        load(file, image_column="image")


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([None, None], "has no values"),
        ([-1, 0], "neither class numbers nor strings"),
        ([0.5, 1.0], "neither class numbers nor strings"),
        ([[0], [1]], "neither class numbers nor strings"),
        ([0, 10**9], "classes up to 1000000000"),
    ],
)
def test_columns_without_classes_are_rejected(tmp_path, labels, reason):
    parquet.write_table(pyarrow.table({"image": [encoded(tmp_path)] * 2, "label": labels}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=f"conditions.label.column: column label of .*x.parquet .*{reason}"):
        load(tmp_path / "x.parquet", {"label": None}, image_column="image")


def test_rows_without_an_image_are_logged_by_number(tmp_path):
    rows = [encoded(tmp_path), None, {"bytes": b"none", "path": None}, {"bytes": None, "path": None}]
    parquet.write_table(pyarrow.table({"image": rows}), tmp_path / "x.parquet")
    dataset, logged = load(tmp_path / "x.parquet", image_column="image")
    assert len(dataset) == 1
    assert "3 of 4 images: row 1 (no image), row 2 (not an image), row 3 (no image)" in logged


@pytest.mark.parametrize(("columns", "problem"), [("ab", r"2 image columns \(a, b\)"), ("", "no image column")])
def test_ambiguous_image_columns_are_rejected(tmp_path, columns, problem):
    images = datasets.Dataset.from_dict({"n": [0], **{name: [encoded(tmp_path)] for name in columns}})
    for name in columns:
        images = images.cast_column(name, datasets.Image())
    images.to_parquet(tmp_path / "x.parquet")
    with pytest.raises(UserError, match=f"data.image_column: .*x.parquet has {problem}; choose one of its columns: n"):
        load(tmp_path / "x.parquet")


def test_damaged_parquet_files_are_reported_by_name(tmp_path):
    parquet.write_table(pyarrow.table({"image": []}), tmp_path / "0.parquet")
    with pytest.raises(UserError, match="contains no rows"):
        load(tmp_path)
    (tmp_path / "1.parquet").write_bytes((tmp_path / "0.parquet").read_bytes()[:-9])
    with pytest.raises(UserError, match="1.parquet is not a parquet file: "):
        load(tmp_path)


def test_classes_without_a_name_are_rejected():
    """The hub marks the hidden labels of a test set with -1."""
    rows = datasets.Dataset.from_dict({"label": [0, -1]}).cast_column("label", datasets.ClassLabel(names=["a", "b"]))
    with pytest.raises(UserError, match="conditions.digit.column: column label of X has classes without a name, such"):
        class_labels(Table("X", rows), "label", "digit")


def test_a_folder_of_arrays_has_classes_splits_and_metadata(tmp_path):
    values = np.linspace(-5, 20, 5 * 6 * 7 * 4, dtype="float32").reshape(4, 6, 7, 5)
    for number, name in enumerate("abab"):
        (tmp_path / "classes" / name).mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "classes" / name / f"{number}.npy", values[number])
    dataset, logged = load(tmp_path / "classes", {"label": None}, image_column="image")
    assert "6×7 pixels, 5 channels, 32 bits" in logged
    assert dataset.columns["label"].values.tolist() == [0, 0, 1, 1]
    assert dataset.config.value_range == (-5, 20)
    order = torch.from_numpy(values[[0, 2, 1, 3]]).permute(0, 3, 1, 2)
    torch.testing.assert_close(dataset.images * 25 - 5, order, atol=1e-5, rtol=0)
    listed = tmp_path / "listed"
    listed.mkdir()
    np.save(listed / "x.npy", values[0])
    (listed / "metadata.jsonl").write_text('{"file_name": "x.npy", "kind": "wide"}\n')
    dataset, _ = load(listed, {"kind": None})
    assert dataset.conditions["kind"].class_names == ("wide",)
