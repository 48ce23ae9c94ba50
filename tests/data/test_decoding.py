"""Image files of many kinds, decoded through `load_images`."""

import warnings
import zlib
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from helpers import write_image
from PIL import Image

from diffunet.data.dataset import DataConfig, load_images
from diffunet.data.decoding import open_image
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


def test_16_bit_color_is_kept(tmp_path):
    """Pillow opens such files with 8 bits, silently."""
    pixels = np.random.default_rng(0).integers(0, 65536, (4, 5, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    (tmp_path / "color.png").write_bytes(png(5, 4, zlib.compress(rows), bits=16, color=2))
    dataset, logged = load(tmp_path)
    assert "3 channels, 16 bits" in logged
    assert dataset.images[0].permute(1, 2, 0).tolist() == pixels.tolist()


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
    Image.new("F", (8, 8)).save(tmp_path / "depth.tif")
    (tmp_path / "bomb.png").write_bytes(png(12_000, 12_000, b""))
    (tmp_path / "huge.png").write_bytes(png(2**31 - 1, 2**31 - 1, b""))
    (tmp_path / "sketch.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    (tmp_path / "two\nlines.png").touch()
    _, logged = load(tmp_path)
    *_, last = logged.splitlines()
    assert last.startswith("skipped 5 of 6 images: ")
    for reason in (
        "depth.tif (floating-point pixels are not supported)",
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
