"""TIFF files of volumes, written and read by tifffile, and here."""

import numpy as np
import pytest
import tifffile
from PIL import Image
from volume_files import content, values_of

from diffunet.data.volumes.files import inspect_volume, read_volume, write_volume


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
