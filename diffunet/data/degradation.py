"""Degradations of images: how a source is made in training, and what a sample has to agree with in use.

A degradation is a list of steps, `[{downscale: 4}, {gray: true}]`. Its linear part is an operator A on images
(B, C, H, W) with values in [-1, 1]: it has an adjoint, and a projection onto the images that it maps to a measurement.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field, Strict, model_serializer, model_validator
from torch import Tensor

from ..core.errors import UserError
from ..core.rng import BatchRNG
from ..core.settings import Settings
from .pixels import denormalize, normalize

Shape = tuple[int, int, int]
"""(channels, height, width) of an image."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601), those of Pillow's mode L."""
RECTANGLES = 4
"""Rectangles of a random mask."""
TRUNCATE = 4.0
"""Radius of a Gaussian kernel in standard deviations."""

Share = Annotated[float, Field(ge=0, le=1)]
Std = Annotated[float, Field(ge=0, le=100)]
Quality = Annotated[int, Field(ge=1, le=100)]
Pixels = Annotated[int, Field(ge=0, le=65_536)]


class Step(Settings):
    """One step of a degradation: exactly one of these keys. A range is [low, high], drawn anew for each example."""

    downscale: int | None = Field(None, ge=2, le=1024)
    """Factor by which the image shrinks, by bicubic interpolation with antialiasing."""
    gray: Literal[True] | None = None
    """Brightness of a color image (ITU-R BT.601)."""
    blur: Std | Annotated[tuple[Std, Std], Strict(False)] | None = None
    """Standard deviation in pixels, or a range, of a Gaussian blur with reflected edges."""
    mask: Annotated[tuple[Share, Share], Strict(False)] | None = None
    """Share of the image that random rectangles hide, a range; always the last step."""
    extend: Annotated[tuple[Pixels, Pixels, Pixels, Pixels], Strict(False)] | None = None
    """Pixels [left, right, top, bottom] that are cut off and generated."""
    noise: Annotated[tuple[Std, Std], Strict(False)] | None = None
    """Standard deviation of Gaussian noise, a range; the image is in [-1, 1]. Only in training."""
    jpeg: Annotated[tuple[Quality, Quality], Strict(False)] | None = None
    """Quality of JPEG compression, a range. Only in training."""

    @property
    def name(self) -> str:
        """The key that is given."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @model_validator(mode="after")
    def _check(self) -> "Step":
        known = type(self).model_fields
        given = [name for name in known if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a step has one of {', '.join(known)} (got {' and '.join(given) or 'none'})")
        value = getattr(self, given[0])
        if isinstance(value, tuple) and len(value) == 2 and value[0] > value[1]:
            raise ValueError(f"{given[0]}: the range is [low, high] (got [{value[0]:g}, {value[1]:g}])")
        return self

    @model_serializer
    def _only_the_key(self) -> dict[str, Any]:
        return {self.name: getattr(self, self.name)}


# ── operations ────────────────────────────────────────────────────────────────────────────────────


class Operation:
    """A step that acts on images: its result, the result's shape, and its planes at the size of the input."""

    is_linear = True
    is_fixed = True

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of the result. Raise ValueError for images that the step does not take."""
        return shape

    def __call__(self, image: Tensor, rng: BatchRNG | None = None) -> Tensor:
        """Return the result for images (B, C, H, W); random parameters are drawn from rng for each of them."""
        raise NotImplementedError

    def lift(self, result: Tensor, fill: float) -> Tensor:
        """Return a result at the size of the image; positions without a measurement are `fill`."""
        return result


@dataclass
class Downscale(Operation):
    """Bicubic interpolation with antialiasing, as Pillow's BICUBIC."""

    factor: int

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape divided by the factor."""
        channels, height, width = shape
        if height % self.factor or width % self.factor:
            raise ValueError(f"does not divide {height}×{width} pixels (got {self.factor}); choose a common divisor")
        return channels, height // self.factor, width // self.factor

    def __call__(self, image: Tensor, rng: BatchRNG | None = None) -> Tensor:
        """Return (B, C, H / factor, W / factor)."""
        size = [side // self.factor for side in image.shape[-2:]]
        return F.interpolate(image, size, mode="bicubic", antialias=True)

    def lift(self, result: Tensor, fill: float) -> Tensor:
        """Return the result enlarged by bicubic interpolation."""
        return F.interpolate(result, [side * self.factor for side in result.shape[-2:]], mode="bicubic")


@dataclass
class Gray(Operation):
    """The brightness of a color image; transparency is left out."""

    gray: bool

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape with one channel."""
        if shape[0] not in (3, 4):
            raise ValueError(f"needs color images of 3 or 4 channels (got {shape[0]}); leave it out")
        return 1, *shape[1:]

    def __call__(self, image: Tensor, rng: BatchRNG | None = None) -> Tensor:
        """Return (B, 1, H, W)."""
        return (image[:, :3] * image.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)


@dataclass
class Blur(Operation):
    """Convolution with a Gaussian, with reflected edges."""

    std: float | tuple[float, float]

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest standard deviation."""
        return self.std if isinstance(self.std, tuple) else (self.std, self.std)

    @property
    def is_fixed(self) -> bool:
        """Whether all images are blurred alike."""
        return self.range[0] == self.range[1]

    def __call__(self, image: Tensor, rng: BatchRNG | None = None) -> Tensor:
        """Return (B, C, H, W)."""
        low, high = self.range
        std = image.new_full((len(image),), low) if self.is_fixed else _uniform(self.range, image, rng)
        for axis in (-2, -1):
            radius = min(math.ceil(TRUNCATE * high), image.shape[axis] - 1)  # reflection reaches no farther
            place = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
            kernel = torch.softmax(-0.5 * (place / std[:, None].clamp(min=1e-3)) ** 2, dim=1)  # (B, K)
            image = _convolve(image, kernel, axis)
        return image


@dataclass
class Extend(Operation):
    """The inner part of an image, whose surroundings are generated (outpainting)."""

    margins: tuple[int, int, int, int]
    """(left, right, top, bottom) in pixels."""

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape without the margins."""
        left, right, top, bottom = self.margins
        height, width = shape[1] - top - bottom, shape[2] - left - right
        if height < 1 or width < 1:
            raise ValueError(f"leaves nothing of {shape[1]}×{shape[2]} pixels (got {list(self.margins)}); lower it")
        return shape[0], height, width

    def __call__(self, image: Tensor, rng: BatchRNG | None = None) -> Tensor:
        """Return (B, C, H - top - bottom, W - left - right)."""
        return F.pad(image, [-margin for margin in self.margins])

    def lift(self, result: Tensor, fill: float) -> Tensor:
        """Return the result with its margins filled."""
        return F.pad(result, self.margins, value=fill)


@dataclass
class Noise(Operation):
    """Additive Gaussian noise."""

    range: tuple[float, float]
    is_linear = is_fixed = False

    def __call__(self, image: Tensor, rng: BatchRNG | None = None) -> Tensor:
        """Return (B, C, H, W)."""
        assert rng is not None
        std = _uniform(self.range, image, rng)
        return image + std[:, None, None, None] * rng.normal_like(image)


@dataclass
class Jpeg(Operation):
    """Compression by JPEG with 8 bits."""

    range: tuple[int, int]
    is_linear = is_fixed = False

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape."""
        if shape[0] not in (1, 3):
            raise ValueError(f"needs 1 or 3 channels (got {shape[0]}); leave it out")
        return shape

    def __call__(self, image: Tensor, rng: BatchRNG | None = None) -> Tensor:
        """Return (B, C, H, W)."""
        low, high = self.range
        qualities = _uniform((low, high + 1), image, rng).int().clamp(max=high).tolist()
        pixels = denormalize(image, 8).permute(0, 2, 3, 1).cpu().numpy()
        decoded = np.stack([_compress(array, quality) for array, quality in zip(pixels, qualities, strict=True)])
        return normalize(torch.from_numpy(decoded).permute(0, 3, 1, 2), 8).to(image)


def _compress(pixels: np.ndarray, quality: int) -> np.ndarray:
    """Return pixels (H, W, C) after compression by JPEG."""
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file)).reshape(pixels.shape)


OPERATIONS: dict[str, Callable[[Any], Operation]] = {
    "downscale": Downscale,
    "gray": Gray,
    "blur": Blur,
    "extend": Extend,
    "noise": Noise,
    "jpeg": Jpeg,
}


def _uniform(interval: tuple[float, float], image: Tensor, rng: BatchRNG | None) -> Tensor:
    """Return one number of the interval for each image, (B,)."""
    assert rng is not None
    low, high = interval
    return low + (high - low) * rng.uniform_like(image).to(image.dtype)


def _convolve(image: Tensor, kernel: Tensor, axis: int) -> Tensor:
    """Return images (B, C, H, W), each convolved along one axis with its own kernel, (B, K)."""
    rows = image.transpose(axis, -1)
    batch, shape = len(rows), rows.shape
    rows = F.pad(rows.reshape(batch, -1, shape[-1]), [kernel.shape[1] // 2] * 2, mode="reflect")
    rows = F.conv1d(rows.transpose(0, 1), kernel[:, None], groups=batch)
    return rows.transpose(0, 1).reshape(shape).transpose(axis, -1)


def random_mask(shares: tuple[float, float], image: Tensor, rng: BatchRNG) -> Tensor:
    """Return masks (B, 1, H, W) of random rectangles: 1 is hidden, over a share drawn from a range.

    The rectangles grow at the same rate until together they cover the share, exactly to the pixel.
    """
    height, width = image.shape[-2:]
    share = _uniform(shares, image, rng)
    draws = torch.stack([rng.uniform_like(image) for _ in range(4 * RECTANGLES)], dim=1).to(image.dtype)
    y, x, tall, wide = draws.reshape(-1, 4, RECTANGLES, 1, 1).unbind(1)  # (B, R, 1, 1)
    rows = (torch.arange(height, device=image.device, dtype=image.dtype) + 0.5)[:, None] / height
    columns = (torch.arange(width, device=image.device, dtype=image.dtype) + 0.5) / width
    growth = torch.maximum((rows - y).abs() / (0.1 + tall), (columns - x).abs() / (0.1 + wide)).amin(1)  # (B, H, W)
    rank = growth.flatten(1).argsort(stable=True).argsort()
    hidden = rank < (share * height * width).round()[:, None]
    return hidden.reshape(-1, 1, height, width).to(image.dtype)


# ── the whole ─────────────────────────────────────────────────────────────────────────────────────

ITERATIONS, CG_ITERATIONS = 300, 30
"""Maximum number of alternations in `project`, and of conjugate gradients in each of them."""
TOLERANCE = 1e-7
"""Deviation from the measurement at which `project` ends."""
MARGIN = 0.02
"""Distance that a measurement of a rounded image keeps from the middle between two integers."""


def image_size(steps: Sequence[Step], size: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of the image whose measurement has this size."""
    height, width = size
    for step in reversed(steps):
        left, right, top, bottom = step.extend or (0, 0, 0, 0)
        height, width = height * (step.downscale or 1) + top + bottom, width * (step.downscale or 1) + left + right
    return height, width


class Degradation:
    """The steps applied to images of one shape.

    Its measurement holds values (B, C', H', W') and, with a mask, one more channel: 1 is hidden, and hidden values
    are 0. The planes are the values at the size of the image and, with `mask` or `extend`, a channel that is 1 where
    there is no value. Raise UserError, with the key that starts at `place`, for a step that does not suit the images.
    """

    def __init__(self, steps: Sequence[Step], shape: Shape, bit_depth: int = 8, place: str = "by"):
        self.shape = shape
        self.mask: tuple[float, float] | None = None
        self.operations: list[Operation] = []
        values = shape
        for index, step in enumerate(steps):
            value = getattr(step, step.name)
            try:
                if self.mask:
                    raise ValueError("follows a mask; make the mask the last step")
                if step.name == "jpeg" and bit_depth != 8:
                    raise ValueError(f"needs images of 8 bits (got {bit_depth}); set data.bit_depth to 8")
                if step.name == "mask":
                    self.mask = value
                    continue
                operation = OPERATIONS[step.name](value)
                values = operation.output_shape(values)
            except ValueError as error:
                raise UserError(f"{place}.{index}.{step.name}: {error}") from None
            self.operations.append(operation)
        self.values_shape = values
        """(C', H', W') of the values of a measurement."""

    @property
    def measurement_shape(self) -> Shape:
        """(channels, height, width) of a measurement."""
        channels, height, width = self.values_shape
        return channels + bool(self.mask), height, width

    @property
    def plane_channels(self) -> int:
        """Number of planes."""
        return self.values_shape[0] + self.has_hidden_parts

    @property
    def has_hidden_parts(self) -> bool:
        """Whether planes have a channel that is 1 where there is no value."""
        return self.mask is not None or any(isinstance(operation, Extend) for operation in self.operations)

    @property
    def is_linear(self) -> bool:
        """Whether every step is linear."""
        return all(operation.is_linear for operation in self.operations)

    @property
    def is_fixed(self) -> bool:
        """Whether nothing is random but the mask, which a measurement contains."""
        return all(operation.is_fixed for operation in self.operations)

    def degrade(self, image: Tensor, rng: BatchRNG) -> Tensor:
        """Return the measurements of images (B, C, H, W), clipped to [-1, 1] as in a file."""
        for operation in self.operations:
            image = operation(image, rng)
        image = image.clamp(-1, 1)
        if self.mask is None:
            return image
        mask = random_mask(self.mask, image, rng)
        return torch.cat([image * (1 - mask), mask], dim=1)

    def split(self, measurement: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return values (B, C', H', W') and the mask, (B, 1, H', W'), 1 is hidden; None without one."""
        return (measurement, None) if self.mask is None else (measurement[:, :-1], measurement[:, -1:])

    def planes(self, measurement: Tensor) -> Tensor:
        """Return the planes of measurements, (B, P, H, W)."""
        values, mask = self.split(measurement)
        if self.has_hidden_parts:
            mask = torch.zeros_like(values[:, :1]) if mask is None else mask
        for operation in reversed(self.operations):
            values = operation.lift(values, 0.0)
            mask = None if mask is None else operation.lift(mask, 1.0)
        return values if mask is None else torch.cat([values, (mask > 0.5).to(values)], dim=1)

    def apply(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return A x, (B, C', H', W'), for images x, (B, C, H, W): not clipped, and 0 where the mask is 1."""
        for operation in self.operations:
            image = operation(image)
        return image if mask is None else image * (1 - mask)

    def adjoint(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return A^T y, (B, C, H, W), for values y, (B, C', H', W')."""
        with torch.enable_grad():
            image = values.new_zeros(len(values), *self.shape, requires_grad=True)
            return torch.autograd.grad(self.apply(image, mask), image, values)[0]

    def project(self, image: Tensor, measurement: Tensor, bit_depth: int | None = None) -> Tensor:
        """Return the nearest images in [-1, 1] that A maps to measurements, in the type of `image`.

        A value of -1 or 1 also stands for all values beyond it, as in a file. With a bit depth, the result consists of
        integers of that depth, and A x rounds to the measurement. What no image fulfills is met as well as possible.

        The nearest image is x = clip(image + A^T m) with A x = y. Its multipliers are found by adding up
        (A A^T)^-1 (y - A x), which is Dykstra's alternating projection (Boyle & Dykstra 1986).
        """
        values, mask = self.split(measurement.double())
        start, levels = image.double(), (2 ** (bit_depth or 0) - 1) / 2
        tolerance = (0.5 - MARGIN) / levels if bit_depth else TOLERANCE
        multipliers = self._solve(values - self.apply(start, mask), mask)
        for _ in range(ITERATIONS):
            x = (start + self.adjoint(multipliers, mask)).clamp(-1, 1)
            x = ((x + 1) * levels).round() / levels - 1 if bit_depth else x
            found = self.apply(x, mask)
            residual = values - torch.where(values.abs() >= 1, found.clamp(-1, 1), found)
            residual = residual * (residual.abs() > tolerance)
            if not residual.any():
                break
            multipliers = multipliers + self._solve(residual, mask)
        return x.to(image.dtype)

    def _solve(self, values: Tensor, mask: Tensor | None) -> Tensor:
        """Return m with A A^T m = values, by conjugate gradients: for each image as if it were alone."""
        m, residual, direction = torch.zeros_like(values), values, values
        norm = goal = _dot(residual, residual)
        for _ in range(CG_ITERATIONS):
            running = norm > 1e-8 * goal
            if not running.any():
                break
            product = self.apply(self.adjoint(direction, mask), mask)
            step = torch.where(running, norm / _dot(direction, product), 0.0)
            m, residual = m + step * direction, residual - step * product
            former, norm = norm, _dot(residual, residual)
            direction = torch.where(running, residual + norm / former * direction, 0.0)
        return m


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each example, (B, 1, 1, 1)."""
    return (a * b).sum((1, 2, 3), keepdim=True)
