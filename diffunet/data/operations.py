"""Operations on images that degradations consist of: what each step does to images and to their shape."""

import io
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..core.rng import BatchRNG
from .pixels import denormalize, normalize

Shape = tuple[int, int, int]
"""(channels, height, width) of an image."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601), those of Pillow's mode L."""
RECTANGLES = 4
"""Rectangles of a random mask."""
TRUNCATE = 4.0
"""Radius of a Gaussian kernel in standard deviations."""


class Operation(ABC):
    """A step that acts on images: its result, the result's shape, and its planes at the size of the input."""

    is_linear = True
    is_fixed = True

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of the result. Raise ValueError for images that the step does not take."""
        return shape

    @abstractmethod
    def __call__(self, image: Tensor, rng: BatchRNG | None = None) -> Tensor:
        """Return the result for images (B, C, H, W); random parameters are drawn from rng for each of them."""

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
        std = image.new_full((1,), low) if self.is_fixed else _uniform(self.range, image, rng)
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
    """Return images (B, C, H, W) convolved along an axis, each with its own kernel, (B, K), or all with one, (1, K)."""
    rows = image.transpose(axis, -1)
    groups, shape = len(kernel), rows.shape
    rows = F.pad(rows.reshape(groups, -1, shape[-1]), [kernel.shape[1] // 2] * 2, mode="reflect")
    rows = F.conv1d(rows.transpose(0, 1), kernel[:, None], groups=groups)
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
