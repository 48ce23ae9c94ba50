"""Image files as found in the wild: valid ones of every kind, broken ones, and files that are no images.

Each table is {description: (file suffix, writer)}; a writer takes a path and a `random.Random`.
"""

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

ORIENTATION = 0x0112
"""The EXIF tag of the camera's orientation."""


def noise(rng: Random, mode: str = "RGB", size: tuple[int, int] = (12, 10)) -> Image.Image:
    """Return a random image of (width, height) in one of Pillow's modes."""
    width, height = size
    array = np.frombuffer(rng.randbytes(width * height * 4), np.uint8).reshape(height, width, 4)
    if mode in ("I;16", "F", "I"):
        kind = {"I;16": np.uint16, "F": np.float32, "I": np.int32}[mode]
        return Image.fromarray(array[..., 0].astype(kind) * kind(257))
    image = Image.fromarray(array)
    return image.convert("RGB").convert(mode) if mode in ("CMYK", "YCbCr", "1", "P") else image.convert(mode)


def saved(mode: str = "RGB", size: tuple[int, int] = (12, 10), **options) -> Callable:
    """Return a writer of one image."""
    return lambda path, rng: noise(rng, mode, size).save(path, **options)


def animated(**options) -> Callable:
    """Return a writer of three frames."""

    def write(path: Path, rng: Random) -> None:
        frames = [noise(rng) for _ in range(3)]
        frames[0].save(path, save_all=True, append_images=frames[1:], **options)

    return write


def oriented(orientation: int) -> Callable:
    """Return a writer of an image with this EXIF orientation; 1 to 8 are valid."""

    def write(path: Path, rng: Random) -> None:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        noise(rng).save(path, exif=exif)

    return write


def damaged(damage: Callable[[bytes, Random], bytes], mode: str = "RGB", **options) -> Callable:
    """Return a writer of an image file whose bytes are damaged."""

    def write(path: Path, rng: Random) -> None:
        noise(rng, mode, (24, 20)).save(path, **options)
        path.write_bytes(damage(path.read_bytes(), rng))

    return write


def contents(data: bytes) -> Callable:
    """Return a writer of a file with these bytes."""
    return lambda path, rng: path.write_bytes(data)


def png(width: int, height: int, pixels: bytes, bits: int = 8, color: int = 0) -> bytes:
    """Return a PNG with any header and any (compressed) pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def deep_color(path: Path, rng: Random) -> None:
    """Write 16 bits in three channels, which Pillow cannot."""
    rows = b"".join(b"\0" + rng.randbytes(12 * 6) for _ in range(10))
    path.write_bytes(png(12, 10, zlib.compress(rows), bits=16, color=2))


def palette_with_transparency(path: Path, rng: Random) -> None:
    """Write a palette of which one color is transparent."""
    noise(rng, "P").save(path, transparency=rng.randrange(256))


def bomb(path: Path, rng: Random) -> None:
    """Write a few hundred bytes that decompress to 900 million pixels."""
    packer = zlib.compressobj(9)
    row = bytes(1 + 30_000 // 8)
    packed = b"".join(packer.compress(row * 1000) for _ in range(30)) + packer.flush()
    path.write_bytes(png(30_000, 30_000, packed, bits=1))


def middle_index(data: bytes, rng: Random) -> int:
    return rng.randrange(len(data) // 3, 2 * len(data) // 3)


def cut(data: bytes, rng: Random) -> bytes:
    return data[: middle_index(data, rng)]


def flipped(data: bytes, rng: Random) -> bytes:
    index = middle_index(data, rng)
    return data[:index] + bytes([data[index] ^ 1 << rng.randrange(8)]) + data[index + 1 :]


GOOD = {
    "PNG": (".png", saved()),
    "JPEG": (".jpg", saved()),
    "JPEG, progressive": (".jpeg", saved(progressive=True)),
    "WebP": (".webp", saved()),
    "BMP": (".bmp", saved()),
    "GIF": (".gif", saved()),
    "TIFF": (".tif", saved()),
    "TGA": (".tga", saved()),
    "PPM": (".ppm", saved()),
    "one pixel": (".png", saved(size=(1, 1))),
    "20000×1": (".png", saved(size=(20_000, 1))),
    "1×20000": (".png", saved("RGBA", size=(1, 20_000))),
    "16 bits, 20000×1": (".png", saved("I;16", size=(20_000, 1))),
    "gray": (".png", saved("L")),
    "gray and transparency": (".png", saved("LA")),
    "black and white": (".png", saved("1")),
    "color and transparency": (".png", saved("RGBA")),
    "CMYK": (".jpg", saved("CMYK")),
    "CMYK TIFF": (".tiff", saved("CMYK")),
    "YCbCr TIFF": (".tiff", saved("YCbCr", compression="jpeg")),  # Pillow cannot read it uncompressed
    "palette": (".png", saved("P")),
    "palette with transparency": (".png", palette_with_transparency),
    "16 bits": (".png", saved("I;16")),
    "16-bit TIFF": (".tif", saved("I;16")),
    "32-bit TIFF": (".tif", saved("I")),
    "float TIFF": (".tif", saved("F")),
    "16-bit color": (".png", deep_color),
    "animated GIF": (".gif", animated()),
    "animated PNG": (".png", animated()),
    "animated WebP": (".webp", animated()),
    "TIFF of three pages": (".tif", animated()),
    "JPEG named .png": (".png", saved(format="JPEG")),
    "GIF named .jpg": (".jpg", saved(format="GIF")),
    "capital suffix": (".PNG", saved(format="PNG")),
    "rotated by EXIF": (".jpg", oriented(6)),
    "mirrored by EXIF": (".jpg", oriented(2)),
    "invalid EXIF orientation": (".jpg", oriented(77)),
    "PNG rotated by EXIF": (".png", oriented(8)),
}
BROKEN = {
    "empty": (".png", contents(b"")),
    "empty JPEG": (".jpg", contents(b"")),
    "plain text": (".png", contents(b"this is not an image\n")),
    "a web page": (".jpg", contents(b"<!DOCTYPE html><html><title>404 Not Found</title></html>")),
    "a shell script": (".jpg", contents(b"#!/bin/sh\nexit 1\n")),
    "zeros": (".png", contents(bytes(500))),
    "an archive": (".png", contents(b"PK\x03\x04" + bytes(60))),
    "only a signature": (".png", contents(b"\x89PNG\r\n\x1a\n")),
    "PNG cut off": (".png", damaged(cut)),
    "JPEG cut off": (".jpg", damaged(cut)),
    "WebP cut off": (".webp", damaged(cut)),
    "BMP cut off": (".bmp", damaged(cut)),
    "TIFF cut off": (".tif", damaged(cut)),
    "one bit of a PNG": (".png", damaged(flipped)),
    "huge header": (".png", contents(png(2**31 - 1, 2**31 - 1, b""))),
    "no pixels": (".png", contents(png(0, 0, b""))),
    "large header": (".png", contents(png(12_000, 12_000, b"x"))),
    "bomb": (".png", bomb),
    "PostScript": (".eps", contents(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")),
}
AMBIGUOUS = {
    "one bit of a JPEG": (".jpg", damaged(flipped)),
    "one bit of a GIF": (".gif", damaged(flipped, "P")),
    "one bit of a TIFF": (".tif", damaged(flipped)),
    "GIF cut off": (".gif", damaged(cut, "P")),
    "a folder": (".png", lambda path, rng: path.mkdir()),
    "a pipe": (".png", lambda path, rng: os.mkfifo(path)),
    "a link to nothing": (".png", lambda path, rng: path.symlink_to("nothing.png")),
    "a link to itself": (".png", lambda path, rng: path.symlink_to(path.name)),
    "a link to the folder": ("", lambda path, rng: path.symlink_to(".")),
    "an archive beside the images": (".zip", contents(b"PK\x05\x06" + bytes(18))),
    "no archive": (".zip", contents(b"no archive")),
    "a hidden image": (".png", lambda path, rng: noise(rng).save(path.with_name("." + path.name))),
    "a table": (".csv", contents(b"a,b\n1,2\n")),
    "a note": (".txt", contents(b"remember the milk\n")),
    "no suffix": ("", contents(b"something")),
}
"""May be skipped, reported or used; only a traceback or a hang is a fault."""

STEMS = ("plain", "with space", "ünïcödé", "日本", "%41", "q'uote", "dö.t.ted", "-dash", "x" * 200, "[1]", "*", "#hash")
