"""A predictor of water, fat, field and R2* whose outputs are physically possible."""

import torch
from torch import Tensor

from ..core.water_fat import MAPS, bounded
from .conditioning import Conditioning
from .predictor import Predictor
from .unet import UNet


class WaterFat(Predictor):
    """`model(image)`: echoes (B, 2E, *S) to the maps `core.water_fat.MAPS`, (B, 6, *S), with R2* > 0.

    The field stays within +-`field_range` in Hz, a buffer, 500 unless set. The other buffers are those of a predictor;
    `output_std` holds the units of the maps.
    """

    field_range: Tensor

    def __init__(self, unet: UNet):
        super().__init__(unet)
        if unet.config.out_channels != len(MAPS):
            raise ValueError(f"out_channels: water and fat have {len(MAPS)} maps (got {unet.config.out_channels})")
        self.register_buffer("field_range", torch.tensor(500.0))

    def forward(self, image: Tensor, cond: Conditioning = Conditioning()) -> Tensor:
        """Return the maps for (B, 2E, *S), in fp32. Raise ValueError for an image that is too small."""
        return bounded(super().forward(image, cond), self.field_range)
