"""Image files of many kinds, decoded through `load_images`."""

import io
import sys
import warnings
import zlib
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from helpers import write_image
from PIL import Image

from diffunet.data.config import DataConfig
from diffunet.data.dataset import load_images
from diffunet.data.decoding import UNREADABLE, decode, inspect, open_image, read_values, reason_of, values_of
from diffunet.data.quiet import quiet
from stress.fuzz_images import png


def load(path, **options):
    """Return the dataset at a path, and what was logged."""
    logged = []
    return load_images(DataConfig(path=str(path), **options), log=logged.append), "\n".join(logged)


def test_transparency_is_kept_or_composited_on_white(tmp_path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert load(tmp_path)[0].config.channels == 4
    assert (load(tmp_path, channels=3)[0].images == 255).all()
    assert load(tmp_path, channels=4)[0].images[0, :, 0, 0].tolist() == [255, 0, 0, 0]


def test_16_bit_gray_is_kept(tmp_path):
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    dataset, logged = load(tmp_path)
    assert "16 bits" in logged
    assert dataset.images[0, 0].tolist() == ramp.tolist()
    eight = load(tmp_path, bit_depth=8)[0].images[0, 0]
    assert eight.tolist() == np.round(ramp / 257).astype(int).tolist()


def test_a_tiff_of_32_bit_integers_is_clipped_to_16_bits(tmp_path):
    values = np.array([[-5, 0, 1000], [65535, 65536, 10**9]], dtype=np.int32)
    Image.fromarray(values).save(tmp_path / "deep.tif")
    dataset, logged = load(tmp_path)
    assert "1 channel, 16 bits" in logged
    assert dataset.images[0, 0].tolist() == values.clip(0, 65535).tolist()


def test_16_bit_color_is_kept(tmp_path):
    """Pillow opens such files with 8 bits, silently."""
    pixels = np.random.default_rng(0).integers(0, 65536, (4, 5, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    (tmp_path / "color.png").write_bytes(png(5, 4, zlib.compress(rows), bits=16, color=2))
    dataset, logged = load(tmp_path)
    assert "3 channels, 16 bits" in logged
    assert dataset.images[0].permute(1, 2, 0).tolist() == pixels.tolist()


@pytest.mark.parametrize("color, channels", [(2, 3), (4, 2), (6, 4)])
def test_16_bit_color_png_is_decoded_without_a_warning(color, channels):
    """Color, gray with transparency, color with transparency, against the numbers that were encoded."""
    pixels = np.random.default_rng(1).integers(0, 65536, (6, 5, channels), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    row = row_of(png(5, 6, zlib.compress(rows), bits=16, color=color))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = decode(row, 3 if channels == 3 else 4, 16).permute(1, 2, 0).numpy()
    assert np.array_equal(found, pixels if channels > 2 else pixels[..., [0, 0, 0, 1]])
    assert inspect(row)[:3] == (3 if channels == 3 else 4, 16, (6, 5))


def row_of(content):
    """Return a row of the data whose image is these bytes, or this array as a .npy file."""
    if isinstance(content, np.ndarray):
        file = io.BytesIO()
        np.save(file, content)
        content = file.getvalue()
    return {"bytes": content, "path": None}


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float16", "float32", "float64", ">f4", ">u2"])
def test_npy_files_keep_their_values(dtype):
    values = np.random.default_rng(2).integers(0, 200, (6, 9, 5)).astype(dtype)
    row = row_of(values)
    depth = {"uint8": 8, "uint16": 16}.get(np.dtype(dtype).name, 32)
    assert inspect(row) == (5, depth, (6, 9), np.dtype(dtype).name)
    assert values_of(row) == (values.min(), values.max())
    found = decode(row, 5, depth, (0, 200) if depth == 32 else None).permute(1, 2, 0).numpy()
    expected = np.float32(values.astype(float) / 200) if depth == 32 else values
    assert np.array_equal(found, expected)


def test_the_axis_of_the_channels_is_the_smaller_or_the_one_that_fits():
    values = np.arange(2 * 6 * 9, dtype=np.uint8).reshape(6, 9, 2)
    first = row_of(np.ascontiguousarray(values.transpose(2, 0, 1)))
    assert torch.equal(decode(first, 2, 8), decode(row_of(values), 2, 8))
    assert inspect(first) == inspect(row_of(values)) == (2, 8, (6, 9), "uint8")
    assert inspect(row_of(values[..., 0])) == (1, 8, (6, 9), "uint8")
    small = row_of(np.zeros((4, 5, 16), dtype=np.uint8))
    assert decode(small, 16, 8).shape == (16, 4, 5)
    assert decode(small, 4, 8).shape == (4, 5, 16)


def test_float_values_are_mapped_from_their_range_and_clipped():
    row = row_of(np.array([[-1000.0, 0.0, 1000.0, 9000.0]]))
    assert decode(row, 1, 32, (-1000, 1000)).tolist() == [[[0, 0.5, 1, 1]]]
    assert decode(row, 1, 8, (-1000, 1000)).tolist() == [[[0, 128, 255, 255]]]
    assert decode(row, 3, 16, (-1000, 1000))[:, 0, 2].tolist() == [65535] * 3


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("channels, planar", [(1, False), (2, False), (3, False), (5, False), (5, True)])
def test_tiff_keeps_channels_and_bits(tmp_path, dtype, channels, planar):
    """Written by tifffile, classic and big, with channels last and first."""
    tifffile = pytest.importorskip("tifffile")
    values = np.random.default_rng(3).integers(0, 200, (6, 9, channels)).astype(dtype)
    stored = np.ascontiguousarray(values.transpose(2, 0, 1)) if planar else values
    options = {"photometric": "rgb" if channels == 3 else "minisblack", "bigtiff": planar}
    options |= {"planarconfig": "separate" if planar else "contig"} if channels > 1 else {}
    tifffile.imwrite(tmp_path / "a.tif", stored[..., 0] if channels == 1 else stored, metadata=None, **options)
    row = {"bytes": None, "path": str(tmp_path / "a.tif")}
    depth = {"uint8": 8, "uint16": 16}.get(dtype, 32)
    assert inspect(row)[:3] == (channels, depth, (6, 9))
    found = decode(row, channels, depth, (0, 200) if depth == 32 else None).permute(1, 2, 0).numpy()
    assert np.array_equal(found, np.float32(values / 200) if depth == 32 else values)


def npy(shape, descr="|u1", data=b""):
    """Return a .npy file with a header of our own."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue() + data


def half_a_png():
    file = io.BytesIO()
    Image.effect_noise((16, 16), 50).save(file, "png")
    return file.getvalue()[: len(file.getvalue()) // 2]


@pytest.mark.parametrize("dtype", ["complex64", ">c8", "complex128"])
@pytest.mark.parametrize("shape", [(5, 6), (3, 5, 6), (5, 6, 3)])
def test_complex_numbers_have_two_channels_each(tmp_path, dtype, shape):
    rng = np.random.default_rng(0)
    values = (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(dtype)
    np.save(tmp_path / "image.npy", values)
    numbers = np.atleast_3d(values).transpose(2, 0, 1) if shape[0] == 5 else values
    row = {"bytes": None, "path": str(tmp_path / "image.npy")}
    found = read_values(row, inspect(row).channels)[0].numpy()
    assert found.shape == (2 * len(numbers), 5, 6) and found.dtype == np.float32
    np.testing.assert_allclose(found[0::2] + 1j * found[1::2], numbers, rtol=1e-6)


@pytest.mark.parametrize(
    "content, reason",
    [
        (np.array([[np.nan, 1.0]]), "NaN or infinite values"),
        (np.array([[1e300, 1.0]]), "NaN or infinite values"),
        (np.array([[1, 2]], dtype=object), "values of type object are not supported"),
        (np.array([["1970-01-01"]], dtype="datetime64[D]"), "values of type datetime64[D] are not supported"),
        (np.zeros((2, 2, 2, 2)), "4 axes; an image has (H, W), (H, W, C) or (C, H, W)"),
        (np.zeros((0, 4)), "no pixels"),
        (np.zeros((70, 80, 90), dtype=np.uint8), "70 channels are more than 64"),
        (np.zeros((6, 4, 2), dtype=np.uint8), "2 channels (expected 3)"),
        (npy((12_000, 12_000)), "12000 × 12000 pixels are too many"),
        (npy((8, 8), data=b"abc"), "expected 64 bytes got 3"),
        (b"\x93NUMPY\x01\0\xff\xff{", "EOF: reading array header"),
        (b"\x93NUMPY\x09\0", "not an array of numbers"),
        (b"II*\0\xff\xff\xff", "truncated"),
        (half_a_png(), "truncated"),
    ],
)
def test_broken_files_have_a_reason_of_one_line(content, reason):
    with pytest.raises(UNREADABLE) as caught:
        decode(row_of(content), 3, 8)
    assert reason in reason_of(caught.value)


def test_a_missing_tifffile_is_one_line(tmp_path, monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((6, 9, 5)), metadata=None)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ValueError, match=r"needs tifffile; pip install 'diffunet\[volumes\]'"):
        inspect({"bytes": None, "path": str(tmp_path / "a.tif")})


def test_float_files_of_a_folder_are_scaled_by_their_least_and_greatest_value(tmp_path):
    for number, value in enumerate((-5.0, 0.0, 15.0)):
        Image.fromarray(np.full((4, 4), value, dtype=np.float32)).save(tmp_path / f"{number}.tif")
    dataset, logged = load(tmp_path)
    assert "32 bits" in logged
    assert dataset.config.value_range == (-5, 15)
    assert dataset.images[:, 0, 0, 0].tolist() == [0, 0.25, 1]


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    write_image(tmp_path / "rotated.jpg", "RGB", (24, 16), exif=exif)
    assert load(tmp_path)[0].config.size == (24, 16)


def test_images_are_scaled_to_cover_and_center_cropped(tmp_path):
    wide = np.zeros((8, 24), dtype=np.uint8)
    wide[:, 8:16] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert (load(tmp_path, resolution=8)[0].images == 200).all()


def test_a_strip_is_cropped_before_it_is_enlarged(tmp_path):
    """A line of 20,000 pixels that covers 64×64 would be 1,280,000 pixels wide in between."""
    line = np.zeros((1, 20_000, 3), dtype=np.uint8)
    line[:, 9_990:10_010] = (10, 200, 30)
    Image.fromarray(line).save(tmp_path / "line.png")
    Image.fromarray(line.transpose(1, 0, 2)).save(tmp_path / "post.png")
    dataset, _ = load(tmp_path, resolution=64)
    assert (dataset.images == torch.tensor([10, 200, 30])[:, None, None]).all()


def test_unreadable_files_are_logged_with_the_reason(tmp_path):
    write_image(tmp_path / "good.png", size=(8, 8))
    Image.fromarray(np.full((8, 8), np.nan, dtype=np.float32)).save(tmp_path / "depth.tif")
    (tmp_path / "bomb.png").write_bytes(png(12_000, 12_000, b""))
    (tmp_path / "huge.png").write_bytes(png(2**31 - 1, 2**31 - 1, b""))
    (tmp_path / "sketch.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    (tmp_path / "two\nlines.png").touch()
    _, logged = load(tmp_path)
    *_, last = logged.splitlines()
    assert last.startswith("skipped 5 of 6 images: ")
    for reason in (
        "depth.tif (NaN or infinite values)",
        "bomb.png (12000 × 12000 pixels are too many)",
        "huge.png (Image size",
        "sketch.eps (PostScript is not supported: it is a program)",
        r"two\nlines.png (not an image)",
    ):
        assert reason in last


def test_the_first_frame_of_an_animation_is_used(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime")]
    frames[0].save(tmp_path / "moving.png", save_all=True, append_images=frames[1:])
    assert load(tmp_path)[0].images[0, :, 0, 0].tolist() == [255, 0, 0]


def test_pillow_is_silent_only_while_it_decodes(tmp_path):
    """A palette with transparency per entry makes Pillow warn; the filters of the process stay as they were."""
    image = Image.new("P", (8, 8))
    image.putpalette([255, 0, 0] * 256)
    image.save(tmp_path / "palette.png", transparency=bytes(range(256)))
    (tmp_path / "bomb.png").write_bytes(png(12_000, 12_000, b""))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", ResourceWarning)
        before = list(warnings.filters)
        load(tmp_path)
        load(tmp_path, memory_budget=0.0)[0].__getitems__([0, 1])
        assert warnings.filters == before
        assert not caught, [str(w) for w in caught]
        Image.open(tmp_path / "bomb.png")
        assert caught


def test_overlapping_uses_restore_the_warning_filters():
    """As two threads do: the first one to enter leaves first."""
    before = list(warnings.filters)
    first, second = ExitStack(), ExitStack()
    first.enter_context(quiet())
    silent = list(warnings.filters)
    second.enter_context(quiet())
    first.close()
    assert warnings.filters == silent != before
    second.close()
    assert warnings.filters == before


@pytest.mark.parametrize("row", [None, {"bytes": None, "path": None}])
def test_a_row_without_an_image_is_a_value_error(row):
    with pytest.raises(ValueError, match="no image"):
        open_image(row)
