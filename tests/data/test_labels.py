"""What label images contain: classes, colors, palettes, objects, and what is in doubt."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffunet.core.errors import UserError
from diffunet.data.labels import COLOR, UNKNOWN, count_codes, labels_of, read_codes, survey, value_of
from diffunet.data.pairs import PairConfig, Source
from diffunet.runs.predicted_images import save_labels

CLASSES = np.random.default_rng(0).integers(0, 3, (6, 7))
RED, BLACK, WHITE = COLOR + 0xFF0000, COLOR, COLOR + 0xFFFFFF


def saved(path, values, mode: str | None = None) -> Source:
    """Return a label image with values, as .npy or in a mode of Pillow."""
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        image = Image.fromarray(values)
        (image.convert(mode) if mode else image).save(path)
    return Source(str(path))


def palette(path, classes: np.ndarray) -> Source:
    image = Image.fromarray(classes.astype(np.uint8), mode="P")
    image.putpalette([10, 20, 30, 200, 100, 0, 0, 0, 255])
    image.save(path)
    return Source(str(path))


def surveyed(*images: np.ndarray, **config):
    return survey(map(count_codes, images), PairConfig(**config))


def colors(classes: np.ndarray, *rgb: tuple[int, int, int]) -> np.ndarray:
    return np.asarray(rgb, dtype=np.uint8)[classes]


COLORS = ((0, 0, 0), (255, 255, 255), (255, 0, 0))
STORED = {
    "0 and 255": (lambda path: saved(path, ((CLASSES > 0) * 255).astype(np.uint8)), (0, 255), CLASSES > 0),
    "gaps": (lambda path: saved(path, np.asarray([1, 7, 200], np.uint8)[CLASSES]), (1, 7, 200), CLASSES),
    "palette": (lambda path: palette(path, CLASSES), (0, 1, 2), CLASSES),
    "colors": (lambda path: saved(path, colors(CLASSES, *COLORS)), (BLACK, RED, WHITE), np.asarray([0, 2, 1])[CLASSES]),
    "gray as RGB": (lambda path: saved(path, colors(CLASSES // 2, *COLORS)), (0, 255), CLASSES // 2),
    "gray as RGBA": (lambda path: saved(path, ((CLASSES > 0) * 255).astype(np.uint8), "RGBA"), (0, 255), CLASSES > 0),
    "gray and alpha": (lambda path: saved(path, (CLASSES * 100).astype(np.uint8), "LA"), (0, 100, 200), CLASSES),
    "one bit": (lambda path: saved(path, ((CLASSES > 0) * 255).astype(np.uint8), "1"), (0, 1), CLASSES > 0),
    "16 bits": (lambda path: saved(path, (CLASSES * 300).astype(np.uint16)), (0, 300, 600), CLASSES),
    "bool array": (lambda path: saved(path.with_suffix(".npy"), CLASSES > 0), (0, 1), CLASSES > 0),
    "integer array": (lambda path: saved(path.with_suffix(".npy"), CLASSES * 5), (0, 5, 10), CLASSES),
    "whole floats": (lambda path: saved(path.with_suffix(".npy"), CLASSES * 2.0), (0, 2, 4), CLASSES),
}


@pytest.mark.parametrize("name", STORED)
def test_classes_of_all_kinds_of_files_and_their_way_back(tmp_path, name):
    """What a prediction is written as is read as the same classes."""
    write, codes, classes = STORED[name]
    found = read_codes(write(tmp_path / "label.png"))
    labels = surveyed(found)
    assert labels.codes == codes
    assert np.array_equal(labels.classes_of(found, "label"), classes)
    save_labels(tmp_path / "written.png", torch.from_numpy(classes.astype(np.int64)), labels)
    written = read_codes(Source(str(tmp_path / "written.png")))
    assert np.array_equal(labels.alike(written), labels.alike(found))
    assert surveyed(written) == labels


def test_classes_are_recovered_from_the_resolved_config():
    labels = surveyed(np.array([BLACK, RED, WHITE]), class_names=("a", "b", "c"))
    resolved = PairConfig(values=tuple(map(value_of, labels.codes)), class_names=labels.names)
    assert resolved.values == ("#000000", "#ff0000", "#ffffff")
    assert labels_of(resolved) == labels
    assert surveyed(np.array([BLACK, RED, WHITE]), values=resolved.values, class_names=("a", "b", "c")) == labels


def test_a_colored_set_may_have_an_image_in_black_alone(tmp_path):
    """Gray colors beside others are colors, as tiles of background are."""
    empty, full = (saved(tmp_path / f"{n}.png", colors(CLASSES * n, *COLORS)) for n in (0, 1))
    labels = surveyed(read_codes(empty), read_codes(full))
    assert labels.codes == (BLACK, RED, WHITE)
    assert not labels.classes_of(read_codes(empty), "empty").any()


def test_values_define_the_order_and_unknown_ones_are_a_mistake():
    labels = surveyed(np.array([0, 255]), values=(255, 0), class_names=("cell", "membrane"))
    assert labels.classes_of(np.array([[0, 255]]), "x").tolist() == [[1, 0]]
    with pytest.raises(UserError, match=r"image 7: value 3 is no class; the classes are 255, 0"):
        labels.classes_of(np.array([[0, 3]]), "image 7")
    with pytest.raises(UserError, match=r"data.values: the targets also have 9; list .* or set data.ignore to one"):
        surveyed(np.array([0, 1, 9]), values=(0, 1))
    assert surveyed(np.array([0, 1]), values=(0, 1, 2)).codes == (0, 1, 2)  # a class that no target has


@pytest.mark.parametrize(("ignore", "codes"), [(255, [0, 1, 255]), ("#808080", [BLACK, RED, COLOR + 0x808080])])
def test_ignored_places_are_unknown(ignore, codes):
    codes = np.array([codes])
    labels = surveyed(codes, ignore=ignore)
    assert len(labels.codes) == 2
    assert labels.classes_of(codes, "x").tolist() == [[0, 1, UNKNOWN]]


def test_objects_have_numbers_and_the_background_is_zero(tmp_path):
    codes = np.array([[0, 300, 301, 65535]])
    labels = surveyed(codes, labels="instances", ignore=65535)
    assert (labels.instances, labels.names) == (True, ("background", "object"))
    assert labels.classes_of(codes, "x").tolist() == [[0, 1, 1, UNKNOWN]]
    painted = read_codes(saved(tmp_path / "painted.png", colors(CLASSES, (0, 0, 0), (9, 9, 9), (0, 0, 255))))
    assert surveyed(painted, labels="instances").classes_of(painted, "x").tolist() == (CLASSES > 0).tolist()
    assert surveyed(painted, labels="instances").alike(painted).max() < 2**24


LOSSY = np.array([0, 1, 2, 253, 254, 255])
MISTAKES = {
    "one class": ([[0, 0]], {}, r"data.labels: the targets have one value \(0\); a segmentation needs at least two"),
    "only ignored": ([[255]], {"ignore": 255}, r"one value \(nothing\)"),
    "lossy": (
        [LOSSY],
        {},
        "6 values close to 0 and 255 .* as a lossy compression leaves them; save the targets as PNG",
    ),
    "objects": ([range(40)], {}, "more than 32 values .* set data.labels instances if each is an object"),
    "smoothed": ([COLOR + 7 * np.arange(40)], {}, "40 colors or more; list those of the classes .* smoothed edges"),
    "mixed": ([[0, 1], [BLACK, RED]], {}, "some targets are gray and some have colors; save all in one way"),
    "mixed, chosen": ([[0, RED]], {"values": (0, "#ff0000")}, "some targets are gray and some have colors"),
    "no object": ([[0, 0]], {"labels": "instances"}, "no target has an object, a value other than 0"),
    "absent ignore": ([[0, 254]], {"ignore": 255}, "data.ignore: no target has the value 255; .*254"),
    "absent ignore of objects": ([[0, 3]], {"ignore": 7, "labels": "instances"}, "no target has the value 7"),
    "ignored class": ([[0, 1, 2]], {"ignore": 2, "values": (0, 1, 2)}, "data.values: 2 is data.ignore"),
    "twice": ([[0, 1]], {"values": (0, 1, 1)}, "data.values: a value is listed twice"),
    "negative": ([[-1, 0, 1]], {}, r"values from 0 to 65535 \(got -1\); .* data.ignore if it marks places without"),
    "large": ([[0, 70000]], {}, r"values from 0 to 65535 \(got 70000\)"),
    "no value": (
        [[0, 1]],
        {"values": (0, "red")},
        "data.values: red is neither a value, such as 255, nor a color, such",
    ),
    "names": ([[0, 1]], {"class_names": ("a",)}, r"data.class_names: 1 names for 2 classes \(0, 1\)"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_labels_in_doubt_are_a_mistake(name):
    images, config, message = MISTAKES[name]
    with pytest.raises(UserError, match=message):
        surveyed(*(np.array([codes]) for codes in images), **config)


@pytest.mark.parametrize("codes", [[0, 1, 2, 3, 4, 5, 255], range(19), [0, 128, 255], [*range(21), 255]])
def test_classes_that_are_plausible(codes):
    assert surveyed(np.array([codes])).codes == tuple(codes)


def test_files_that_are_no_label_images(tmp_path):
    cases = {
        "fractions": (saved(tmp_path / "a.npy", np.array([[0.5, 1.0]])), "expected integers"),
        "axes": (
            saved(tmp_path / "b.npy", np.zeros((2, 3, 4), int)),
            r"expected integers \(H, W\), got int64 \(2, 3, 4",
        ),
        "float": (saved(tmp_path / "c.tif", np.full((2, 2), 0.5, np.float32)), "fractions, not labels"),
        "large": (saved(tmp_path / "d.npy", np.full((2, 2), 2**33)), "values beyond 32 bits"),
    }
    (tmp_path / "e.png").write_bytes(b"nothing")
    cases["broken"] = (Source(str(tmp_path / "e.png")), "not an image")
    for source, message in cases.values():
        with pytest.raises(UserError, match=message) as mistake:
            read_codes(source)
        assert str(mistake.value).startswith(f"{source.path}: no label image: ")


@pytest.mark.parametrize(("quality", "accepted"), [(95, False), (50, False), (100, True)])
def test_a_compressed_label_image_is_refused_if_values_are_blurred(tmp_path, quality, accepted):
    """Blocks of the compression that are flat keep their values."""
    values = np.full((16, 16), 255, np.uint8) if accepted else np.eye(16, dtype=np.uint8) * 255
    Image.fromarray(values).save(tmp_path / "a.jpg", quality=quality)
    source = Source(str(tmp_path / "a.jpg"))
    if accepted:
        assert np.unique(read_codes(source)).tolist() == [255]
    else:
        with pytest.raises(UserError, match="JPEG has blurred its values; save it as PNG"):
            read_codes(source)
