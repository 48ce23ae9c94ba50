"""Volumes in TIFF files: pages, ImageJ's stacks and OME-TIFF, with their spacing."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from ...core.storage import atomic_write
from .grids import MILLIMETERS, Header, affine_of

PLANE = "YX"
CHANNELS = "CS"
"""Names of axes with channels: separate, and samples of a pixel."""
IMAGEJ_TYPES = {"uint8", "uint16", "float32"}
NAMES = {"micron": "µm", "microns": "µm", "micrometer": "µm", "\\u00B5m": "µm", "\u03bcm": "µm", "in": "inch"}
"""Other names of units: words, ImageJ's escaped one, and the Greek letter in place of the micro sign."""


class _Axes(NamedTuple):
    """The axes of a series by their places; None: a single plane, or a single channel."""

    planes: int | None
    channels: int | None


def inspect_tiff(path: Path) -> Header:
    """Return the header of a file. Raise Exception if it cannot be read."""
    with _opened(path) as (tiff, series):
        axes = _axes_of(series.axes, series.shape)
        sides = [series.shape[series.axes.index(name)] for name in PLANE]
        planes, channels = (1 if axis is None else series.shape[axis] for axis in axes)
        spacing = _spacing(tiff)
        affine = None if spacing is None else affine_of(spacing)
        return Header((channels, planes, sides[0], sides[1]), np.dtype(series.dtype), affine)


def read_tiff(path: Path) -> np.ndarray:
    """Return the values of a file, (C, D, H, W). Raise Exception if it cannot be read."""
    with _opened(path) as (tiff, series):
        _check_pages(tiff, series)
        planes, channels = _axes_of(series.axes, series.shape)
        values = series.asarray()
        wanted = [axis for axis in (channels, planes) if axis is not None]
        wanted += [series.axes.index(name) for name in PLANE]
        single = [axis for axis in range(values.ndim) if axis not in wanted]
        values = values.transpose(*single, *wanted)
        sides = 1 if channels is None else series.shape[channels], 1 if planes is None else series.shape[planes]
        return values.reshape(*sides, *values.shape[-2:])


def write_tiff(path: Path, values: np.ndarray, like: Path | None, affine: np.ndarray | None) -> None:
    """Write values (C, D, H, W), a page for each z, with the resolution of another file, or as OME-TIFF on a grid."""
    import tifffile

    options: dict[str, Any] = {"metadata": {}}
    if like is not None:
        with _opened(like) as (tiff, _):
            options = _options(tiff)
    elif affine is not None:
        options = {"ome": True, "metadata": _physical(np.linalg.norm(affine[:3, :3], axis=0).tolist())}
    names = "CZYX" if len(values) > 1 else "ZYX"
    if options.get("imagej"):
        values = values if values.dtype.name in IMAGEJ_TYPES else values.astype(np.float32)
        values, names = values.swapaxes(0, 1), "ZCYX"  # the order of ImageJ's pages
    elif len(values) == 1:
        values = values[0]
    options["metadata"]["axes"] = names
    with atomic_write(path) as file:
        tifffile.imwrite(file, values, photometric="minisblack", **options)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open a file and its only series of pages. Raise ValueError if it has several, or tifffile is missing."""
    try:
        import tifffile
    except ImportError:
        raise ValueError("needs tifffile; pip install 'diffunet[volumes]'") from None
    with tifffile.TiffFile(path) as tiff:
        if not tiff.series:
            raise ValueError("no pages")
        if _next_page(tiff):
            raise ValueError(f"truncated: the list of its pages ends after {len(tiff.pages)}")
        if len(tiff.series) > 1:
            sizes = " and ".join("×".join(map(str, series.shape)) for series in tiff.series[:2])
            raise ValueError(f"{len(tiff.series)} images of different sizes or kinds, such as {sizes}; keep one")
        yield tiff, tiff.series[0]


def _next_page(tiff: Any) -> int:
    """Return where the header of a page after the last one is listed, which cannot be read there; 0: nowhere."""
    file, layout, start = tiff.filehandle, tiff.tiff, tiff.pages[-1].offset
    file.seek(start)
    (tags,) = struct.unpack(layout.tagnoformat, file.read(layout.tagnosize))
    file.seek(start + layout.tagnosize + tags * layout.tagsize)
    return struct.unpack(layout.offsetformat, file.read(layout.offsetsize))[0]


def _axes_of(names: str, shape: tuple[int, ...]) -> _Axes:
    """Return the places of planes and channels. Raise ValueError if there are other axes, or two of a kind.

    Planes are Z, or the only axis of another name, as of plain pages or frames. Of two such axes the first is that of
    the channels, as in arrays.
    """
    longer = [axis for axis, (name, length) in enumerate(zip(names, shape, strict=True)) if length > 1]
    channels = [axis for axis in longer if names[axis] in CHANNELS]
    others = [axis for axis in longer if names[axis] not in CHANNELS + PLANE]
    if not channels and len(others) == 2 and "Z" not in names:
        channels = [others.pop(0)]
    if len(others) > 1 or len(channels) > 1 or any(name not in names for name in PLANE):
        raise ValueError(f"axes {names} are not those of a volume; expected ZYX, CZYX, ZCYX or ZYXS")
    return _Axes(next(iter(others), None), next(iter(channels), None))


def _check_pages(tiff: Any, series: Any) -> None:
    """Raise ValueError if pages are missing, or end behind the file, which would be read as zeros."""
    length = tiff.filehandle.size
    for number, page in enumerate(series.pages):
        if page is None:
            raise ValueError(f"page {number} is missing")
        ends = [start + count for start, count in zip(page.dataoffsets, page.databytecounts, strict=False)]
        if not ends or max(ends) > length or 0 in page.dataoffsets:
            raise ValueError(f"truncated: page {number} is incomplete")


# ── spacing ───────────────────────────────────────────────────────────────────────────────────────


def _spacing(tiff: Any) -> tuple[float, float, float] | None:
    """Return the distance of voxels along (z, y, x) in millimeters; None if the file lacks one of them.

    The resolution of plain pages is no such distance: it has no z, and most often is that of a screen.
    """
    found: list[tuple[float, str]] = []
    if tiff.is_ome:
        pixels = _pixels(tiff)
        found = [(float(pixels.get(f"PhysicalSize{a}", 0)), pixels.get(f"PhysicalSize{a}Unit", "µm")) for a in "ZYX"]
    elif tiff.is_imagej:
        metadata, tags = tiff.imagej_metadata or {}, tiff.pages[0].tags
        unit = str(metadata.get("unit", ""))
        resolutions = [tags[name].value if name in tags else (0, 1) for name in ("YResolution", "XResolution")]
        steps = [denominator / numerator if numerator else 0.0 for numerator, denominator in resolutions]
        found = [(float(metadata.get("spacing", 0)), unit), *((step, unit) for step in steps)]
    spacing = [length * MILLIMETERS.get(NAMES.get(unit, unit), 0) for length, unit in found]
    if len(spacing) != 3 or not all(0 < length < float("inf") for length in spacing):
        return None
    return spacing[0], spacing[1], spacing[2]


def _pixels(tiff: Any) -> dict[str, str]:
    """Return the attributes of the first image that the metadata of OME describe."""
    root = ElementTree.fromstring(tiff.ome_metadata)
    return next((dict(element.attrib) for element in root.iter() if element.tag.endswith("}Pixels")), {})


def _options(tiff: Any) -> dict[str, Any]:
    """Return how `tifffile.imwrite` keeps kind and resolution of a file; the axes are missing."""
    if tiff.is_ome:
        kept = {name: value for name, value in _pixels(tiff).items() if name.startswith("PhysicalSize")}
        return {"ome": True, "metadata": kept}
    tags = tiff.pages[0].tags
    options: dict[str, Any] = {"metadata": {}}
    if "XResolution" in tags and "YResolution" in tags:
        options["resolution"] = tags["XResolution"].value, tags["YResolution"].value
        options["resolutionunit"] = int(tags["ResolutionUnit"].value) if "ResolutionUnit" in tags else 2
    if tiff.is_imagej:
        metadata = tiff.imagej_metadata or {}
        options |= {"imagej": True, "ome": False}
        options["metadata"] = {name: metadata[name] for name in ("spacing", "unit") if name in metadata}
    return options


def _physical(lengths: list[float]) -> dict[str, Any]:
    """Return the metadata of OME for distances along x, y and z in millimeters."""
    named = dict(zip("XYZ", lengths, strict=True))
    sizes: dict[str, Any] = {f"PhysicalSize{axis}": length for axis, length in named.items()}
    return sizes | {f"PhysicalSize{axis}Unit": "mm" for axis in named}
