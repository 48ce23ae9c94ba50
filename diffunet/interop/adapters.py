"""Adapters that let other libraries' training loops and pipelines drive a denoiser.

DDPMPipeline(DiffusersUNet(model, channels=3, size=32), DDPMScheduler())        # and DDIMPipeline
GaussianDiffusion(LucidrainsUNet(model, channels=3), image_size=32)             # denoising-diffusion-pytorch
"""

from types import SimpleNamespace

import torch
from torch import Tensor, nn


class DiffusersUNet(nn.Module):
    """`model(x_t, t, **conditions)` as the `unet` of an unconditional `diffusers` pipeline.

    channels, size: of the images, one side or (height, width). The pipelines pass no conditions: wrap a conditional
    model in a module that adds them. Their `save_pretrained` cannot save this network; `diffunet export` can.
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

    def forward(
        self, sample: Tensor, timestep: Tensor, return_dict: bool = True, **conditions: Tensor
    ) -> SimpleNamespace | tuple[Tensor]:
        """Return the model's output as `.sample`, or in a tuple if not `return_dict`, like `UNet2DModel`."""
        output = self.model(sample, timestep, **conditions)
        return SimpleNamespace(sample=output) if return_dict else (output,)


class LucidrainsUNet(nn.Module):
    """`model(x_t, t)` as the model of `denoising_diffusion_pytorch.GaussianDiffusion`.

    channels: of the images. That library passes no conditions other than its self-conditioning, which is off.
    """

    self_condition = False

    def __init__(self, model: nn.Module, channels: int):
        super().__init__()
        self.model = model
        self.channels = self.out_dim = channels

    def forward(self, x: Tensor, time: Tensor, x_self_cond: None = None) -> Tensor:
        return self.model(x, time)
