"""A predictor of water, fat, field and R2* whose outputs are physically possible."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.complex_channels import to_channels, to_complex
from ..core.runtime import full_precision
from ..core.water_fat import HAMILTON, MAPS, FatModel, bounded, fat_phasor, species
from .conditioning import Conditioning
from .predictor import Predictor
from .unet import UNet

UNITS = 1.0, 1.0, 50.0
"""Of the network's outputs: a point on the circle of the field, and R2* in 1/s."""


class WaterFat(Predictor):
    """`model(image)`: echoes (B, 2E, *S) to the maps `core.water_fat.MAPS`, (B, 6, *S), with R2* > 0.

    The network predicts the field, within +-`field_range` in Hz, and R2* (`core.water_fat.bounded`). Water and fat
    follow from the echoes by least squares (variable projection, Golub & Pereyra 1973; Hernando et al. 2008), so that
    all there is to learn is which field is right. `field_range` is a buffer, 500 unless set.
    """

    field_range: Tensor
    times: Tensor
    phasor: Tensor

    def __init__(self, unet: UNet, echo_times: Sequence[float], field_strength: float, fat_model: FatModel = HAMILTON):
        """echo_times: two or more, in seconds; field_strength: tesla. Raise ValueError for other channels."""
        super().__init__(unet)
        outputs, channels = unet.config.out_channels, unet.config.in_channels
        if outputs != len(UNITS):
            raise ValueError(f"out_channels: {len(UNITS)}, for the field and R2* (got {outputs})")
        if len(echo_times) < 2 or channels != 2 * len(echo_times):
            raise ValueError(f"echo_times: two or more, each of 2 channels (got {len(echo_times)} and {channels})")
        self.output_std.copy_(torch.tensor(UNITS))
        self.register_buffer("field_range", torch.tensor(500.0))
        self.register_buffer("times", torch.tensor(echo_times, dtype=torch.float64), persistent=False)
        self.register_buffer("phasor", fat_phasor(echo_times, field_strength, fat_model), persistent=False)

    @property
    def out_channels(self) -> int:
        return len(MAPS)

    def standardize(self, image: Tensor) -> Tensor:
        """Return what the U-Net sees of the echoes (B, 2E, *S): how the phase turns from echo to echo.

        Field and R2* do not depend on the phase of the first echo nor on the magnitude, so the E - 1 products of
        neighboring echoes, S_e conj(S_(e-1)) over the mean power of a voxel, have all there is to learn from; the first
        two channels are the magnitude of the first echo, relative to the others and to the training set.
        """
        with full_precision(image.device):
            echoes = to_complex(image.float())
            strength = echoes.abs().square().mean(1, keepdim=True).sqrt()
            relative = echoes / strength.clamp(min=torch.finfo(torch.float32).tiny)
            usual = self.input_std.square().mean().sqrt() * 2**0.5
            first = torch.complex(relative[:, :1].abs(), strength / usual)
            return to_channels(torch.cat([first, relative[:, 1:] * relative[:, :-1].conj()], dim=1))

    def forward(self, image: Tensor, cond: Conditioning = Conditioning()) -> Tensor:
        """Return the maps for (B, 2E, *S), in fp32. Raise ValueError for an image that is too small."""
        field, r2star = bounded(super().forward(image, cond), self.field_range).unbind(1)
        with full_precision(image.device):
            water, fat = species(to_complex(image.float()), field, r2star, self.times, self.phasor)
        return torch.stack([water.real, water.imag, fat.real, fat.imag, field, r2star], dim=1)
