"""Volumes as arrays, MetaImage and other files, and files that cannot be read."""

import gzip
import os
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from volume_files import SHAPE, content, oblique, save_nifti, values_of

from diffunet.data.volumes.files import inspect_volume, read_volume, stem_of, suffix_of, write_volume
from diffunet.data.volumes.grids import Grid, affine_of, grid_distance

# ── arrays, MetaImage, other formats ──────────────────────────────────────────────────────────────


def test_arrays(tmp_path):
    rng = np.random.default_rng(0)
    values, affine = values_of(rng, (2, 4, 5, 6), "int16"), oblique(rng)
    np.save(tmp_path / "a.npy", values[0])
    np.savez(tmp_path / "b.npz", something=values)
    np.savez_compressed(tmp_path / "c.npz", values=values, other=values[0], spacing=[3, 2.0, 1])
    np.savez(tmp_path / "d.npz", values=values, affine=affine)
    assert np.array_equal(content(tmp_path / "a.npy"), values[:1])
    assert np.array_equal(content(tmp_path / "b.npz"), values)
    assert read_volume(tmp_path / "c.npz").grid.spacing == (3, 2, 1)
    truth = nibabel.as_closest_canonical(nibabel.Nifti1Image(values.transpose(3, 2, 1, 0), affine))
    found = read_volume(tmp_path / "d.npz")
    assert np.array_equal(found.values.numpy(), np.asarray(truth.dataobj).transpose(3, 2, 1, 0))
    assert np.allclose(found.grid.affine, truth.affine)
    for name in ("a.npy", "b.npz", "c.npz", "d.npz"):
        volume = read_volume(tmp_path / name)
        shape, grid = inspect_volume(tmp_path / name)
        assert shape == tuple(volume.values.shape)
        assert (grid is None) == (volume.grid is None)
        new = tmp_path / f"new.{name}"
        write_volume(new, volume.values.numpy() % 50, tmp_path / name)
        assert np.array_equal(content(new), volume.values.numpy() % 50)
        with np.load(tmp_path / name) if name[-1] == "z" else open(tmp_path / name) as old:
            placed = [key for key in ("spacing", "affine") if name[-1] == "z" and key in old]
            for key in placed:
                assert np.array_equal(np.load(new)[key], old[key])
    assert np.load(tmp_path / "new.a.npy").shape == values[0].shape


@pytest.mark.parametrize("suffix", [".mhd", ".mha"])
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_metaimage(tmp_path, suffix, zipped, order):
    rng = np.random.default_rng(0)
    values = values_of(rng, SHAPE[::-1], f"{order}i2")
    local = suffix == ".mha"
    header = (
        f"ObjectType = Image\nNDims = 3\nBinaryDataByteOrderMSB = {order == '>'}\nCompressedData = {zipped}\n"
        "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 10 20 30\nElementSpacing = 0.5 0.75 2\n"
        f"DimSize = {' '.join(map(str, SHAPE))}\nElementType = MET_SHORT\n"
        f"ElementDataFile = {'LOCAL' if local else 'a.raw'}\n"
    )
    data = zlib.compress(values.tobytes()) if zipped else values.tobytes()
    (tmp_path / f"a{suffix}").write_bytes(header.encode() + (data if local else b""))
    if not local:
        (tmp_path / "a.raw").write_bytes(data)
    volume = read_volume(tmp_path / f"a{suffix}")
    # Its axes run to the left and to the back.
    assert np.array_equal(volume.values[0].numpy(), values[:, ::-1, ::-1])
    assert np.allclose(volume.grid.spacing, (2, 0.75, 0.5))
    first = volume.grid.affine @ [SHAPE[0] - 1, SHAPE[1] - 1, 0, 1]
    assert np.allclose(first[:3], [-10, -20, 30])
    write_volume(tmp_path / "new.nii.gz", volume.values.numpy(), tmp_path / f"a{suffix}")
    new = read_volume(tmp_path / "new.nii.gz")
    assert grid_distance(volume.grid, SHAPE[::-1], new.grid, SHAPE[::-1]) < 1e-5
    assert np.array_equal(new.values, volume.values)


@pytest.mark.parametrize("name", ["new.nii.gz", "new.npz", "new.tif", "new.npy"])
def test_other_formats_get_the_grid(tmp_path, name):
    rng = np.random.default_rng(3)
    model = save_nifti(tmp_path / "model.nii", values_of(rng, SHAPE, "int16"), oblique(rng))
    tifffile.imwrite(tmp_path / "model.tif", values_of(rng, SHAPE[::-1], "uint8"), metadata={"axes": "ZYX"}, ome=True)
    volume = read_volume(model)
    write_volume(tmp_path / name, volume.values.numpy(), model)
    new = read_volume(tmp_path / name)
    assert np.array_equal(new.values, volume.values)
    if name == "new.tif":
        assert np.allclose(new.grid.spacing, volume.grid.spacing)
    elif name != "new.npy":
        assert grid_distance(volume.grid, volume.values.shape, new.grid, new.values.shape) < 1e-5
    plain = content(tmp_path / "model.tif")
    write_volume(tmp_path / name, plain, tmp_path / "model.tif")
    assert np.array_equal(content(tmp_path / name), plain)


def test_grid_distance_is_that_of_the_farthest_corner():
    a = Grid(affine_of((2, 1, 1)))
    moved = a.affine.copy()
    moved[2, 3] = 1  # 1 mm up: half a voxel
    assert np.isclose(grid_distance(a, (4, 5, 6), Grid(moved), (4, 5, 6)), 0.5)
    assert grid_distance(a, (4, 5, 6), a, (1, 4, 5, 6)) == 0
    assert np.isclose(grid_distance(a, (4, 5, 6), a, (4, 5, 9)), 3)
    angle = 0.01
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    corner = np.hypot(5.5, 4.5) * 2 * np.sin(angle / 2)
    assert np.isclose(grid_distance(Grid(np.eye(4)), (4, 5, 6), Grid(turned), (4, 5, 6)), corner)


@pytest.mark.parametrize(
    "name, stem, suffix",
    [
        ("a.nii.gz", "a", ".nii.gz"),
        ("A.b.NII.GZ", "A.b", ".nii.gz"),
        ("a.ome.tif", "a", ".ome.tif"),
        ("a.v2.npy", "a.v2", ".npy"),
        ("a", "a", ""),
    ],
)
def test_suffixes_of_two_parts(name, stem, suffix):
    assert stem_of(Path("folder.nii.gz") / name) == stem
    assert suffix_of(Path(name)) == suffix


# ── mistakes ──────────────────────────────────────────────────────────────────────────────────────


def truncated(file: Path, share: float = 0.6) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])


def broken_files(folder: Path) -> dict[str, str]:
    """Write files that cannot be read, and return the expected reason by name."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 30_000, (20, 20, 20)).astype(np.int16)
    for name in (
        "cut.nii.gz",
        "cut.nii",
        "checksum.nii.gz",
        "flipped.nii.gz",
        "huge.nii.gz",
        "singular.nii",
        "nan.nii",
    ):
        save_nifti(folder / name, noise)
    truncated(folder / "cut.nii.gz")
    truncated(folder / "cut.nii")
    data = bytearray((folder / "checksum.nii.gz").read_bytes())
    data[-6] ^= 1
    (folder / "checksum.nii.gz").write_bytes(bytes(data))
    header = bytearray(gzip.decompress((folder / "huge.nii.gz").read_bytes()))
    header[42:48] = np.array([30_000] * 3, "<i2").tobytes()
    (folder / "huge.nii.gz").write_bytes(gzip.compress(bytes(header)))
    for name, value in (("singular.nii", 0), ("nan.nii", np.nan)):
        header = bytearray((folder / name).read_bytes())
        header[280:296] = np.full(4, value, "<f4").tobytes()
        (folder / name).write_bytes(bytes(header))
    (folder / "empty.nii.gz").write_bytes(b"")
    (folder / "text.nii").write_text("not a volume")
    (folder / "text.tif").write_text("not a volume")
    (folder / "text.npy").write_text("not a volume")
    (folder / "text.npz").write_text("not a volume")
    (folder / "text.mhd").write_text("not a volume")
    save_nifti(folder / "complex.nii", np.zeros((3, 3, 3), np.complex64))
    save_nifti(folder / "axes.nii", np.zeros((3, 3, 3, 2, 2), np.uint8))
    save_nifti(folder / "frames.nii", np.zeros((3, 3, 3, 65), np.uint8))
    for name, options in (("cut.tif", {}), ("zipped.tif", {"compression": "zlib"})):
        tifffile.imwrite(folder / name, noise, photometric="minisblack", **options)
        truncated(folder / name)
    for size in (4, 5):
        tifffile.imwrite(folder / "sizes.tif", np.zeros((2, size, 4), np.uint8), append=True, metadata=None)
    np.save(folder / "cut.npy", noise)
    truncated(folder / "cut.npy")
    np.save(folder / "plane.npy", noise[0])
    np.save(folder / "words.npy", np.array([[["a"]]]))
    np.save(folder / "objects.npy", np.array([[[{}]]], dtype=object), allow_pickle=True)
    np.save(folder / "large.npy", np.full((2, 2, 2), 2**40))
    np.save(folder / "far.npy", np.full((2, 2, 2), 1e300))
    np.savez(folder / "two.npz", a=noise, b=noise)
    np.savez(folder / "spacing.npz", values=noise, spacing=[1, 0, 1])
    np.savez(folder / "affine.npz", values=noise, affine=np.eye(3))
    mha = "NDims = 3\nDimSize = 9 9 9\nElementType = MET_SHORT\nElementDataFile = "
    (folder / "short.mha").write_text(f"{mha}LOCAL\n123")
    (folder / "outside.mhd").write_text(f"{mha}../../secret.raw\n")
    (folder / "missing.mhd").write_text(f"{mha}missing.raw\n")
    for name in ("scan.dcm", "scan.nrrd", "scan.jpg", "scan"):
        (folder / name).write_bytes(b"x")
    (folder / "folder.nii").mkdir()
    os.mkfifo(folder / "pipe.nii")
    return {
        "folder.nii": "not a regular file",
        "pipe.nii": "not a regular file",
        "cut.nii.gz": "ended before the end-of-stream marker",
        "cut.nii": "truncated: 9,811 bytes instead of 16,352",
        "checksum.nii.gz": "CRC check failed",
        "huge.nii.gz": "truncated",
        "singular.nii": "singular",
        "nan.nii": "NaN",
        "empty.nii.gz": "empty",
        "text.nii": "not a NIfTI file",
        "text.tif": "not a TIFF file",
        "text.npy": "not an array of numbers",
        "text.npz": "not a zip file",
        "text.mhd": "not a MetaImage",
        "complex.nii": "complex64",
        "axes.nii": "5 axes",
        "frames.nii": "65 channels are more than 64",
        "cut.tif": "truncated",
        "zipped.tif": "truncated",
        "sizes.tif": "2 images of different sizes",
        "cut.npy": "truncated",
        "plane.npy": "2 axes",
        "words.npy": "type str",
        "objects.npy": "not an array of numbers",
        "large.npy": "do not fit into 32 bits",
        "far.npy": "do not fit into 32 bits",
        "two.npz": "arrays a, b; call one of them values",
        "spacing.npz": "three positive lengths",
        "affine.npz": "(3, 3) instead of (4, 4)",
        "short.mha": "truncated: 3 bytes",
        "outside.mhd": "expected LOCAL, or one file beside it",
        "missing.mhd": "No such file",
        "scan.dcm": "convert it to .nii",
        "scan.nrrd": "convert it to .nii",
        "scan.jpg": "no volume by its suffix .jpg",
        "scan": "(none)",
        "nothing.nii.gz": "No such file",
    }


def test_broken_files_have_a_reason_without_a_path(tmp_path):
    for name, expected in broken_files(tmp_path).items():
        with pytest.raises(ValueError) as caught:
            read_volume(tmp_path / name)
        reason = str(caught.value)
        print(f"{name}: {reason}")
        assert expected in reason, name
        assert str(tmp_path) not in reason
        assert reason
        assert len(reason.splitlines()) == 1


def test_damage_inside_of_a_zipped_file_is_found(tmp_path):
    """Wherever a bit flips, the file is refused, or its values are those that were written."""
    values = np.random.default_rng(0).integers(0, 30_000, (9, 9, 9)).astype(np.int16)
    file = save_nifti(tmp_path / "a.nii.gz", values)
    whole, refused = file.read_bytes(), 0
    for place in range(0, len(whole), 37):
        damaged = bytearray(whole)
        damaged[place] ^= 16
        file.write_bytes(bytes(damaged))
        try:
            assert np.array_equal(content(file)[0], values.T), place
        except ValueError:
            refused += 1
    assert refused > 30


def test_a_number_of_channels_is_checked(tmp_path):
    file = save_nifti(tmp_path / "a.nii", np.zeros((3, 3, 3, 2), np.uint8))
    assert read_volume(file, channels=2).values.shape == (2, 3, 3, 3)
    with pytest.raises(ValueError, match="2 channels instead of 4"):
        read_volume(file, channels=4)


def test_another_size_than_the_model_is_refused(tmp_path):
    model = save_nifti(tmp_path / "a.nii", np.zeros(SHAPE, np.uint8))
    with pytest.raises(ValueError, match="5×7×7 voxels for the 5×7×6 of a.nii"):
        write_volume(tmp_path / "b.nii", np.zeros((5, 7, 7)), model)
    for name in ("b.mhd", "b.png"):
        with pytest.raises(ValueError, match=".nii.gz"):
            write_volume(tmp_path / name, np.zeros((5, 7, 6)), model)
    assert [file.name for file in tmp_path.iterdir()] == ["a.nii"]


@pytest.mark.parametrize("missing, name", [("nibabel", "a.nii"), ("tifffile", "a.tif")])
def test_a_missing_library_is_named(tmp_path, monkeypatch, missing, name):
    monkeypatch.setitem(__import__("sys").modules, missing, None)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=f"needs {missing}; pip install 'diffunet\\[volumes\\]'"):
        read_volume(tmp_path / name)
