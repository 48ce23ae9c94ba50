"""Images as conditions: to upscale, to color, to fill in, to translate."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from PIL import Image
from pydantic import Field, Strict
from torch import Tensor

from ..core.errors import UserError, printable
from ..data.decoding import UNREADABLE, decode, inspect, reason_of, values_of
from ..data.degradation import Degradation, Share, Step, image_size
from ..data.image_column import ImageColumn, SourceImages, digest_files, with_noise
from ..data.pixels import normalize
from ..data.sources import Table, encoded_images
from ..models.conditioning import PlaneEmbedding
from ..models.config import UNetConfig
from .base import ABSENT, NONE, ConditionConfig, Value

ARRAYS = {".npy", ".tif", ".tiff"}
INSPECTED = 100
"""Maximum number of sources inspected for channels, bit depth and sizes."""


class ImageConfig(ConditionConfig):
    """A second image as a condition, or one made from the image itself (Saharia et al. 2021, "Palette")."""

    type: Literal["image"] = "image"
    column: str | None = None
    """Column of a second image, or of its file; null: the condition's own name, or, with `by`, the image itself."""
    by: Annotated[tuple[Step, ...], Strict(False)] = ()
    """How the condition is made, step by step: downscale, gray, blur, mask, extend; noise, jpeg."""
    noise: Annotated[tuple[Share, Share], Strict(False)] | None = None
    """Range of the noise on the condition, an input of the network too, for cascades (Ho et al. 2021, CDM)."""
    channels: int | None = Field(None, ge=1)
    """Channels of the image before `by`; null: as in the data."""
    bit_depth: Literal[8, 16, 32] | None = None
    """Bits per channel, 32 for float; null: as in the data."""
    value_range: Annotated[tuple[float, float], Strict(False)] | None = None
    """Values of the files that become the least and the greatest pixel; filled in for float images."""

    @property
    def is_made_from_image(self) -> bool:
        """Whether the condition is made from the image itself."""
        return bool(self.by) and self.column is None

    @property
    def plane_channels(self) -> int:
        hidden = any(step.mask or step.extend for step in self.by)
        values = 1 if any(step.gray for step in self.by) else self.channels or 0
        return values + hidden + (self.noise is not None) + 1

    @property
    def is_complete(self) -> bool:
        return self.channels is not None

    @property
    def summary(self) -> str:
        steps = ", ".join(step.name for step in self.by)
        return f"image by {steps}" if steps else f"image of {self.channels} channel{'s' * (self.channels != 1)}"

    @property
    def help(self) -> str:
        hidden = "; transparent pixels are generated" if any(step.mask for step in self.by) else ""
        return f"file, or folder of files sampled in turn ({self.summary}{hidden}); none: unconditional"

    def read(self, name: str, table: Table, folder: Path | None) -> tuple[Self, ImageColumn] | None:
        """Return the config with channels and bit depth, and the images: pairs from their files, or none."""
        form = table.format
        assert form is not None and form.channels is not None and form.bit_depth is not None
        if self.noise and self.noise[0] > self.noise[1]:
            raise UserError(f"conditions.{name}.noise: the range is [low, high] (got {list(self.noise)})")
        if self.is_made_from_image:
            update = {"channels": form.channels, "bit_depth": form.bit_depth, "value_range": form.value_range}
            config = self.model_copy(update=update)
            degradation = config._degradation(form.size, f"conditions.{name}.by")
            return config, ImageColumn(torch.empty(len(table), 0), form.bit_depth, degradation, self.noise)
        column = self.column_in(name, table)
        if column is None:
            return None
        place = f"conditions.{name}.column: column {column} of {table.path}"
        rows = source_rows(table, column, place)
        config = self._resolve(rows, form.size, place)
        degradation = config._degradation(form.size, f"conditions.{name}.by")
        assert config.channels and config.bit_depth
        images = SourceImages(
            rows, config.channels, config.bit_depth, config.value_range, form.size, np.arange(len(rows))
        )
        decoded = images.decoded() if images.nbytes <= form.memory_budget * 2**30 else images
        return config, ImageColumn(decoded, config.bit_depth, degradation, self.noise, digest_files(images))

    def _resolve(self, rows: Any, size: tuple[int, int], place: str) -> Self:
        """Return the config with channels and bit depth of the files. Raise UserError if they do not suit."""
        kinds, readable, problem, ratio = [], [], "", size[0] / size[1]
        indices = np.unique(np.linspace(0, len(rows) - 1, min(INSPECTED, len(rows))).astype(int)).tolist()

        def row_at(index: int) -> dict | None:
            return rows[index]["image"] if rows[index] and "image" in rows[index] else rows[index]

        for row in map(row_at, indices):
            if row is None:
                continue
            try:
                kind = inspect(row)
            except UNREADABLE as error:
                problem = problem or f"{printable(row['path'])}: {reason_of(error)}"
                continue
            height, width = kind.size
            if abs(height / width / ratio - 1) > max(1 / height, 1 / width):
                raise UserError(
                    f"{place} has images of another shape (got {height}×{width} beside {size[0]}×{size[1]}); "
                    "crop both alike"
                )
            kinds.append(kind)
            readable.append(row)
        if not kinds:
            raise UserError(f"{place} has no readable images{f' ({problem})' * bool(problem)}; choose another column")
        channels = {kind.channels for kind in kinds}
        update = {
            "channels": self.channels or (3 if len(channels) > 1 else max(channels)),
            "bit_depth": self.bit_depth or min(kind.bit_depth for kind in kinds),
        }
        if self.value_range is None and update["bit_depth"] == 32:
            found = [value for row in readable for value in values_of(row)]
            update["value_range"] = (min(found), max(max(found), min(found) + 1e-6))
        return self.model_copy(update=update)

    def _degradation(self, size: tuple[int, int], place: str = "by") -> Degradation:
        """Return the degradation of images of a size, (height, width)."""
        assert self.channels is not None and self.bit_depth is not None
        return Degradation(self.by, (self.channels, *size), self.bit_depth, place)

    def build_embedding(self, name: str, unet: UNetConfig) -> PlaneEmbedding:
        if self.channels is None:
            raise ValueError(f"conditions.{name}.channels: not set; give the number of channels")
        return PlaneEmbedding(self.plane_channels - 1)

    def parse(self, name: str, words: Any, folder: Path, size: tuple[int, int]) -> list[Value]:
        """Return the images of files, or of all files of folders, sorted by name.

        With `by` they are the degraded images themselves: small, gray, with transparent pixels where a mask hides.
        """
        values = []
        for word in words if isinstance(words, list) else [words]:
            if word is None or word == NONE:
                values.append(ABSENT)
                continue
            values.extend(self._value(name, file, size) for file in files_at(name, Path(str(word)).expanduser()))
        return values

    def _value(self, name: str, file: Path, size: tuple[int, int]) -> Value:
        assert self.channels is not None and self.bit_depth is not None
        masked = any(step.mask for step in self.by)
        channels = (1 if any(step.gray for step in self.by) else self.channels) + masked
        try:
            pixels = decode({"path": str(file), "bytes": None}, channels, self.bit_depth, self.value_range)
        except UNREADABLE as error:
            raise UserError(f"{name}: {printable(file)} cannot be read ({reason_of(error)})") from None
        height, width = image_size(self.by, (pixels.shape[1], pixels.shape[2]))
        if height < size[0] or width < size[1]:
            needed = self._degradation(size).measurement_shape[1:]
            raise UserError(
                f"{name}: {printable(file)} is too small (got {pixels.shape[1]}×{pixels.shape[2]}); "
                f"this run needs at least {needed[0]}×{needed[1]}"
            )
        measurement = normalize(pixels, self.bit_depth)[None]
        if masked:
            mask = (measurement[:, -1:] < 0).float()
            measurement = torch.cat([measurement[:, :-1] * (1 - mask), mask], dim=1)
        degradation = self._degradation((height, width))
        planes = degradation.planes(measurement)
        if self.noise is not None:
            noise = torch.randn(planes.shape, generator=torch.Generator().manual_seed(0))
            planes = with_noise(planes, degradation, torch.tensor([self.noise[0]]), noise)
        return Value(planes[0], str(file), measurement[0], (height, width))

    def is_file(self, word: str) -> bool:
        return word != NONE

    def measure(self, images: Tensor, values: list[Value]) -> Tensor | None:
        """Return the degraded images, (B, C', h, w), 0 where a mask hides; None if the degradation is random."""
        degradation = self._degradation((images.shape[2], images.shape[3]))
        if not self._is_determined_by(degradation):
            return None
        _, mask = degradation.split(self._measurements(values, images))
        return degradation.apply(images, mask)

    def _is_determined_by(self, degradation: Degradation) -> bool:
        """Whether the condition is a fixed linear function of the image."""
        return self.is_made_from_image and degradation.is_linear and degradation.is_fixed

    def _measurements(self, values: list[Value], like: Tensor) -> Tensor:
        return torch.stack([v.measurement for v in values if v.measurement is not None]).to(like.device)

    def check_agreement(self, name: str, values: list[Value]) -> None:
        """Raise UserError unless the condition is made from the image by fixed linear steps."""
        if not self.is_made_from_image:
            raise UserError(
                f"agree: {name} is not made from the image itself, so nothing has to agree; leave agree out"
            )
        refused = [step.name for step in self.by if step.name in ("noise", "jpeg", "blur")]
        if refused:
            listed = ", ".join(refused)
            raise UserError(f"agree: {name} is made by {listed}, which has no exact inverse; leave agree out")

    def agree(self, images: Tensor, values: list[Value]) -> Tensor:
        """Return the nearest images (B, C, H, W) whose degradation rounds to the measurements.

        Images of the condition's bit depth; those without a measurement are unchanged, as are all if the degradation is
        random.
        """
        chosen = [index for index, value in enumerate(values) if value.measurement is not None]
        degradation = self._degradation((images.shape[2], images.shape[3]))
        if not chosen or not self._is_determined_by(degradation):
            return images
        measurements = self._measurements(values, images)
        bit_depth = None if self.bit_depth == 32 else self.bit_depth
        agreed = images.clone()
        agreed[chosen] = degradation.project(images[chosen], measurements, bit_depth)
        return agreed


def source_rows(table: Table, column: str, place: str) -> Any:
    """Return {bytes, path} of the images in a column of images, or of paths relative to the folder of the data.

    Raise UserError for a column of another type, or a path outside of the folder.
    """
    import datasets

    kind = getattr(table.rows, "features", {}).get(column)
    if isinstance(kind, datasets.Image):
        return encoded_images(table.rows, column, table.path)  # pyright: ignore
    words = table.values(column)
    if not all(isinstance(word, str | None) for word in words):
        raise UserError(f"{place} does not contain images; choose a column of images or of their files")
    folder = Path(table.path).expanduser().resolve()
    rows: list[dict | None] = []
    for word in words:
        file = None if word is None else (folder / word).resolve()
        if file and not file.is_relative_to(folder):
            raise UserError(f"{place} refers to {printable(word)} outside of the folder; move the file inside")
        if file and not file.is_file():
            raise UserError(f"{place} contains {printable(word, 80)}, which is no file; choose a column of images")
        rows.append(file and {"path": str(file), "bytes": None})
    return rows


def files_at(name: str, path: Path) -> list[Path]:
    """Return a file, or the images in a folder, sorted. Raise UserError if there are none."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{name}: {printable(path)} does not exist; give an image or a folder of images")
    known = {*Image.registered_extensions(), *ARRAYS}
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in known and file.is_file())
    if not files:
        raise UserError(f"{name}: {printable(path)} contains no images; give an image or a folder of images")
    return files
