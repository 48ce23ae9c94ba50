"""Published layouts, written in temporary folders."""

import json
from pathlib import Path

import pytest

from diffunet.core.errors import UserError
from diffunet.data.volumes.layouts import find_published, names_in


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def relative(source, folder):
    return str(Path(source.path).relative_to(folder))


def listed(cases, folder):
    """Return cases as names and files relative to the folder."""
    return {
        case.name: ([relative(file, folder) for file in case.image], relative(case.target, folder)) for case in cases
    }


@pytest.mark.parametrize(
    "join, parts, where",
    [
        ("_", ["t1", "t1ce", "t2", "flair", "seg"], "{}"),
        ("-", ["t1n", "t1c", "t2w", "t2f", "seg"], "{}"),
        ("_", ["t1", "t1ce", "t2", "flair", "seg"], "HGG/{}"),
    ],
)
def test_brats(tmp_path, join, parts, where):
    logged = []
    names = ["BraTS19_A_1", "BraTS19_B_2", "BraTS19_C_3"]
    for name in names:
        place = where.format(name)
        touch(tmp_path, *(f"{place}/{name}{join}{part}.nii.gz" for part in parts), f"{place}/._{name}_seg.nii.gz")
    (tmp_path / where.format(names[2]) / f"{names[2]}{join}seg.nii.gz").unlink()
    cases = listed(find_published(tmp_path, logged.append), tmp_path)
    place = where.format(names[0])
    files = [f"{place}/{names[0]}{join}{part}.nii.gz" for part in parts]
    assert list(cases) == names[:2]
    assert cases[names[0]] == (files[:4], files[4])
    assert logged == ["left out 1 image without a target: BraTS19_C_3"]
    (tmp_path / where.format(names[1]) / f"{names[1]}{join}{parts[2]}.nii.gz").unlink()
    with pytest.raises(UserError, match=f"BraTS19_B_2 has no channel {parts[2]}"):
        find_published(tmp_path, logged.append)


def test_a_case_of_brats_in_two_places(tmp_path):
    for place in ("HGG/A", "LGG/A"):
        touch(tmp_path, *(f"{place}/A_{part}.nii.gz" for part in ("t1", "t1ce", "t2", "flair", "seg")))
    with pytest.raises(UserError, match="have the same name"):
        find_published(tmp_path)


def test_class_names_of_the_decathlon(tmp_path):
    assert names_in(tmp_path) is None
    for labels, names in (
        ({"0": "background", "1": "Anterior", "2": "Posterior"}, ("background", "Anterior", "Posterior")),
        ({"background": 0, "Anterior": 1}, ("background", "Anterior")),
        ({"background": 0, "whole": [1, 2]}, None),
        ({"1": "a", "3": "b"}, None),
        ([], None),
    ):
        (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
        assert names_in(tmp_path) == names
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(UserError, match="dataset.json: not JSON"):
        names_in(tmp_path)


@pytest.mark.parametrize("where", ["{}/{}", "{1}"])
def test_sliver(tmp_path, where):
    for n in (1, 2, 20):
        touch(tmp_path, where.format("scan", f"liver-orig{n:03d}.mhd"), where.format("scan", f"liver-orig{n:03d}.raw"))
        if n != 2:
            touch(tmp_path, where.format("label", f"liver-seg{n:03d}.mhd"))
    logged = []
    cases = listed(find_published(tmp_path, logged.append), tmp_path)
    assert list(cases) == ["liver-orig001", "liver-orig020"]
    image, target = (where.format(*part) for part in (("scan", "liver-orig020.mhd"), ("label", "liver-seg020.mhd")))
    assert cases["liver-orig020"] == ([image], target)
    assert logged == ["left out 1 image without a target: liver-orig002"]


def test_other_folders_have_none_of_the_layouts(tmp_path):
    assert find_published(tmp_path) == []
    touch(tmp_path, "images/a.nii.gz", "labels/a.nii.gz", "a_seg.nii.gz", "notes.txt")
    assert find_published(tmp_path) == []
