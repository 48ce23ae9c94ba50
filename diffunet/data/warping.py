"""Augmentation of patches for segmentation and regression: one distortion for image, target and weight.

Rotation, scale, smooth elastic deformation and gray values, as in Ronneberger et al. 2015 (U-Net, section 3.1) and
Çiçek et al. 2016 (3D U-Net).
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, Strict
from torch import Tensor

from ..core.errors import UserError
from ..core.rng import BatchRNG
from ..core.settings import Settings

AXES = ("x", "y", "z")
"""Names of the axes of a patch, from the last to the first."""
ELASTIC_REACH = 3.0
"""Elastic displacements that the margin covers, in standard deviations: 99.7 % of them along each axis."""


class WarpingConfig(Settings):
    """Distortions of training patches, drawn anew for each of them.

    U-Net 2015: `{rotate: 180, elastic: 10, elastic_grid: 3}`. 3D U-Net 2016: `{elastic: 4, elastic_grid: 5}` for
    patches of 132 voxels. nnU-Net: `{rotate: 180, scale: 0.4}`, in 3-D `{rotate: 30, scale: 0.4}`, and gray values.
    """

    mirror: Literal["all", "none"] | Annotated[tuple[Literal["x", "y", "z"], ...], Strict(False)] = "all"
    """Axes along which half of the patches are mirrored: all, none, or names such as [x]; x is the last axis."""
    rotate: Literal["quarters"] | Annotated[float, Field(ge=0, le=180)] = 0.0
    """Greatest angle in degrees, 0 to 180, of a rotation in the x-y plane; quarters: exact multiples of 90 degrees, of
    cubic patches in all directions: the 24 rotations of a cube."""
    scale: float = Field(0.0, ge=0, le=3)
    """Range of a random scale: the factor is between 1 / (1 + scale) and 1 + scale, uniform in its logarithm."""
    elastic: float = Field(0.0, ge=0, le=1000)
    """Standard deviation in pixels of random displacements at the points of a coarse grid; above 0.15 of their spacing,
    the image begins to fold (in one patch of fifty)."""
    elastic_grid: int = Field(3, ge=2, le=100)
    """Points of that grid along the longest side, its ends included; a spacing of s pixels is side / s + 1 points."""
    gamma: float = Field(0.0, ge=0, le=3)
    """Range of a random exponent of gray values, scaled from 0 to 1 in the patch: 1 / (1 + gamma) to 1 + gamma."""
    contrast: float = Field(0.0, ge=0, le=3)
    """Range of a random factor of the distance to the data's mean: 1 / (1 + contrast) to 1 + contrast."""
    brightness: float = Field(0.0, ge=0, le=10)
    """Greatest random offset of gray values, up or down, in standard deviations of the data."""
    noise: float = Field(0.0, ge=0, le=10)
    """Greatest standard deviation of added Gaussian noise, in standard deviations of the data."""


class Warping:
    """Random distortions of crops of an image with its target and weight, cut to patches of one size.

    `size` is (y, x) or (z, y, x) in pixels. `mean` and `std` are those of the data in each channel. Raise UserError if
    the config does not fit the size.
    """

    def __init__(self, config: WarpingConfig, size: Sequence[int], mean: Sequence[float], std: Sequence[float]):
        self.config, self.size = config, tuple(size)
        if len(self.size) not in (2, 3):
            raise UserError(f"augment: patches have 2 or 3 axes (got {len(self.size)}); leave augment out")
        known = AXES[: len(self.size)]
        names = {"all": known, "none": ()}[config.mirror] if isinstance(config.mirror, str) else config.mirror
        for name in set(names) - set(known):
            raise UserError(f"augment.mirror: no such axis in 2-D (got {name}); choose from {', '.join(known)}")
        self.mirrored = [-1 - AXES.index(name) for name in sorted(set(names))]
        height, width = self.size[-2:]
        if config.rotate == "quarters" and height != width:
            raise UserError(f"augment.rotate: quarters need a square patch (got {height}×{width}); give an angle")
        self.max_angle = 0.0 if config.rotate == "quarters" else math.radians(config.rotate)
        self.mean, self.std = torch.tensor(mean, dtype=torch.float32), torch.tensor(std, dtype=torch.float32)
        self.splines = [_natural_splines(side, points) for side, points in zip(self.size, self.grid_size, strict=True)]

    @property
    def grid_size(self) -> tuple[int, ...]:
        """Points of the elastic grid along each axis: about the same spacing everywhere, at least 2 points."""
        intervals = self.config.elastic_grid - 1
        return tuple(1 + max(1, round(intervals * side / max(self.size))) for side in self.size)

    @property
    def _is_cube(self) -> bool:
        return len(self.size) == 3 and len(set(self.size)) == 1

    @property
    def margin(self) -> tuple[int, ...]:
        """Pixels on each side of the patch that a crop has beyond it, in the order of `size`.

        Rotation and scale stay inside of the crop, and elastic displacements up to ELASTIC_REACH. A smaller crop, or a
        larger displacement, meets the reflection of the crop at its outermost pixels.
        """
        half = [(side - 1) / 2 for side in self.size]
        *_, y, x = half
        reach = [*half[:-2], _reach(y, x, self.max_angle), _reach(x, y, self.max_angle)]
        stretch, moved = 1 + self.config.scale, ELASTIC_REACH * self.config.elastic
        return tuple(math.ceil(stretch * r + moved - h - 1e-6) for r, h in zip(reach, half, strict=True))

    def __call__(
        self, image: Tensor, target: Tensor, weight: Tensor | None, rng: BatchRNG
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return patches of `size` from the centers of crops: image, target and weight under the same distortion.

        image: (B, C, *crop), fp32, interpolated linearly. target: integer labels (B, *crop) below 2²⁴, of the nearest
        pixel; or floats (B, C, *crop), interpolated linearly between pixels with weight. weight: (B, *crop) or None,
        interpolated linearly, and 0 where the nearest pixel has none: no value without weight has any influence.

        Without distortion the patches are the centers of the crops, bit for bit.
        """
        grid = self._places(image, rng)
        if grid is None:
            parts = [self._center(part) for part in (image, target, weight) if part is not None]
        else:
            parts = [_sample(image, grid), *_sample_target(target, weight, grid)]
        if self.config.rotate == "quarters":
            number = ((24 if self._is_cube else 4) * rng.uniform_like(image)).long()
            parts = [_turn(_faced(part, number // 4) if self._is_cube else part, number % 4) for part in parts]
        for axis in self.mirrored:
            mirrored = rng.uniform_like(image) < 0.5
            parts = [torch.where(_beside(mirrored, part), part.flip(axis), part) for part in parts]
        image, target, *weights = parts
        return self._vary_gray_values(image, rng), target, (weights[0] if weights else None)

    def _center(self, crop: Tensor) -> Tensor:
        """Return the centers of crops (B, ..., *crop)."""
        sides = crop.shape[-len(self.size) :]
        return crop[(..., *(slice((c - s) // 2, (c + s) // 2) for c, s in zip(sides, self.size, strict=True)))]

    def _places(self, image: Tensor, rng: BatchRNG) -> Tensor | None:
        """Return the places in the crop of all pixels of the patch as `grid_sample` takes them; None: the center.

        (B, *size, dim), x first, from -1 at the first to 1 at the last pixel. A pixel at p from the center comes from
        R p / scale + u(p), with the rotation R and the elastic displacement u in pixels of the crop.
        """
        sides, config, device = image.shape[2:], self.config, image.device
        if any(crop < side or (crop - side) % 2 for crop, side in zip(sides, self.size, strict=True)):
            raise ValueError(f"crops of {tuple(sides)} for patches of {self.size}; add the same margin on both sides")
        if not (self.max_angle or config.scale or config.elastic):
            return None
        factor = _factor(config.scale, image, rng)
        angle = (2 * rng.uniform_like(image) - 1) * self.max_angle
        cos, sin = (_beside(f(angle) / factor, image[:, 0]) for f in (torch.cos, torch.sin))
        axes = [torch.arange(side, device=device) - (side - 1) / 2 for side in self.size]
        *z, y, x = torch.meshgrid(*axes, indexing="ij")
        rotated = [*(along / _beside(factor, image[:, 0]) for along in z), cos * y + sin * x, cos * x - sin * y]

        vectors = image.new_empty(len(image), len(self.size), *self.grid_size, dtype=torch.float32)
        displacement = self._smooth(config.elastic * rng.normal_like(vectors)).unbind(1)
        # In units of half the crop; an axis of one pixel has no extent.
        half = [max(side - 1, 1) / 2 for side in sides]
        places = [(place + u) / h for place, u, h in zip(rotated, displacement, half, strict=True)]
        return torch.stack(places[::-1], dim=-1)

    def _smooth(self, vectors: Tensor) -> Tensor:
        """Return the field (B, dim, *size) through the vectors of a grid (B, dim, *grid_size).

        Natural cubic splines along each axis pass through the vectors, in 2-D (bicubic) and in 3-D (cubic B-spline).
        """
        for spline in self.splines:
            vectors = torch.tensordot(vectors, spline.to(vectors.device), dims=([2], [1]))
        return vectors

    def _vary_gray_values(self, image: Tensor, rng: BatchRNG) -> Tensor:
        """Return images (B, C, *size) with other gray values: gamma, contrast, brightness and noise, in this order.

        One number for all channels of an image, but noise for each pixel and channel.
        """
        config = self.config
        mean, std = (_beside(m.to(image.device), image[0])[None] for m in (self.mean, self.std))
        if config.gamma:
            axes = tuple(range(2, image.dim()))
            low = image.amin(axes, keepdim=True)
            extent = image.amax(axes, keepdim=True) - low
            share = (image - low) / extent.clamp(min=1e-12)  # 0 in a flat image
            image = low + extent * share ** _beside(_factor(config.gamma, image, rng), image)
        if config.contrast:
            image = mean + (image - mean) * _beside(_factor(config.contrast, image, rng), image)
        if config.brightness:
            image = image + std * _beside(config.brightness * (2 * rng.uniform_like(image) - 1), image)
        if config.noise:
            image = image + std * _beside(config.noise * rng.uniform_like(image), image) * rng.normal_like(image)
        return image


def _reach(along: float, across: float, max_angle: float) -> float:
    """Return how far a rectangle with these half sides extends along the first one, under any allowed rotation."""
    angle = min(max_angle, math.atan2(across, along))  # of the corner that comes closest to the axis
    return along * math.cos(angle) + across * math.sin(angle)


def _natural_splines(side: int, points: int) -> Tensor:
    """Return the matrix (side, points) from values at evenly spaced points to the pixels between the first and last."""
    from scipy.interpolate import CubicSpline

    splines = CubicSpline(np.arange(points), np.eye(points), bc_type="natural")
    return torch.as_tensor(splines(np.linspace(0, points - 1, side)), dtype=torch.float32)


def _factor(span: float, image: Tensor, rng: BatchRNG) -> Tensor:
    """Return factors between 1 / (1 + span) and 1 + span, uniform in their logarithm, (B,)."""
    return (1 + span) ** (2 * rng.uniform_like(image) - 1)


def _beside(values: Tensor, x: Tensor) -> Tensor:
    """Return one value for each row of x, broadcastable to x."""
    return values.view(-1, *(1,) * (x.dim() - 1))


def _turn(x: Tensor, turns: Tensor) -> Tensor:
    """Return x (B, ..., H, W) rotated by multiples of 90 degrees, (B,) from 0 to 3."""
    x = torch.where(_beside(turns >= 2, x), x.flip(-1, -2), x)
    return torch.where(_beside(turns % 2 == 1, x), x.rot90(1, (-2, -1)), x)


def _faced(x: Tensor, face: Tensor) -> Tensor:
    """Return x (B, ..., D, H, W) with one of the six faces of its cubes in place of the first, (B,) from 0 to 5."""
    for number, (turns, axes) in enumerate((*((n, (-3, -2)) for n in (1, 2, 3)), (1, (-3, -1)), (3, (-3, -1))), 1):
        x = torch.where(_beside(face == number, x), x.rot90(turns, axes), x)
    return x


def _sample(x: Tensor, grid: Tensor, mode: str = "bilinear") -> Tensor:
    """Return the values of x (B, C, *crop) at places of the crop, which is reflected outside."""
    return F.grid_sample(x, grid.to(x.dtype), mode, padding_mode="reflection", align_corners=True)


def _sample_target(target: Tensor, weight: Tensor | None, grid: Tensor) -> list[Tensor]:
    """Return the target at places of the crop, and the weight if there is one.

    Floats are averaged over the pixels with weight alone (normalized convolution).
    """
    known = None if weight is None else (weight > 0)[:, None].float()
    if not target.is_floating_point():
        warped = _sample(target[:, None].float(), grid, "nearest")[:, 0].to(target.dtype)
    elif known is None:
        warped = _sample(target, grid)
    else:
        # The nearest of 2^dim pixels has at least the share 1/8, so the bound matters only where the weight will be 0.
        warped = _sample(torch.where(known > 0, target, 0), grid) / _sample(known, grid).clamp(min=1 / 16)
    if weight is None:
        return [warped]
    return [warped, (_sample(weight[:, None], grid) * _sample(known, grid, "nearest"))[:, 0]]
