"""Cartesian magnetic resonance: the Fourier transform, sampled lines of k-space, and receiver coils."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .complex_channels import to_channels, to_complex
from .errors import UserError
from .rng import seed_for

Pattern = Literal["random", "uniform"]


def to_kspace(image: Tensor, dims: int = 2) -> Tensor:
    """Return the centered orthonormal Fourier transform over the last `dims` axes of complex images (..., *S)."""
    axes = tuple(range(-dims, 0))
    spectrum = torch.fft.fftn(torch.fft.ifftshift(image, dim=axes), dim=axes, norm="ortho")
    return torch.fft.fftshift(spectrum, dim=axes)


def to_image(kspace: Tensor, dims: int = 2) -> Tensor:
    """Return the inverse of `to_kspace`, which is also its adjoint, (..., *S) complex."""
    axes = tuple(range(-dims, 0))
    image = torch.fft.ifftn(torch.fft.ifftshift(kspace, dim=axes), dim=axes, norm="ortho")
    return torch.fft.fftshift(image, dim=axes)


def sampled_lines(
    number: int,
    acceleration: float,
    center: float = 0.08,
    pattern: Pattern = "random",
    *,
    seed: int = 0,
    step: int = 0,
    position: int = 0,
) -> Tensor:
    """Return which of `number` phase-encoding lines are measured, (number,) bool, a function of the last three.

    The central share `center` is measured fully. random: number / acceleration lines in all, at random (as Lustig et
    al. 2007). uniform: besides the center every line whose index has one remainder by `acceleration`, rounded, which is
    random; there are more lines in all. Raise UserError for shares that do not fit.
    """
    if acceleration < 1 or not 0 <= center <= 1:
        raise UserError(
            f"acceleration: at least 1 with a center in [0, 1] (got {acceleration:g} and {center:g}); choose others"
        )
    middle, total = round(center * number), max(round(number / acceleration), 1)
    if pattern == "random" and middle > total:
        raise UserError(
            f"center: {middle} central lines are more than the {total} measured of {number} at acceleration "
            f"{acceleration:g}; lower one"
        )
    rng = np.random.Generator(np.random.Philox(seed_for(seed, step, position)))
    start = number // 2 - middle // 2
    lines = np.zeros(number, bool)
    lines[start : start + middle] = True
    if pattern == "uniform":
        every = max(round(acceleration), 1)
        lines[rng.integers(every) :: every] = True
    else:
        lines[rng.permutation(np.flatnonzero(~lines))[: total - middle]] = True
    return torch.from_numpy(lines)


@dataclass(frozen=True)
class Cartesian:
    """The operator A from complex images (B, E, *S) to measured k-space (B, E, N, *S) of N coils, 0 where unmeasured.

        A x = mask * F(sensitivities * x)                           # SENSE (Pruessmann et al. 1999)

    mask: bool, broadcasts over (B, *S), as (*S,) or (B, 1, W) for lines along the last axis. sensitivities: complex
    (B, N, *S), or None for one coil that is 1 everywhere.
    """

    mask: Tensor
    sensitivities: Tensor | None = None
    dims: int = 2

    @property
    def _keep(self) -> Tensor:
        """The mask for k-space, (B, 1, 1, *S) or (*S,)."""
        return self.mask[:, None, None] if self.mask.ndim > self.dims else self.mask

    def apply(self, image: Tensor) -> Tensor:
        """Return A x, (B, E, N, *S), for x (B, E, *S)."""
        coils = image[:, :, None]
        if self.sensitivities is not None:
            coils = coils * self.sensitivities[:, None]
        return to_kspace(coils, self.dims) * self._keep

    def adjoint(self, kspace: Tensor) -> Tensor:
        """Return A^H y, (B, E, *S), for y (B, E, N, *S); of one coil it is the zero-filled reconstruction."""
        coils = to_image(kspace * self._keep, self.dims)
        if self.sensitivities is not None:
            coils = coils * self.sensitivities[:, None].conj()
        return coils.sum(2)

    def consistent(self, image: Tensor, kspace: Tensor, weight: float = math.inf, iterations: int = 30) -> Tensor:
        """Return the nearest images to x (B, E, *S) whose measurement is y (B, E, N, *S), or a compromise.

        The minimum of |z - x|^2 + weight |A z - y|^2. Of one coil it is the equation 6 of Schlemper et al. 2018 (IEEE
        Trans Med Imaging 37:491): measured lines are (A x + weight y) / (1 + weight), or y for an infinite weight,
        which suits a measurement without noise. Of several coils it is found by conjugate gradients (Aggarwal et al.
        2019, equation 11).
        """
        share = 1.0 if math.isinf(weight) else weight / (1 + weight)
        if self.sensitivities is None:
            return image + share * self.adjoint(kspace - self.apply(image))
        seen = lambda z: self.adjoint(self.apply(z))  # noqa: E731
        system, factor = (seen, 1.0) if math.isinf(weight) else ((lambda z: z + weight * seen(z)), weight)
        goal = factor * self.adjoint(kspace)
        return image + _solve(system, goal - factor * seen(image), _square(goal), iterations)


def zero_filled(image: Tensor, mask: Tensor) -> Tensor:
    """Return what is known of real channels (B, 2E, *S) from the places of k-space in mask (B, *S) bool, of one coil.

    The channels of the zero-filled reconstruction and, last, the mask, (B, 2E + 1, *S): the input of
    `models.data_consistency.DataConsistency`.
    """
    operator = Cartesian(mask, dims=image.ndim - 2)
    known = to_channels(operator.adjoint(operator.apply(to_complex(image))))
    return torch.cat([known, mask[:, None].to(known)], dim=1)


def _solve(system: Callable[[Tensor], Tensor], values: Tensor, unit: Tensor, iterations: int) -> Tensor:
    """Return the shortest z with system(z) = values, by conjugate gradients for each example.

    The system is positive semidefinite and the values are in its range. A squared residual that is rounding beside
    `unit`, (B, 1, ...), ends the example, since rounding leaves the range.
    """
    z, residual, direction = torch.zeros_like(values), values, values
    norm = _square(residual)
    floor = unit * (10 * torch.finfo(norm.dtype).eps) ** 2
    for _ in range(iterations):
        running = norm > floor
        if not running.any():
            break
        product = system(direction)
        curvature = (direction.conj() * product).real.flatten(1).sum(1).reshape(norm.shape)
        step = torch.where(running & (curvature > 0), norm / torch.where(curvature > 0, curvature, 1), 0.0)
        z, residual = z + step * direction, residual - step * product
        former, norm = norm, _square(residual)
        direction = residual + torch.where(running, norm / torch.where(running, former, 1), 0.0) * direction
    return z


def _square(values: Tensor) -> Tensor:
    """Return the squared norm of each example, (B, 1, ...)."""
    return values.abs().square().flatten(1).sum(1).reshape(-1, *[1] * (values.ndim - 1))
