"""Degradations of images: how a source is made in training, and what a sample has to agree with in use.

A degradation is a list of steps, `[{downscale: 4}, {gray: true}]`. Its linear part is an operator A on images
(B, C, H, W) with values in [-1, 1]: it has an adjoint, and a projection onto the images that it maps to a measurement.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, Strict, model_serializer, model_validator
from torch import Tensor

from ..core.errors import UserError
from ..core.rng import BatchRNG
from ..core.settings import Settings
from .operations import OPERATIONS, Blur, Extend, Operation, Shape, random_mask

ITERATIONS, CG_ITERATIONS = 300, 30
"""Maximum number of alternations in `project`, and of conjugate gradients in each of them."""
TOLERANCE = 1e-7
"""Deviation from the measurement at which `project` ends."""
MARGIN = 0.02
"""Distance that a measurement of a rounded image keeps from the middle between two integers."""

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


MASKED = Step(mask=(0.0, 1.0))
"""Any part of an image is hidden."""


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
    def only_hides(self) -> bool:
        """Whether every pixel is either known or hidden."""
        return all(isinstance(operation, Extend) for operation in self.operations)

    @property
    def is_linear(self) -> bool:
        """Whether every step is linear."""
        return all(operation.is_linear for operation in self.operations)

    @property
    def has_inverse(self) -> bool:
        """Whether images that agree with a measurement exactly can be computed: not of a blur, which loses too much."""
        return self.is_linear and not any(isinstance(operation, Blur) for operation in self.operations)

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

    def pseudoinverse(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return A^+ y, (B, C, H, W), the shortest image that A maps to values y, (B, C', H', W')."""
        return self.adjoint(self._solve(values, mask), mask)

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
