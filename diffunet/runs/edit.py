"""Edits of image files with a run: what to do with them, and how they are read."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, Strict, model_validator
from torch import Tensor

from ..conditions.base import NONE
from ..conditions.image import files_at
from ..core.errors import UserError, printable
from ..core.progress import no_progress
from ..core.settings import Settings
from ..data.decoding import UNREADABLE, decode, reason_of
from ..data.degradation import MASKED, Degradation, Pixels, Step, image_size
from ..data.pixels import normalize
from ..sampling.editing import Edit, Interpolate, Restore, Vary, slerp
from ..sampling.generate import SampleConfig, Sampler
from ..sampling.observed import NOISE
from .config import Config

KINDS = ("mask", "extend", "degradation", "strength", "between")
"""Settings of `EditConfig` of which an edit has at most one."""
STRENGTH = 0.5
"""Where no kind is given."""


class EditConfig(Settings):
    """What to change in images: one of mask, extend, degradation, strength and between."""

    mask: str | None = None
    """Image, or folder with one of each image's name: white is generated anew, the rest is kept exactly."""
    extend: Annotated[tuple[Pixels, Pixels, Pixels, Pixels], Strict(False)] | None = None
    """Pixels to generate at the [left, right, top, bottom]."""
    degradation: Annotated[tuple[Step, ...], Strict(False)] = ()
    """What made the images from better ones, and is undone: {downscale: 4}, {gray: true}, {blur: 2}, or a list."""
    strength: float | None = Field(None, gt=0, le=1)
    """Noise to add and to remove again: 1 leaves nothing of the image; 0.5 if no other edit is given."""
    between: str | None = None
    """Image, or seed, to which a film leads from the image, or seed."""
    samples: int = Field(1, ge=1, le=1_000_000)
    """Samples of each image."""
    rounds: int = Field(3, ge=1, le=1000)
    """With mask, extend or degradation: how often each step is repeated; more agree better."""
    iterations: int = Field(3, ge=0, le=100)
    """Backward passes per step, to estimate what is hidden from what is known; 0: fast, without, and less exact."""
    noise: float = Field(NOISE, gt=0, le=1)
    """Standard deviation of the noise on what is known, for images in [-1, 1]."""

    @model_validator(mode="before")
    @classmethod
    def _one_step_is_a_list(cls, values):
        step = values.get("degradation") if isinstance(values, dict) else None
        return {**values, "degradation": [step]} if isinstance(step, dict) else values

    @model_validator(mode="after")
    def _check(self) -> "EditConfig":
        given = [name for name in KINDS if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"an edit is one of {', '.join(KINDS)} (got {' and '.join(given)})")
        if any(step.mask or step.extend for step in self.degradation):
            raise ValueError("degradation: a mask or margins are given by themselves; use mask or extend")
        return self


def read_edit(config: EditConfig, files: Sequence[Path], run: Config) -> Restore | Vary:
    """Return the edit of image files. Raise UserError for a file that cannot be read or does not suit."""
    channels, bit_depth = run.data.channels or 1, run.data.bit_depth or 8
    if config.mask or config.extend or config.degradation:
        steps = (MASKED,) if config.mask else (Step(extend=config.extend),) if config.extend else config.degradation
        gray = any(step.gray for step in steps)
        measurements = read_images(files, run, 1 if gray else channels)
        if config.mask:
            mask = torch.cat([_read_mask(config.mask, file, measurements.shape[2:]) for file in files])
            measurements = torch.cat([measurements * (1 - mask), mask], dim=1)
        height, width = measurements.shape[2:]
        degradation = Degradation(steps, (channels, *image_size(steps, (height, width))), bit_depth, "degradation")
        if not (degradation.is_linear and degradation.is_fixed):
            raise UserError("degradation: noise, jpeg and ranges cannot be undone; give fixed steps, and --noise")
        return Restore(
            degradation,
            measurements,
            samples=config.samples,
            rounds=config.rounds,
            iterations=config.iterations,
            noise=config.noise,
            bit_depth=None if bit_depth == 32 else bit_depth,
        )
    return Vary(read_images(files, run, channels), config.strength or STRENGTH, config.samples)


def sampling_settings(edit: Edit | type[Edit], run: Config) -> SampleConfig:
    """Return the settings of sampling for an edit with a run: its own, those of the edit, and no condition."""
    absent = {"conditions": dict.fromkeys(run.inputs, NONE), "guidance_scale": 1.0, "guide": None}
    return run.sample.model_copy(update={**edit.defaults, **absent})


def interpolation(
    ends: Sequence[str], sampler: Sampler, config: SampleConfig, run: Config, progress: Callable = no_progress
) -> tuple[Interpolate, list[Tensor | None]]:
    """Return the edit from one of two `ends` to the other in `config.num_images` samples, and the images at the ends.

    An end is a file, which is inverted, or a seed, whose image is None. Raise UserError if it is neither.
    """
    noise, images = [], []
    for end in ends:
        file = Path(end).expanduser()
        if file.is_dir():
            raise UserError(f"{printable(end)}: is a folder; give one image or seed at each end")
        image = read_images([file], run, run.data.channels or 1) if file.exists() else None
        if image is not None:
            noise.append(sampler.invert(config, image, progress)[0])
        elif end.isdecimal():
            noise.append(torch.randn(sampler.noise_shape(), generator=torch.Generator().manual_seed(int(end))))
        else:
            raise UserError(f"{printable(end)}: neither a file nor a seed; give one of them")
        images.append(image)
    if noise[0].shape != noise[1].shape:
        raise UserError(f"between: {ends[1]} is of another size than {ends[0]}; crop both alike")
    return Interpolate(slerp(*noise, torch.linspace(0, 1, config.num_images)), run.codec.factor), images


def read_images(files: Sequence[Path], run: Config, channels: int) -> Tensor:
    """Return images of one size, (N, channels, H, W) in [-1, 1], in the bit depth of the run."""
    bit_depth, images = run.data.bit_depth or 8, []
    for file in files:
        try:
            pixels = decode({"path": str(file), "bytes": None}, channels, bit_depth, run.data.value_range)
        except UNREADABLE as error:
            raise UserError(f"{printable(file)}: cannot be read ({reason_of(error)}); leave it out") from None
        if images and pixels.shape != images[0].shape:
            found = "×".join(map(str, pixels.shape[1:]))
            raise UserError(f"{printable(file)}: another size than {files[0]} (got {found}); edit it alone")
        images.append(pixels)
    return normalize(torch.stack(images), bit_depth)


def _read_mask(mask: str, image: Path, size: Sequence[int]) -> Tensor:
    """Return (1, 1, H, W): 1 is generated. Raise UserError if there is none for the image, or none of its size."""
    path = Path(mask).expanduser()
    if path.is_dir():
        named = [file for file in files_at("mask", path) if file.stem == image.stem]
        if not named:
            raise UserError(f"mask: {printable(path)} has none named {printable(image.stem)}; add it, or give one file")
        path = named[0]
    (file,) = files_at("mask", path)
    try:
        pixels = decode({"path": str(file), "bytes": None}, 1, 8)
    except UNREADABLE as error:
        raise UserError(f"mask: {printable(file)} cannot be read ({reason_of(error)})") from None
    if pixels.shape[1:] != torch.Size(size):
        found, needed = "×".join(map(str, pixels.shape[1:])), "×".join(map(str, size))
        raise UserError(f"mask: {printable(file)} is of another size than {image} (got {found}); make it {needed}")
    return (pixels > 127).float()[None]
