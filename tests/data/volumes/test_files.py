"""Volumes as files, written and read by nibabel, tifffile and NumPy, and here."""

import gzip
import os
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from nibabel.affines import voxel_sizes
from PIL import Image

from diffunet.data.volumes.files import inspect_volume, read_volume, stem_of, suffix_of, write_volume
from diffunet.data.volumes.grids import Grid, Orientation, affine_of, grid_distance

SHAPE = (6, 7, 5)
"""Along x, y and z."""


def rotation(rng: np.random.Generator, largest: float = np.pi) -> np.ndarray:
    """Return a rotation about a random axis by a random angle (Rodrigues' formula)."""
    x, y, z = axis = rng.standard_normal(3)
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = rng.uniform(-largest, largest)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def oblique(rng: np.random.Generator, largest: float = np.pi) -> np.ndarray:
    """Return an affine with axes in any order and direction, turned, of unequal spacing."""
    affine = np.eye(4)
    axes = np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3)
    affine[:3, :3] = rotation(rng, largest) @ axes * rng.uniform(0.5, 3, 3)
    affine[:3, 3] = rng.uniform(-100, 100, 3)
    return affine


def save_nifti(path: Path, values: np.ndarray, affine: np.ndarray | None = None, **codes: int) -> Path:
    """Write (x, y, z, ...) with nibabel."""
    image = nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine)
    image.header.set_xyzt_units("mm")
    if "sform" in codes:
        image.set_sform(affine, codes["sform"])
    if "qform" in codes:
        image.set_qform(affine, codes["qform"])
    nibabel.save(image, path)
    return path


def values_of(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return rng.integers(0, 200, shape).astype(dtype)


def content(path: Path) -> np.ndarray:
    return read_volume(path).values.numpy()


# ── NIfTI ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_is_reoriented_as_nibabel_does(tmp_path, seed, suffix):
    rng = np.random.default_rng(seed)
    file = save_nifti(tmp_path / f"a{suffix}", values_of(rng, SHAPE, "int16"), oblique(rng))
    volume = read_volume(file)
    truth = nibabel.as_closest_canonical(nibabel.load(file))
    assert volume.grid is not None
    assert np.array_equal(volume.values[0].numpy(), np.asarray(truth.dataobj).T)
    assert np.allclose(volume.grid.affine, truth.affine, atol=1e-4)
    assert np.allclose(volume.grid.spacing, voxel_sizes(truth.affine)[::-1])
    shape, grid = inspect_volume(file)
    assert shape == tuple(volume.values.shape)
    assert np.array_equal(grid.affine, volume.grid.affine)


def test_every_voxel_keeps_its_place_in_millimeters(tmp_path):
    """Values are the coordinates of the voxels themselves."""
    rng = np.random.default_rng(5)
    affine = oblique(rng)
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    places = (index @ affine[:3, :3].T + affine[:3, 3]).astype(np.float32)
    volume = read_volume(save_nifti(tmp_path / "a.nii.gz", places, affine))
    channels, *sides = volume.values.shape
    assert channels == 3
    z, y, x = np.meshgrid(*map(np.arange, sides), indexing="ij")
    found = np.stack([x, y, z], -1) @ volume.grid.affine[:3, :3].T + volume.grid.affine[:3, 3]
    assert np.allclose(found, np.moveaxis(volume.values.numpy(), 0, -1), atol=1e-3)
    world = volume.grid.affine[:3, :3]
    assert (np.diag(world) > 0).all()  # to the right, to the front and up


def test_orientations_of_nibabel_at_random():
    """Where the largest cosines are in doubt, the two may differ; both are then equally near."""
    rng = np.random.default_rng(0)
    equal = 0
    for _ in range(200):
        affine = oblique(rng)
        truth = nibabel.io_orientation(affine)
        found = Orientation.of(affine)
        equal += list(found.axes) == truth[:, 0].tolist() and list(found.signs) == truth[:, 1].tolist()
    assert equal >= 196


def test_undoing_an_orientation_gives_the_file_back():
    rng = np.random.default_rng(1)
    for _ in range(50):
        orientation = Orientation.of(oblique(rng))
        values = rng.random((2, 3, 4, 5))
        assert np.array_equal(orientation.undo(orientation.apply(values)), values)
        assert orientation.apply(values).shape == orientation.shape(values.shape)


@pytest.mark.parametrize(
    "dtype, expected",
    [
        ("uint8", "uint8"),
        ("int8", "int16"),
        ("int16", "int16"),
        ("uint16", "int32"),
        ("int32", "int32"),
        ("uint32", "int32"),
        ("int64", "int32"),
        ("float32", "float32"),
        ("float64", "float32"),
        (">i2", "int16"),
        (">f4", "float32"),
    ],
)
def test_types_of_values(tmp_path, dtype, expected):
    values = values_of(np.random.default_rng(0), SHAPE, dtype) % 100
    if np.dtype(dtype).kind != "u":
        values = values - np.asarray(50).astype(dtype)
    header = nibabel.Nifti1Header(endianness=">" if dtype[0] == ">" else "<")
    image = nibabel.Nifti1Image(values, np.eye(4), header, dtype=np.dtype(dtype))
    nibabel.save(image, tmp_path / "a.nii")
    np.save(tmp_path / "a.npy", values.T)
    for name in ("a.nii", "a.npy"):
        found = content(tmp_path / name)
        assert found.dtype == expected
        assert np.array_equal(found[0], values.T)


def test_scaled_values_are_floats_and_others_stay_integers(tmp_path):
    values = values_of(np.random.default_rng(0), SHAPE, "int16")
    image = nibabel.Nifti1Image(values, np.eye(4))
    for slope, intercept in [(1, 0), (1, -1024), (0.25, 3)]:
        image.header.set_slope_inter(slope, intercept)
        nibabel.save(image, tmp_path / "a.nii.gz")
        truth = np.asarray(nibabel.load(tmp_path / "a.nii.gz").dataobj).T
        found = content(tmp_path / "a.nii.gz")[0]
        assert found.dtype == (np.int16 if (slope, intercept) == (1, 0) else np.float32)
        assert np.allclose(found, truth, rtol=1e-6, atol=1e-4)
        assert np.allclose(truth, values.T * slope + intercept)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 1), (4, 3, 2, 1), (4, 3, 2, 5), (4, 3, 2, 1, 5), (4, 3, 2, 1, 1, 5)])
def test_axes_beyond_the_third_are_channels(tmp_path, shape):
    values = values_of(np.random.default_rng(0), shape, "uint8")
    found = content(save_nifti(tmp_path / "a.nii.gz", values))
    depth, channels = (shape[2] if len(shape) > 2 else 1), (shape[-1] if len(shape) > 3 else 1)
    assert found.shape == (channels, depth, 3, 4)
    assert np.array_equal(found, values.reshape(4, 3, depth, channels).transpose(3, 2, 1, 0))


@pytest.mark.parametrize("unit, factor", [("mm", 1), ("meter", 1000), ("micron", 0.001), ("unknown", 1)])
def test_grids_are_in_millimeters(tmp_path, unit, factor):
    image = nibabel.Nifti1Image(np.zeros(SHAPE, np.uint8), np.diag([2, 3, 4, 1]))
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "a.nii")
    assert np.allclose(inspect_volume(tmp_path / "a.nii")[1].spacing, np.array([4, 3, 2]) * factor)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("codes", [{"sform": 1, "qform": 0}, {"sform": 0, "qform": 1}, {"sform": 4, "qform": 2}, {}])
def test_what_is_written_has_the_place_of_its_model(tmp_path, seed, codes):
    rng = np.random.default_rng(seed)
    model = save_nifti(tmp_path / "model.nii.gz", values_of(rng, SHAPE, "int16"), oblique(rng), **codes)
    volume = read_volume(model)
    labels = (volume.values[0] > 100).numpy().astype(np.int64)
    write_volume(tmp_path / "new.nii.gz", labels, model)
    new, old = nibabel.load(tmp_path / "new.nii.gz"), nibabel.load(model)
    assert new.shape == old.shape
    assert new.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(new.dataobj), np.asarray(old.dataobj) > 100)
    assert np.abs(new.affine - old.affine).max() < 1e-6
    for name in ("sform_code", "qform_code", "xyzt_units", "pixdim", "quatern_b", "srow_x", "intent_code"):
        assert np.array_equal(new.header[name], old.header[name]), name
    again = read_volume(tmp_path / "new.nii.gz")
    assert np.array_equal(again.values[0].numpy(), labels)
    assert grid_distance(volume.grid, volume.values.shape, again.grid, again.values.shape) < 1e-3


def test_nothing_of_the_values_of_the_model_is_kept(tmp_path):
    """Scaling, the range of display and extensions belong to the model; its intent and second version stay."""
    values = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    image = nibabel.Nifti2Image(values, np.diag([2, 2, 2, 1]))
    image.set_data_dtype(np.int16)
    image.header.set_slope_inter(0.001, 0.5)
    image.header["cal_max"] = 7
    image.header.set_intent("label")
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"x" * 1000))
    nibabel.save(image, tmp_path / "model.nii")
    numbers = np.random.default_rng(1).random((2, *SHAPE[::-1]))
    write_volume(tmp_path / "new.nii", numbers, tmp_path / "model.nii")
    new = nibabel.load(tmp_path / "new.nii")
    assert isinstance(new, nibabel.Nifti2Image)
    assert np.allclose(np.asarray(new.dataobj), numbers.transpose(3, 2, 1, 0))
    assert new.header["cal_max"] == 0
    assert new.header.get_intent()[0] == "label"
    assert not new.header.extensions
    assert np.allclose(content(tmp_path / "new.nii"), numbers)


def test_a_single_plane_stays_one(tmp_path):
    for shape in [(6, 7), (6, 7, 1)]:
        model = save_nifti(tmp_path / "model.nii", np.zeros(shape, np.uint8))
        write_volume(tmp_path / "new.nii", np.ones((1, 7, 6), bool), model)
        assert nibabel.load(tmp_path / "new.nii").shape == shape


@pytest.mark.parametrize(
    "low, high, dtype", [(0, 255, "uint8"), (-1, 9, "int16"), (0, 40_000, "uint16"), (0, 7e4, "int32")]
)
def test_labels_take_the_smallest_type(tmp_path, low, high, dtype):
    model = save_nifti(tmp_path / "model.nii", np.zeros(SHAPE, np.uint8))
    labels = np.zeros(SHAPE[::-1], np.int64)
    labels[0, 0, :2] = low, high
    write_volume(tmp_path / "new.nii", labels, model)
    assert nibabel.load(tmp_path / "new.nii").get_data_dtype() == dtype
    assert np.array_equal(content(tmp_path / "new.nii")[0], labels)


# ── TIFF ──────────────────────────────────────────────────────────────────────────────────────────


def as_channels(values: np.ndarray, axes: str) -> np.ndarray:
    """Return values with named axes as (C, Z, Y, X)."""
    axes = axes.replace("S", "C").replace("Q", "Z").replace("T", "Z")
    for name in "CZ":
        if name not in axes:
            values, axes = values[None], name + axes
    return values.transpose(*(axes.index(name) for name in "CZYX"))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("axes", ["ZYX", "CZYX", "ZCYX", "ZYXS", "YX", "YXS", "TYX", "CYX"])
@pytest.mark.parametrize("kind", ["plain", "ome", "imagej"])
def test_tiff_of_any_axes(tmp_path, axes, dtype, kind):
    sizes = {"Z": 5, "C": 2, "S": 3, "Y": 6, "X": 7, "T": 4}
    if kind == "imagej" and (axes == "CZYX" or ("S" in axes and dtype != "uint8")):
        pytest.skip("not a stack of ImageJ")
    values = values_of(np.random.default_rng(0), tuple(sizes[name] for name in axes), dtype)
    options = {"plain": {}, "ome": {"ome": True}, "imagej": {"imagej": True}}[kind]
    photometric = "rgb" if "S" in axes else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", values, metadata={"axes": axes}, photometric=photometric, **options)
    expected = as_channels(values, axes)
    assert np.array_equal(content(tmp_path / "a.tif"), expected)
    assert inspect_volume(tmp_path / "a.tif") == (expected.shape, None)


def test_plain_pages_are_planes(tmp_path):
    """Without any metadata: of tifffile, and of Pillow."""
    values = values_of(np.random.default_rng(0), (5, 6, 7), "uint8")
    tifffile.imwrite(tmp_path / "a.tif", values, metadata=None, photometric="minisblack")
    pages = [Image.fromarray(page) for page in values]
    pages[0].save(tmp_path / "b.tif", save_all=True, append_images=pages[1:])
    tifffile.imwrite(tmp_path / "c.tif", values)
    for name in "abc":
        assert np.array_equal(content(tmp_path / f"{name}.tif")[0], values)
    four = values_of(np.random.default_rng(0), (2, 5, 6, 7), "uint8")
    tifffile.imwrite(tmp_path / "d.tif", four, photometric="minisblack")
    assert np.array_equal(content(tmp_path / "d.tif"), four)
    color = values_of(np.random.default_rng(0), (5, 6, 7, 3), "uint8")
    tifffile.imwrite(tmp_path / "e.tif", color, photometric="rgb", compression="zlib")
    assert np.array_equal(content(tmp_path / "e.tif"), color.transpose(3, 0, 1, 2))


@pytest.mark.parametrize("unit, factor", [("µm", 1e-3), ("mm", 1), ("nm", 1e-6), (None, 1e-3), ("pixel", None)])
def test_spacing_of_ome(tmp_path, unit, factor):
    sizes = {f"PhysicalSize{axis}": size for axis, size in zip("XYZ", (0.5, 0.6, 2), strict=True)}
    units = {f"PhysicalSize{axis}Unit": unit for axis in "XYZ"} if unit else {}
    tifffile.imwrite(tmp_path / "a.ome.tif", np.zeros((5, 6, 7), np.uint8), metadata={"axes": "ZYX", **sizes, **units})
    grid = inspect_volume(tmp_path / "a.ome.tif")[1]
    if factor is None:
        assert grid is None
    else:
        assert np.allclose(grid.spacing, np.array([2, 0.6, 0.5]) * factor)


@pytest.mark.parametrize(
    "unit, factor", [("um", 1e-3), ("micron", 1e-3), ("\\u00B5m", 1e-3), ("cm", 10), ("pixel", None)]
)
def test_spacing_of_imagej(tmp_path, unit, factor):
    metadata = {"spacing": 2.5, "unit": unit, "axes": "ZYX"}
    tifffile.imwrite(
        tmp_path / "a.tif", np.zeros((5, 6, 7), np.uint8), imagej=True, resolution=(4, 2), metadata=metadata
    )
    grid = inspect_volume(tmp_path / "a.tif")[1]
    if factor is None:
        assert grid is None
    else:
        assert np.allclose(grid.spacing, np.array([2.5, 0.5, 0.25]) * factor)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("kind", ["plain", "ome", "imagej", "bare"])
def test_tiff_like_a_tiff(tmp_path, kind, channels):
    rng = np.random.default_rng(0)
    options = {
        "plain": {"resolution": (300, 200), "resolutionunit": 3, "metadata": {"axes": "ZYX"}},
        "ome": {"ome": True, "metadata": {"axes": "ZYX", "PhysicalSizeX": 2, "PhysicalSizeY": 3, "PhysicalSizeZ": 4}},
        "imagej": {"imagej": True, "resolution": (4, 2), "metadata": {"axes": "ZYX", "spacing": 2.5, "unit": "um"}},
        "bare": {"metadata": None, "photometric": "minisblack"},
    }[kind]
    tifffile.imwrite(tmp_path / "model.tif", values_of(rng, (5, 6, 7), "uint16"), **options)
    values = values_of(rng, (channels, 5, 6, 7), "uint8")
    write_volume(tmp_path / "new.tif", values if channels > 1 else values[0], tmp_path / "model.tif")
    new = read_volume(tmp_path / "new.tif")
    assert np.array_equal(new.values.numpy(), values)
    old = inspect_volume(tmp_path / "model.tif")[1]
    assert (new.grid is None) == (old is None)
    if old:
        assert np.allclose(new.grid.affine, old.affine)
    with tifffile.TiffFile(tmp_path / "new.tif") as tiff, tifffile.TiffFile(tmp_path / "model.tif") as model:
        assert len(tiff.pages) == 5 * channels
        assert (tiff.is_ome, tiff.is_imagej) == (model.is_ome, model.is_imagej)
        assert tiff.series[0].dtype == np.uint8
        if kind in ("plain", "imagej"):
            for name in ("XResolution", "YResolution", "ResolutionUnit"):
                assert tiff.pages[0].tags[name].value == model.pages[0].tags[name].value


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
