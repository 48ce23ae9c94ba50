"""Complex images as real channels: real_1, imag_1, real_2, imag_2, ..."""

import torch
from torch import Tensor

from .errors import UserError


def to_complex(image: Tensor) -> Tensor:
    """Return complex images (B, E, *S) of real channels (B, 2E, *S): real_1, imag_1, real_2, imag_2, ...

    Raise UserError for an odd number of channels.
    """
    if image.shape[1] % 2:
        raise UserError(
            f"image: complex images have real and imaginary channels in turn (got {image.shape[1]} channels); add one"
        )
    return torch.complex(image[:, 0::2].contiguous(), image[:, 1::2].contiguous())


def to_channels(image: Tensor) -> Tensor:
    """Return real channels (B, 2E, *S) of complex images (B, E, *S)."""
    return torch.view_as_real(image.resolve_conj()).movedim(-1, 2).flatten(1, 2)
