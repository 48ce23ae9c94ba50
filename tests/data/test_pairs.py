"""Which files belong together, and which cases are held out."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import write_image
from PIL import Image

from diffunet.core.errors import UserError
from diffunet.data.pairs import PairConfig, find_pairs, image_files, natural, split_fold


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def found(log=lambda line: None, **config) -> dict[str, tuple]:
    """Return the files of the cases in the folder `set` by name."""
    pairs = find_pairs(PairConfig(**({"path": "set"} | config)), log)
    return {
        pair.name: (
            *(str(source) for source in pair.image),
            str(pair.target),
            *([str(pair.weight)] if pair.weight else []),
        )
        for pair in pairs
    }


def stack(path: str, pages: int) -> None:
    Path(path).parent.mkdir(exist_ok=True)
    first, *others = (Image.fromarray(np.full((4, 5), page, np.uint8)) for page in range(pages))
    first.save(path, save_all=True, append_images=others)


# ── layouts ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("targets", ["labels", "label", "masks", "mask", "targets", "target"])
def test_images_and_targets_of_one_name_in_natural_order(in_a_new_folder, targets):
    touch(*(f"set/images/a{n}.png" for n in (10, 2, 1)), *(f"set/{targets}/a{n}.tif" for n in (1, 2, 10)))
    touch("set/weights/a2.npy", "set/images/.hidden.png", "set/images/notes.txt")
    assert found() == {
        "a1": ("set/images/a1.png", f"set/{targets}/a1.tif"),
        "a2": ("set/images/a2.png", f"set/{targets}/a2.tif", "set/weights/a2.npy"),
        "a10": ("set/images/a10.png", f"set/{targets}/a10.tif"),
    }
    assert list(found()) == ["a1", "a2", "a10"]


def test_channels_in_the_layout_of_nnunet(in_a_new_folder):
    touch("set/imagesTr/b_0001.png", "set/imagesTr/b_0000.png", "set/imagesTr/a_0000.png", "set/imagesTr/a_0001.png")
    touch("set/labelsTr/a.png", "set/labelsTr/b.png")
    assert found() == {
        name: (f"set/imagesTr/{name}_0000.png", f"set/imagesTr/{name}_0001.png", f"set/labelsTr/{name}.png")
        for name in ("a", "b")
    }
    Path("set/imagesTr/b_0000.png").unlink()
    with pytest.raises(UserError, match="b has no channel 0000"):
        found()


def test_numbered_images_with_targets_of_their_own_are_no_channels(in_a_new_folder):
    touch(*(f"set/{folder}/nuclei_000{n}.png" for folder in ("images", "labels") for n in (0, 1)))
    assert list(found()) == ["nuclei_0000", "nuclei_0001"]


def test_metadata_names_the_files(in_a_new_folder):
    touch("set/x/2.png", "set/x/10.png", "set/y/a.png", "set/y/b.png", "set/x/red.png", "set/x/blue.png", "set/w.npy")
    lines = [
        {"file_name": "x/10.png", "target": "y/a.png"},
        {"file_name": "x/2.png", "target": "y/b.png", "weight": "w.npy"},
        {"file_name": ["x/red.png", "x/blue.png"], "target": "y/a.png"},
    ]
    Path("set/metadata.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
    assert found() == {
        "2": ("set/x/2.png", "set/y/b.png", "set/w.npy"),
        "10": ("set/x/10.png", "set/y/a.png"),
        "red": ("set/x/red.png", "set/x/blue.png", "set/y/a.png"),
    }


def test_targets_in_another_folder(in_a_new_folder):
    touch("set/a.png", "elsewhere/a.png")
    assert found(targets="elsewhere") == {"a": ("set/a.png", "elsewhere/a.png")}


def test_stacks_are_paired_by_page(in_a_new_folder):
    stack("set/Image.tif", 3)
    stack("set/labels.tiff", 3)
    assert found() == {
        f"Image_{page:04d}": tuple(
            f"set/{name}" + f", page {page}" * (page > 0) for name in ("Image.tif", "labels.tiff")
        )
        for page in range(3)
    }
    stack("set/labels.tiff", 2)
    with pytest.raises(UserError, match=r"set/Image.tif has 3 pages, labels.tiff 2; they are paired by page"):
        found()


def test_the_first_layout_that_fits_counts(in_a_new_folder):
    touch("set/images/a.png", "set/labels/a.png", "set/x.png")
    stack("set/image.tif", 2)
    stack("set/label.tif", 2)
    assert list(found()) == ["a"]
    Path("set/metadata.jsonl").write_text('{"file_name": "x.png", "target": "images/a.png"}')
    assert list(found()) == ["x"]


def test_what_stays_alone_is_logged(in_a_new_folder):
    touch("set/images/a.png", "set/labels/a.png", *(f"set/images/z{n}.png" for n in range(12)), "set/labels/q.png")
    lines = []
    assert list(found(lines.append)) == ["a"]
    assert lines == [
        "left out 12 images in set/images without a partner: z0, z1, z2, ...",
        "left out 1 targets in set/labels without a partner: q",
    ]


def test_names_have_one_order():
    names = ["a10", "a2", "a02", "b", "a", "1²", "a2b", "10", "2"]
    assert sorted(names, key=natural) == sorted(names[::-1], key=natural)
    assert sorted(names[:5], key=natural) == ["a", "a02", "a2", "a10", "b"]


def test_images_and_arrays_are_listed(in_a_new_folder):
    touch("set/b.PNG", "set/a.npy", "set/c.txt", "set/sub/d.png", "set/.e.png")
    assert [file.name for file in image_files(Path("set"))] == ["a.npy", "b.PNG"]


# ── folds ─────────────────────────────────────────────────────────────────────────────────────────

NAMES = [f"mouse{animal}_slice{number}" for animal in range(8) for number in range(6)]


def held_out(names: list[str] = NAMES, **config) -> list[set[str]]:
    """Return the names that are held out in each fold."""
    parts = []
    for fold in range(4):
        trained, kept = split_fold(names, PairConfig(folds=4, fold=fold, **config))
        assert sorted(trained + kept) == list(range(len(names)))
        parts.append({names[index] for index in kept})
    return parts


@pytest.mark.parametrize("config", [{}, {"fold_by": "order"}, {"group": "(mouse[0-9]+)_"}, {"group": "mouse(.)"}])
def test_each_case_is_held_out_once(config):
    parts = held_out(**config)
    assert sorted(name for part in parts for name in part) == sorted(NAMES)
    if "group" in config:
        origins = [{name.split("_")[0] for name in part} for part in parts]
        assert sum(map(len, origins)) == 8


def test_order_holds_out_consecutive_cases():
    assert [sorted(map(NAMES.index, part)) for part in held_out(fold_by="order")] == [
        list(range(start, start + 12)) for start in (0, 12, 24, 36)
    ]


def test_the_fold_of_a_case_does_not_depend_on_others():
    few = NAMES[::3]
    for whole, part in zip(held_out(), held_out(few), strict=True):
        assert part == whole & set(few)
    assert held_out(NAMES[::-1]) == held_out()


def test_no_fold_and_folds_that_are_empty():
    assert split_fold(NAMES, PairConfig(fold=None)) == (list(range(48)), [])
    with pytest.raises(UserError, match="data.fold: 5, but there are folds 0 to 4"):
        split_fold(NAMES, PairConfig(fold=5))
    with pytest.raises(UserError, match=r"has all of the 6 cases \(1 groups\)|has none of the 6 cases \(1 groups\)"):
        split_fold(NAMES[:6], PairConfig(group="(mouse0)"))
    with pytest.raises(UserError, match=r"data.group: \(rat\) does not match mouse0_slice0; it must match all"):
        split_fold(NAMES, PairConfig(group="(rat)"))


# ── mistakes ──────────────────────────────────────────────────────────────────────────────────────


def test_files_of_one_name_are_a_mistake(in_a_new_folder):
    touch("set/images/a.png", "set/labels/a.png")
    for twin in ("set/images/a.tif", "set/labels/a.tif"):
        touch(twin)
        with pytest.raises(UserError, match="have the same name; rename or remove one"):
            found()
        Path(twin).unlink()
    assert list(found()) == ["a"]


BAD_LINES = {
    "not JSON": ("{", r"set/metadata.jsonl:2: not JSON: .*; write one object on each line"),
    "no target": ('{"file_name": "a.png"}', "metadata.jsonl:2: no file_name and target; every line needs both"),
    "no object": ("[1]", "metadata.jsonl:2: no file_name and target"),
    "no file": ('{"file_name": [], "target": "a.png"}', "metadata.jsonl:2: file_name is empty"),
    "missing": ('{"file_name": "b.png", "target": "a.png"}', "metadata.jsonl:2: b.png does not exist"),
    "outside": (
        '{"file_name": "../c.png", "target": "a.png"}',
        "metadata.jsonl:2: ../c.png is outside of set; move it",
    ),
    "absolute": ('{"file_name": "/etc/hosts", "target": "a.png"}', "metadata.jsonl:2: /etc/hosts is outside of set"),
    "twice": ('{"file_name": "a.png", "target": "a.png"}', "two lines have an image called a; rename one"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_lines_of_metadata_that_are_wrong(in_a_new_folder, name):
    line, message = BAD_LINES[name]
    touch("set/a.png", "c.png")
    Path("set/metadata.jsonl").write_text('{"file_name": "a.png", "target": "a.png"}\n' + line)
    with pytest.raises(UserError, match=message):
        found()


def test_folders_without_pairs(in_a_new_folder):
    with pytest.raises(UserError, match=r"data.path: set is no folder; give a folder of images and targets"):
        found()
    touch("sets/readme.txt")
    with pytest.raises(UserError, match="data.path: set is no folder; did you mean sets?"):
        found()
    with pytest.raises(
        UserError, match=r"sets has no pairs of images and targets \(found readme.txt\); expected images/"
    ):
        found(path="sets")
    Path("sets/metadata.jsonl").write_text("\n")
    with pytest.raises(UserError, match="sets/metadata.jsonl lists no pair"):
        found(path="sets")
    Path("sets/metadata.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="sets/metadata.jsonl: not UTF-8 at byte 0"):
        found(path="sets")
    touch("set/images/a.png", "set/labels/b.png")
    with pytest.raises(UserError, match=r"has the name of a target in set/labels \(such as a and b, without suffix\)"):
        found()
    with pytest.raises(UserError, match="data.targets: nowhere is no folder"):
        found(targets="nowhere")


@pytest.mark.parametrize(("pattern", "message"), [("a+", "has no group; write"), ("(", "is not a regular expression")])
def test_patterns_of_groups_are_checked(pattern, message):
    with pytest.raises(ValueError, match=message):
        PairConfig(group=pattern)


def test_a_stack_that_is_no_image(in_a_new_folder):
    write_image(Path("set/image.tif"), "L")
    Path("set/label.tif").write_bytes(b"nothing")
    with pytest.raises(UserError, match="set/label.tif is not a stack of images"):
        found()
