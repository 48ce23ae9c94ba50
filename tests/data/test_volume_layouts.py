"""Published layouts, written in temporary folders."""

import json

import pytest

from diffunet.core.errors import UserError
from diffunet.data.volume_layouts import find_volume_cases, group_volumes, names_in, volume_files


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def listed(cases, folder):
    """Return cases as names and files relative to the folder."""
    return {
        case.name: ([str(file.relative_to(folder)) for file in case.images], str(case.target.relative_to(folder)))
        for case in cases
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
    cases = listed(find_volume_cases(tmp_path, logged.append), tmp_path)
    place = where.format(names[0])
    files = [f"{place}/{names[0]}{join}{part}.nii.gz" for part in parts]
    assert list(cases) == names[:2]
    assert cases[names[0]] == (files[:4], files[4])
    assert logged == ["left out 1 image without a target: BraTS19_C_3"]
    (tmp_path / where.format(names[1]) / f"{names[1]}{join}{parts[2]}.nii.gz").unlink()
    with pytest.raises(UserError, match=f"BraTS19_B_2 has no channel {parts[2]}"):
        find_volume_cases(tmp_path, logged.append)


def test_a_case_of_brats_in_two_places(tmp_path):
    for place in ("HGG/A", "LGG/A"):
        touch(tmp_path, *(f"{place}/A_{part}.nii.gz" for part in ("t1", "t1ce", "t2", "flair", "seg")))
    with pytest.raises(UserError, match="have the same name"):
        find_volume_cases(tmp_path)


def decathlon(folder, **contents):
    (folder / "dataset.json").write_text(json.dumps(contents))
    return find_volume_cases(folder, lambda line: None)


def test_the_decathlon(tmp_path):
    touch(
        tmp_path, *(f"{part}/hip_{n}.nii.gz" for part in ("imagesTr", "labelsTr") for n in (1, 3)), "imagesTs/x.nii.gz"
    )
    touch(tmp_path, "imagesTr/._hip_1.nii.gz", "imagesTr/hip_9.nii.gz")
    training = [{"image": f"./imagesTr/hip_{n}.nii.gz", "label": f"./labelsTr/hip_{n}.nii.gz"} for n in (1, 3)]
    by_list = decathlon(tmp_path, training=training, labels={"0": "background", "1": "Anterior", "2": "Posterior"})
    assert names_in(tmp_path) == ("background", "Anterior", "Posterior")
    by_name = decathlon(tmp_path, labels={"background": 0, "Anterior": 1})
    assert names_in(tmp_path) == ("background", "Anterior")
    assert by_list == by_name
    assert listed(by_list, tmp_path)["hip_1"] == (["imagesTr/hip_1.nii.gz"], "labelsTr/hip_1.nii.gz")
    (tmp_path / "dataset.json").unlink()
    logged = []
    assert find_volume_cases(tmp_path, logged.append) == by_list
    assert logged == ["left out 1 image without a target: hip_9"]
    assert names_in(tmp_path) is None


@pytest.mark.parametrize("is_listed", [True, False])
def test_channels_of_nnunet(tmp_path, is_listed):
    touch(tmp_path, *(f"imagesTr/brain_7_000{n}.nii.gz" for n in range(3)), "labelsTr/brain_7.nii.gz")
    entry = {"image": "./imagesTr/brain_7.nii.gz", "label": "./labelsTr/brain_7.nii.gz"}
    cases = decathlon(tmp_path, training=[entry]) if is_listed else decathlon(tmp_path, numTraining=1)
    files = [f"imagesTr/brain_7_000{n}.nii.gz" for n in range(3)]
    assert listed(cases, tmp_path) == {"brain_7": (files, "labelsTr/brain_7.nii.gz")}
    (tmp_path / "imagesTr/brain_7_0001.nii.gz").unlink()
    with pytest.raises(UserError, match="brain_7 has no channel 0001"):
        find_volume_cases(tmp_path)


@pytest.mark.parametrize(
    "entry, problem",
    [
        ({"image": "../secret.nii.gz", "label": "labelsTr/a.nii.gz"}, "outside of"),
        ({"image": "/etc/passwd", "label": "labelsTr/a.nii.gz"}, "outside of"),
        ({"image": "imagesTr/b.nii.gz", "label": "labelsTr/a.nii.gz"}, "does not exist"),
        ({"image": "imagesTr/a.nii.gz"}, "does not exist"),
        ({"image": "imagesTr/a.nii.gz", "label": "labelsTr"}, "does not exist"),
    ],
)
def test_mistakes_in_dataset_json(tmp_path, entry, problem):
    touch(tmp_path, "set/imagesTr/a.nii.gz", "set/labelsTr/a.nii.gz", "secret.nii.gz")
    with pytest.raises(UserError, match=problem):
        decathlon(tmp_path / "set", training=[entry])


def test_a_damaged_or_doubled_dataset_json(tmp_path):
    touch(tmp_path, "imagesTr/a.nii.gz", "labelsTr/a.nii.gz", "dataset.json")
    with pytest.raises(UserError, match="dataset.json: not JSON"):
        find_volume_cases(tmp_path)
    with pytest.raises(UserError, match="lists a twice"):
        decathlon(tmp_path, training=[{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}] * 2)
    assert len(decathlon(tmp_path, training=["imagesTr/a.nii.gz"])) == 1  # of no use, so names decide


@pytest.mark.parametrize("where", ["{}/{}", "{1}"])
def test_sliver(tmp_path, where):
    for n in (1, 2, 20):
        touch(tmp_path, where.format("scan", f"liver-orig{n:03d}.mhd"), where.format("scan", f"liver-orig{n:03d}.raw"))
        if n != 2:
            touch(tmp_path, where.format("label", f"liver-seg{n:03d}.mhd"))
    logged = []
    cases = listed(find_volume_cases(tmp_path, logged.append), tmp_path)
    assert list(cases) == ["liver-orig001", "liver-orig020"]
    image, target = (where.format(*part) for part in (("scan", "liver-orig020.mhd"), ("label", "liver-seg020.mhd")))
    assert cases["liver-orig020"] == ([image], target)
    assert logged == ["left out 1 image without a target: liver-orig002"]


def test_other_folders_have_none_of_the_layouts(tmp_path):
    assert find_volume_cases(tmp_path) == []
    touch(tmp_path, "images/a.nii.gz", "labels/a.nii.gz", "a_seg.nii.gz", "notes.txt")
    assert find_volume_cases(tmp_path) == []


def test_volumes_by_name(tmp_path):
    touch(tmp_path, "b.nii.gz", "a_0000.nii", "a_0001.nii", "c.v1.ome.tif", ".hidden.nii", "note.txt", "d.npz")
    grouped = group_volumes(volume_files(tmp_path))
    assert {name: len(files) for name, files in grouped.items()} == {"a": 2, "b": 1, "c.v1": 1, "d": 1}
    touch(tmp_path, "b.nii")
    with pytest.raises(UserError, match="have the same name"):
        group_volumes(volume_files(tmp_path))
