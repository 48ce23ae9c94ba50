"""A U-Net as a function of an image: labels or values of each position, without noise, time or conditions."""

from typing import Self

import torch
from torch import Tensor, nn

from ..core.runtime import full_precision
from .conditioning import Conditioning
from .layers import center_crop
from .tiling import Tiled
from .unet import UNet


class Normalized(nn.Module):
    """A U-Net with statistics of its training set, buffers that are part of its weights.

    With a window, (low, high), images are clipped to it before all else; it is part of the weights, too.
    """

    input_mean: Tensor
    input_std: Tensor

    def __init__(self, unet: UNet, window: tuple[float, float] | None = None):
        super().__init__()
        self.unet = unet
        if window:
            self.register_buffer("input_window", torch.tensor(window))

    def normalized(self, **statistics: Tensor) -> Self:
        """Return itself with other values of some buffers by their names."""
        for name, values in statistics.items():
            getattr(self, name).copy_(values)
        return self

    def standardize(self, image: Tensor) -> Tensor:
        """Return (image - input_mean) / input_std, by channel, of an image clipped to the window, fp32."""
        image = image.float()
        if (window := getattr(self, "input_window", None)) is not None:
            image = image.clamp(window[0], window[1])
        return (image - by_channel(self.input_mean, image)) / by_channel(self.input_std, image)


class Predictor(Normalized):
    """`model(image)`: a U-Net between the normalizations of its training set.

        logits = predictor(image)                   # (B, C, *S) in the units of the files -> (B, out_channels, *S')

    The input of the U-Net is (image - input_mean) / input_std, by channel, and the prediction is output_mean +
    output_std times its output, by channel, plus the matrix `linear` (out_channels, C) times the image at each place,
    which is 0 unless set. S' is smaller than S with valid borders.
    """

    output_mean: Tensor
    output_std: Tensor
    linear: Tensor

    def __init__(self, unet: UNet, window: tuple[float, float] | None = None):
        super().__init__(unet, window)
        for side, channels in (("input", unet.config.in_channels), ("output", unet.config.out_channels)):
            self.register_buffer(f"{side}_mean", torch.zeros(channels))
            self.register_buffer(f"{side}_std", torch.ones(channels))
        self.register_buffer("linear", torch.zeros(unet.config.out_channels, unet.config.in_channels))

    @property
    def out_channels(self) -> int:
        """Channels of a prediction."""
        return self.unet.config.out_channels

    def tiled(self, tile: int | tuple[int, ...], overlap: int | None = None) -> Tiled:
        """Return the same predictor for images of any size, in tiles of the network's input; S' is then S."""
        return Tiled(self.unet, tile, overlap, around=self, channels=self.out_channels)

    def forward(self, image: Tensor, cond: Conditioning = Conditioning()) -> Tensor:
        """Return the prediction for (B, C, *S), in fp32. Raise ValueError for an image that is too small."""
        output = self.unet(self.standardize(image), cond).float()
        with full_precision(image.device):  # differences from it are learned in fp32
            base = torch.einsum("kc,bc...->bk...", self.linear, center_crop(image.float(), output))
        return by_channel(self.output_mean, output) + base + by_channel(self.output_std, output) * output


def by_channel(values: Tensor, like: Tensor) -> Tensor:
    """Return values (C,) in a shape that broadcasts over (B, C, *S)."""
    return values.reshape(-1, *[1] * (like.ndim - 2))
