"""Label images: which values their places have, and what classes these are.

A place has a code: a gray value, an index of a palette, an element of an integer array, or COLOR + 0xRRGGBB. Colors
that are all gray, as of masks saved as RGB, become gray values.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageOps

from ..core.errors import UserError, did_you_mean, printable
from .arrays import NPY, check_size
from .decoding import UNREADABLE, reason_of
from .pairs import PairConfig, Source

COLOR = 1 << 32
"""Added to the codes of colors, which no gray value reaches."""
MAX_CLASSES = 256
MAX_VALUE = 65535
"""Greatest value of a class, as predictions are written as PNG."""
MANY = 32
"""Values of a gray image above which they are taken for instances rather than classes."""
LOSSY, NEAR = ("JPEG", "MPO"), 16
"""Formats whose compression turns one value into several, and the least distance of values that it cannot make."""
UNKNOWN = -1
"""The class of a place without a label."""


@dataclass(frozen=True)
class Labels:
    """What label images contain."""

    codes: tuple[int, ...]
    """The code of each class."""
    names: tuple[str, ...]
    ignore: int | None = None
    instances: bool = False
    """Places with codes other than 0 are objects, one for each code."""
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False, compare=False)
    """Unions of classes by their names."""

    def alike(self, codes: np.ndarray) -> np.ndarray:
        """Return codes as the classes have them: gray values unless these are colors, and plain numbers of objects."""
        if self.instances:
            return np.where(codes >= COLOR, codes - COLOR, codes)
        return gray_of(codes) if max(self.codes) < COLOR else codes

    def total(self, images: Iterable[Mapping[int, int]]) -> Counter[int]:
        """Return the number of places of each code in all images together, of those in each."""
        counts: Counter[int] = Counter()
        for image in images:
            alike = self.alike(np.array([*image], dtype=np.int64))
            for code, number in zip(alike.tolist(), image.values(), strict=True):
                counts[code] += number
        return counts

    def classes_of(self, codes: np.ndarray, source: object) -> np.ndarray:
        """Return the class of each place, int16. Raise UserError for a code that is no class."""
        codes = self.alike(codes)
        if self.instances:
            classes = (codes != 0).astype(np.int16)
        else:
            order = np.argsort(self.codes)
            ordered = np.asarray(self.codes)[order]
            nearest = np.searchsorted(ordered, codes).clip(max=len(ordered) - 1)
            classes = np.where(ordered[nearest] == codes, order[nearest], UNKNOWN).astype(np.int16)
        if self.ignore is not None:
            classes[codes == self.ignore] = UNKNOWN
        strange = codes[(classes == UNKNOWN) & (codes != self.ignore)]
        if strange.size:
            known = ", ".join(map(written, self.codes))
            raise UserError(f"{source}: value {written(int(strange[0]))} is no class; the classes are {known}")
        return classes


def read_codes(source: Source) -> np.ndarray:
    """Return the code of each place, (H, W) int64. Raise UserError if it is no label image."""
    try:
        return _read(source)
    except UNREADABLE as error:
        raise UserError(f"{source}: no label image: {reason_of(error)}") from None


def _read(source: Source) -> np.ndarray:
    with open(source.path, "rb") as file:
        head = file.read(len(NPY))
    if head == NPY:
        values = np.load(source.path, allow_pickle=False)
        if values.dtype == bool or (values.dtype.kind == "f" and np.array_equal(values, np.floor(values))):
            values = values.astype(np.int64)
        if values.ndim != 2 or values.dtype.kind not in "iu":
            raise ValueError(f"expected integers (H, W), got {values.dtype.name} {values.shape}")
        return _checked(values)
    image = Image.open(source.path)
    check_size(*image.size[::-1])
    image.seek(source.page)
    if image.format in LOSSY and np.diff(np.unique(np.asarray(image))).min(initial=255) < NEAR:
        raise ValueError(f"{image.format} has blurred its values; save it as PNG")
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA"):
        image = image.convert("L" if image.mode == "LA" else "RGB")
    values = np.asarray(image)
    if values.ndim == 2:
        if values.dtype.kind == "f" and not np.array_equal(values, np.floor(values)):
            raise ValueError("fractions, not labels; a regression's targets are numbers")
        return _checked(values)
    red, green, blue = np.moveaxis(values[..., :3].astype(np.int64), -1, 0)
    return COLOR + (red << 16) + (green << 8) + blue


def _checked(values: np.ndarray) -> np.ndarray:
    """Return values as int64. Raise ValueError if they do not fit into 32 bits, beyond which codes are colors."""
    if values.size and not -(2**31) <= values.min() <= values.max() < 2**31:
        raise ValueError("values beyond 32 bits")
    return values.astype(np.int64)


def gray_of(codes: np.ndarray) -> np.ndarray:
    """Return codes with gray values instead of colors of equal red, green and blue."""
    value = codes & 255
    return np.where(codes == COLOR + value * 0x010101, value, codes)


# ── the survey ────────────────────────────────────────────────────────────────────────────────────


def count_codes(codes: np.ndarray) -> Counter[int]:
    """Return the number of places of each code."""
    return Counter(dict(zip(*(found.tolist() for found in np.unique(codes, return_counts=True)), strict=True)))


def survey(images: Iterable[Mapping[int, int]], config: PairConfig) -> Labels:
    """Return what the codes of label images mean, by the number of places of each code in each image.

    Raise UserError if that is in doubt: more values than classes have, a lossy compression, or a single class.
    """
    counts: Counter[int] = Counter()
    for image in images:
        counts.update(image)
        if len(counts) > MAX_CLASSES and config.labels == "classes" and config.values is None:
            break
    counts = _alike(counts, config)
    ignore = None if config.ignore is None else _code(config.ignore, "data.ignore")
    if config.labels == "instances" and ignore is not None and ignore >= COLOR:
        ignore -= COLOR
    found = sorted(code for code in counts if code != ignore)
    if ignore is not None and ignore not in counts:
        near = did_you_mean(written(ignore), map(written, found)) or f"; the values are {_listed(found)}"
        raise UserError(f"data.ignore: no target has the value {written(ignore)}{near}")
    if config.labels == "instances":
        if not set(found) - {0}:
            raise UserError("data.labels: no target has an object, a value other than 0; set data.labels classes")
        return Labels((0, 1), _names(config, ("background", "object")), ignore, instances=True)
    codes = _chosen(config, found, ignore) if config.values is not None else found
    if any(code < 0 or MAX_VALUE < code < COLOR for code in codes):
        strange = next(code for code in codes if code < 0 or MAX_VALUE < code < COLOR)
        raise UserError(
            f"data.labels: classes have values from 0 to {MAX_VALUE} (got {strange}); set data.labels instances if "
            "each is an object, or data.ignore if it marks places without a label"
        )
    _check_one_kind(codes)
    if config.values is None:
        _check_plausible(found)
    if len(codes) < 2:
        only = written(codes[0]) if codes else "nothing"
        raise UserError(f"data.labels: the targets have one value ({only}); a segmentation needs at least two classes")
    return Labels(tuple(codes), _names(config, tuple(map(written, codes))), ignore, regions=_regions(config, codes))


def _alike(counts: Counter[int], config: PairConfig) -> Counter[int]:
    """Return counts of codes as `Labels.alike` returns them."""
    chosen = [_code(value, "data.values") for value in config.values or ()]
    found = np.array([*counts], dtype=np.int64)
    if config.labels == "instances":
        alike = np.where(found >= COLOR, found - COLOR, found)
    else:
        gray = gray_of(found)
        alike = gray if max([*gray, *chosen], default=0) < COLOR else found
    merged: Counter[int] = Counter()
    for code, number in zip(alike.tolist(), counts.values(), strict=True):
        merged[code] += number
    return merged


def _check_one_kind(codes: list[int]) -> None:
    if len({code >= COLOR for code in codes}) > 1:
        raise UserError("data.labels: some targets are gray and some have colors; save all in one way")


def _chosen(config: PairConfig, found: list[int], ignore: int | None) -> list[int]:
    codes = [_code(value, "data.values") for value in config.values or ()]
    if ignore in codes:
        raise UserError(f"data.values: {written(ignore)} is data.ignore, which is no class; leave it out of one")
    if len(set(codes)) < len(codes):
        raise UserError("data.values: a value is listed twice; list each class once")
    if strange := [code for code in found if code not in codes]:
        raise UserError(
            f"data.values: the targets also have {_listed(strange)}; list these classes, or set data.ignore to one"
        )
    return codes


def _check_plausible(found: list[int]) -> None:
    gray = [code for code in found if code < COLOR]
    low, high = [code for code in gray if code < 16], [code for code in gray if 240 <= code < 256]
    if len(gray) > 4 and len(low) + len(high) == len(gray) and len(high) > 1:
        raise UserError(
            f"data.labels: {len(gray)} values close to 0 and 255 ({_listed(gray)}), as a lossy compression leaves "
            "them; save the targets as PNG with the values 0 and 255"
        )
    if len(gray) > MANY:
        raise UserError(
            f"data.labels: more than {MANY} values ({_listed(gray)}); set data.labels instances if each is an object, "
            "list the classes in data.values, or save as PNG what a lossy compression or scaling has blurred"
        )
    if len(found) > MAX_CLASSES or (len(found) > MANY and not gray):
        raise UserError(
            f"data.labels: {len(found)} colors or more; list those of the classes in data.values, and save the "
            "targets as PNG without smoothed edges"
        )


def _names(config: PairConfig, default: tuple[str, ...]) -> tuple[str, ...]:
    if config.class_names is None:
        return default
    if len(config.class_names) != len(default):
        raise UserError(
            f"data.class_names: {len(config.class_names)} names for {len(default)} classes ({', '.join(default)})"
        )
    return config.class_names


def written(code: int) -> str:
    """Return a code as in `data.values`: 255, or "#rrggbb"."""
    return f"#{code - COLOR:06x}" if code >= COLOR else str(code)


def value_of(code: int) -> int | str:
    """Return a code as in `data.values`."""
    return written(code) if code >= COLOR else code


def _code(value: int | str, key: str) -> int:
    text = str(value)
    if re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        return COLOR + int(text[1:], 16)
    if re.fullmatch(r"-?\d{1,9}", text):
        return int(text)
    raise UserError(f'{key}: {printable(text, 40)} is neither a value, such as 255, nor a color, such as "#ff0000"')


def _listed(codes: list[int]) -> str:
    return ", ".join(map(written, codes[:8])) + ", ..." * (len(codes) > 8)


def labels_of(config: PairConfig) -> Labels:
    """Return the labels of a resolved config."""
    ignore = None if config.ignore is None else _code(config.ignore, "data.ignore")
    if config.labels == "instances":
        return Labels((0, 1), config.class_names or (), ignore, instances=True)
    codes = tuple(_code(value, "data.values") for value in config.values or ())
    return Labels(codes, config.class_names or (), ignore, regions=_regions(config, codes))


def _regions(config: PairConfig, codes: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Return the classes of each region. Raise UserError for a value that is none, and for all or no classes."""
    found = {}
    for name, values in config.regions.items():
        key = f"data.regions.{name}"
        members = sorted({_code(value, key) for value in values})
        if strange := [code for code in members if code not in codes]:
            raise UserError(f"{key}: {written(strange[0])} is no class; the classes are {_listed(list(codes))}")
        if not 0 < len(members) < len(codes):
            raise UserError(f"{key}: needs some of the classes, and not all {len(codes)} (got {len(members)})")
        found[name] = tuple(codes.index(code) for code in members)
    return found
