"""A U-Net that denoises the target of an image, which it sees beside the noisy target."""

import torch
from torch import Tensor, nn

from .conditioning import Conditioning, TimeEmbedding
from .predictor import Normalized, by_channel
from .tiling import Tiled
from .unet import UNet


class TargetDenoiser(Normalized):
    """`model(x_t, t, image=image)`: the prediction for a noisy target x_t at time t, under its image.

    The image, in the units of its file, enters as planes: (image - input_mean) / input_std, by channel. A target in the
    units of its file is target_mean + target_scale x_0.
    """

    target_mean: Tensor
    target_scale: Tensor

    def __init__(self, unet: UNet, window: tuple[float, float] | None = None):
        """unet: with a vector for the time, and one plane for each channel of the image."""
        super().__init__(unet, window)
        config = unet.config
        self.time = TimeEmbedding(config.vector_dim, config.levels[0].channels)
        for name, channels in (("input_mean", config.plane_channels), ("target_mean", config.out_channels)):
            self.register_buffer(name, torch.zeros(channels))
        for name, channels in (("input_std", config.plane_channels), ("target_scale", config.out_channels)):
            self.register_buffer(name, torch.ones(channels))

    def tiled(self, tile: int | tuple[int, ...], overlap: int | None = None) -> "TargetDenoiser":
        """Return the same denoiser for images of any size: each call is made in tiles of the network's input."""
        tiles = TargetDenoiser.__new__(TargetDenoiser)
        nn.Module.__init__(tiles)
        tiles.unet = Tiled(self.unet, tile, overlap)  # pyright: ignore[reportAttributeAccessIssue]
        tiles.time = self.time
        for name, values in self.named_buffers(recurse=False):
            tiles.register_buffer(name, values)
        return tiles

    def forward(self, x_t: Tensor, t: Tensor, image: Tensor) -> Tensor:
        """Return the prediction, in the shape of x_t, (B, K, *S). t: (B,) or one number; image: (B, C, *S)."""
        return self.unet(x_t, self.time(t) + Conditioning(planes=self.standardize(image)))

    def target_of(self, clean: Tensor) -> Tensor:
        """Return the target, in the units of its file, of x_0, both (B, K, *S)."""
        return by_channel(self.target_mean, clean) + by_channel(self.target_scale, clean) * clean
