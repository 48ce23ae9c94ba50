"""Uploads: size in bytes and in pixels before decoding, files that are not what they are called."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from diffunet.core.errors import UserError
from diffunet.web.uploads import MAX_BYTES, check_prediction_size, check_sample_size, checked_upload


def bomb(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes with a header of that size, and no pixels."""
    chunks = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")
    parts = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tiff", "a.bmp", "a.gif"])
def test_images(tmp_path, name):
    Image.new("RGB", (7, 5)).save(tmp_path / name)
    assert checked_upload("source", tmp_path / name) == (tmp_path / name, (5, 7))
    renamed = (tmp_path / name).rename(tmp_path / "a.txt")
    assert checked_upload("source", renamed)[1] == (5, 7)


def test_arrays(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((5, 7, 2), np.float32))
    assert checked_upload("source", tmp_path / "a.npy")[1] == (5, 7)
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(
        tmp_path / "a.tiff", np.zeros((5, 7, 6), np.uint16), photometric="minisblack", planarconfig="contig"
    )
    assert checked_upload("source", tmp_path / "a.tiff")[1] == (5, 7)


@pytest.mark.parametrize(
    "name, content, problem",
    [
        ("a.png", b"", "cannot be read (not an image); upload an image"),
        ("a.png", b"#!/bin/sh\nrm -rf /\n", "cannot be read (not an image)"),
        ("a.png", b"\x89PNG\r\n\x1a\nbroken", "cannot be read"),
        ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot be read (not an image)"),
        ("a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be read (not an image)"),
        ("a.png", bomb(5000, 5000), "too many pixels (got 5000×5000); use at most 16,777,216 in all"),
        ("a.png", bomb(60_000, 60_000), "cannot be read (Image size (3600000000 pixels) exceeds limit"),
        (
            "a.npy",
            b"\x93NUMPY\x01\x00\x76\x00{'descr': '|O', 'fortran_order': False, 'shape': (9, 9)}",
            "cannot be read",
        ),
        ("a.png", bytes(MAX_BYTES + 1), "is too large (got 20 MB); use at most 20 MB"),
        ("\x1b[2J.png", b"", "\\x1b[2J.png cannot be read"),
    ],
)
def test_other_files(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as mistake:
        checked_upload("source", tmp_path / name)
    assert str(mistake.value).startswith("source: ")
    assert problem in str(mistake.value)
    assert str(mistake.value).isprintable()


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    """With EXIF after its pixels, Pillow decodes a PNG to read the rotation."""
    Image.new("L", (5000, 5000)).save(tmp_path / "a.png")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UserError, match="too many pixels"):
        checked_upload("source", tmp_path / "a.png")


def test_a_source_that_makes_too_large_a_sample():
    check_sample_size("source", (1024, 1024))
    with pytest.raises(UserError, match="source: gives images of 4096×4096, more than the page makes"):
        check_sample_size("source", (4096, 4096))


def test_a_prediction_of_too_many_numbers():
    check_prediction_size("image: a.png", (4096, 4096), 4)
    with pytest.raises(UserError, match="image: a.png: 4096×4096 pixels with 5 classes or channels are more than"):
        check_prediction_size("image: a.png", (4096, 4096), 5)
