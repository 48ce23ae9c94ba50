"""The best linear prediction of numbers from the channels of an image, place by place."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .cases import Case

RANK = 1e-9
"""Directions of the channels with a smaller share of the greatest variance have no part in the prediction."""


@dataclass(frozen=True)
class LinearMap:
    """target = matrix @ image + offset, at each place."""

    matrix: Tensor
    """(C', C) fp32."""
    offset: Tensor
    """(C',)."""
    error: Tensor
    """(C',) root mean square of the error, where the map was fitted."""

    def __call__(self, image: Tensor) -> Tensor:
        """Return (C', *S) fp32 of an image (C, *S)."""
        shift = self.offset.reshape(-1, *[1] * (image.ndim - 1))
        return torch.einsum("kc,c...->k...", self.matrix, image.float()) + shift


def fit_linear(cases: Sequence[Case]) -> LinearMap:
    """Return the map of least squares over the places whose targets are known in all channels.

    Constant channels, and those that others determine, change nothing. Without such places the map is 0.
    """
    parts = [(case.image.double().flatten(1), case.target.double().flatten(1)) for case in cases]
    known = [~target.isnan().any(0) for _, target in parts]
    parts = [(image[:, keep], target[:, keep]) for (image, target), keep in zip(parts, known, strict=True)]
    number = max(sum(image.shape[1] for image, _ in parts), 1)
    mean_x, mean_y = (sum(each.sum(1, keepdim=True) for each in column) / number for column in zip(*parts, strict=True))
    centered = [(image - mean_x, target - mean_y) for image, target in parts]
    variance = sum(x @ x.T for x, _ in centered) / number
    covariance = sum(y @ x.T for x, y in centered) / number
    matrix = covariance @ torch.linalg.pinv(variance, rtol=RANK, hermitian=True)
    squares = sum((y - matrix @ x).square().sum(1) for x, y in centered) / number
    return LinearMap(matrix.float(), (mean_y - matrix @ mean_x)[:, 0].float(), squares.sqrt().float())
