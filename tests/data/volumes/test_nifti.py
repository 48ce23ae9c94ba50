"""NIfTI files, written and read by nibabel, and here."""

import nibabel
import numpy as np
import pytest
from nibabel.affines import voxel_sizes
from volume_files import SHAPE, content, oblique, save_nifti, values_of

from diffunet.data.volumes.files import inspect_volume, read_volume, write_volume
from diffunet.data.volumes.grids import Orientation, grid_distance


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
