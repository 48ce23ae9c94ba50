"""A denoiser in other people's procedures: the same network under the attributes that they look for.

    DDPMPipeline(DiffusersUNet(model, channels=3, size=32), DDPMScheduler())        # and DDIMPipeline
    GaussianDiffusion(LucidrainsUNet(model, channels=3), image_size=32)             # denoising-diffusion-pytorch
"""

from types import SimpleNamespace

import torch
from torch import Tensor, nn


class DiffusersUNet(nn.Module):
    """`model(x_t, t, **conditions)` as the `unet` of an unconditional pipeline of `diffusers`.

    channels, size: of the pictures, one side or (height, width). The pipelines tell no conditions; wrap a
    model that is told some in a module that says them. They save no foreign networks: `diffunet export` does.
    """

    def __init__(self, model: nn.Module, channels: int, size: int | tuple[int, int]):
        super().__init__()
        self.model = model
        self.config = SimpleNamespace(in_channels=channels, sample_size=size)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, sample: Tensor, timestep: Tensor, **conditions: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=self.model(sample, timestep, **conditions))


class LucidrainsUNet(nn.Module):
    """`model(x_t, t, **conditions)` as the model of `denoising_diffusion_pytorch.GaussianDiffusion`.

    channels: of the pictures. That host tells no conditions but its own self-conditioning, which is off.
    """

    self_condition = False

    def __init__(self, model: nn.Module, channels: int):
        super().__init__()
        self.model = model
        self.channels = self.out_dim = channels

    def forward(self, x: Tensor, time: Tensor, x_self_cond: None = None) -> Tensor:
        return self.model(x, time)
