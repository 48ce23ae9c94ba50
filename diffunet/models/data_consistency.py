"""A predictor of complex images whose predictions agree with the lines of k-space that were measured."""

import math

import torch
from torch import Tensor, nn

from ..core.complex_channels import to_channels, to_complex
from ..core.fourier import Cartesian
from ..core.runtime import full_precision
from .conditioning import Conditioning
from .predictor import Predictor


class DataConsistency(nn.Module):
    """`model(image)` around another one, for images from undersampled k-space of one coil.

        reconstruction = DataConsistency(predictor)(image)          # (B, 2E + 1, *S) -> (B, 2E, *S)

    The image has the channels real_1, imag_1, ... of the zero-filled reconstruction and, last, the mask of k-space, 1
    where it was measured. The model receives the zero-filled channels alone and predicts as many. Measured places of
    k-space become (predicted + weight * measured) / (1 + weight) (Schlemper et al. 2018, equation 6), or the measured
    ones for an infinite weight: then the result agrees with the measurement exactly. Since each place of k-space
    depends on the whole image, patches and tiles are none of its inputs.
    """

    def __init__(self, model: nn.Module, weight: float = math.inf):
        """weight: variance of the predictor's error over that of the noise in k-space (lambda); infinite: no noise."""
        super().__init__()
        self.model, self.weight = model, weight

    def forward(self, image: Tensor) -> Tensor:
        """Return the consistent prediction, (B, 2E, *S) fp32, or fp64 of such images."""
        measured, mask = image[:, :-1], image[:, -1] > 0.5
        predicted = self.model(measured)
        return consistent_channels(predicted, measured, mask, self.weight)


class Reconstructor(Predictor):
    """`model(image)`: a predictor of complex images inside `DataConsistency` with the exact measurement.

    It takes (B, 2E + 1, *S) and returns (B, 2E, *S); its statistics are those of the 2E channels.
    """

    def forward(self, image: Tensor, cond: Conditioning = Conditioning()) -> Tensor:
        """Return the consistent prediction, in fp32. Raise ValueError for an image that is too small."""
        measured, mask = image[:, :-1], image[:, -1] > 0.5
        return consistent_channels(super().forward(measured, cond), measured, mask)


def consistent_channels(predicted: Tensor, measured: Tensor, mask: Tensor, weight: float = math.inf) -> Tensor:
    """Return predictions with the measured k-space of zero-filled images, both (B, 2E, *S); mask (B, *S) bool."""
    dims = measured.ndim - 2
    dtype = torch.promote_types(predicted.dtype, torch.float32)
    with full_precision(measured.device):
        operator = Cartesian(mask, dims=dims)
        kspace = operator.apply(to_complex(measured.to(dtype)))
        return to_channels(operator.consistent(to_complex(predicted.to(dtype)), kspace, weight))
