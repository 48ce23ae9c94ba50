"""The contenders: one network in each library's implementation and with its training code; and settings to run it in.

The network is DDPM's for CIFAR-10 (Ho et al. 2020, appendix B), without dropout. denoising-diffusion-pytorch cannot
express it, so its most similar network takes part: with linear attention at every other level, and fewer operations.
All are called `network(x_t, t)`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from operator import attrgetter

import torch
import torch.nn.functional as F
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.optim import Adam, AdamW

from diffunet.models.config import UNetConfig
from diffunet.models.denoiser import Denoiser, TimeConfig
from diffunet.objectives.ddpm import DDPM, DDPMConfig
from diffunet.sampling.loop import sample
from diffunet.training.ema import EMA


@dataclass(frozen=True)
class Shape:
    """The variable part of the network."""

    widths: tuple[int, ...]
    """Channels of each level, finest first; attention is at the second."""
    side: int
    """Pixels per side of an image."""


FULL = Shape(widths=(128, 256, 256, 256), side=32)
TINY = Shape(widths=(32, 64, 64, 64), side=16)
STEPS = 10
"""Of DDIM, when sampling."""


@dataclass(frozen=True)
class Setting:
    """How a network is run; the defaults are torch's."""

    precision: str = "fp32"
    """fp32 is torch's default, in which convolutions use TF32 on CUDA; strict fp32 does not."""
    channels_last: bool = False
    compiled: str | None = None
    """The mode of torch.compile: default, or reduce-overhead, which records CUDA graphs."""
    fused: bool = False
    """The optimizer step and the EMA in as few kernels as their libraries can."""

    def __str__(self) -> str:
        words = {"channels_last": self.channels_last, f"compile {self.compiled}": self.compiled, "fused": self.fused}
        return ", ".join([self.precision, *(word for word, used in words.items() if used)])

    def place(self, x: Tensor | nn.Module, device: torch.device) -> Tensor | nn.Module:
        return x.to(device, memory_format=torch.channels_last if self.channels_last else torch.preserve_format)

    def compile(self, network: nn.Module) -> None:
        """Compile in place; call this last, as earlier copies of the network are not compiled."""
        if self.compiled:
            network.compile(mode=self.compiled, dynamic=False)

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return the context of the forward pass. How a GPU computes fp32 stays set for the backward pass."""
        if device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = self.precision == "tf32"
            torch.backends.cudnn.allow_tf32 = self.precision != "strict fp32"
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")


PLAIN = Setting()


@dataclass(frozen=True)
class Contender:
    """A network and its library's training and sampling code."""

    build: Callable[[Shape], nn.Module]
    loss: Callable[[nn.Module, int], Callable[[Tensor], Tensor]]
    """(network, side of the images) -> (images) -> loss."""
    optimizer: Callable[..., torch.optim.Optimizer]
    """(parameters, fused=...)"""
    ema: Callable[[nn.Module, bool], Callable[[], None]]
    """(network, foreach) -> the EMA update after each step."""
    sample: Callable[[nn.Module, int, int], Callable[[], Tensor]] | None = None
    """(network, number of images, side) -> STEPS of DDIM from new noise."""
    shipped: Setting = PLAIN
    """The library's own setting; on a GPU some use bf16, for which there are other rows."""

    def network(self, shape: Shape, setting: Setting, device: torch.device) -> nn.Module:
        """Return the network with random weights, also where it would begin with zeros, which a GPU computes faster."""
        network = setting.place(self.build(shape), device)
        for parameter in network.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        return network


# ── diffunet ──────────────────────────────────────────────────────────────────────────────────────


def diffunet(shape: Shape, gradient_checkpointing: bool = False) -> nn.Module:
    levels = [
        {"channels": width, "attention": depth == 1, "gradient_checkpointing": gradient_checkpointing}
        for depth, width in enumerate(shape.widths)
    ]
    unet = UNetConfig(preset="ddpm_cifar10", levels=levels, vector_dim=4 * shape.widths[0], dropout=0.0)
    return Denoiser.from_config(unet, time=TimeConfig(freq_shift=1))


def diffunet_loss(network: nn.Module, side: int) -> Callable[[Tensor], Tensor]:
    objective = DDPM(DDPMConfig())
    return lambda images: objective.loss(network, images)["loss"].mean()


def diffunet_adamw(parameters, fused: bool) -> AdamW:
    return AdamW(parameters, lr=2e-4, weight_decay=0.0, fused=True)


def diffunet_ema(network: nn.Module, foreach: bool) -> Callable[[], None]:
    ema, steps = EMA(network, rate_at=lambda step: 1e-4), count()
    return lambda: ema.update(next(steps))


def diffunet_sample(network: nn.Module, number: int, side: int) -> Callable[[], Tensor]:
    sampler = DDPM(DDPMConfig()).sampler("ddim", STEPS)
    device = next(network.parameters()).device
    return lambda: sample(network, sampler, torch.randn(number, 3, side, side, device=device))


# ── diffusers: google/ddpm-cifar10-32, and the training of its example ────────────────────────────


def unet_2d_model(shape: Shape) -> nn.Module:
    attention = [depth == 1 for depth in range(len(shape.widths))]
    return UNet2DModel(
        sample_size=shape.side,
        block_out_channels=shape.widths,
        layers_per_block=2,
        down_block_types=tuple("AttnDownBlock2D" if attends else "DownBlock2D" for attends in attention),
        up_block_types=tuple("AttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(attention)),
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
    )


def noise_loss(network: nn.Module, side: int, output: Callable = attrgetter("sample")) -> Callable[[Tensor], Tensor]:
    scheduler = DDPMScheduler(num_train_timesteps=1000)

    def loss(images: Tensor) -> Tensor:
        noise = torch.randn_like(images)
        t = torch.randint(1000, (len(images),), device=images.device)
        return F.mse_loss(output(network(scheduler.add_noise(images, noise, t), t)).float(), noise)

    return loss


def example_adamw(parameters, fused: bool) -> AdamW:
    return AdamW(parameters, lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, fused=fused or None)


def ema_model(network: nn.Module, foreach: bool) -> Callable[[], None]:
    ema = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, power=0.75, foreach=foreach)
    return lambda: ema.step(network.parameters())


def ddim_pipeline(network: nn.Module, number: int, side: int) -> Callable[[], Tensor]:
    pipeline = DDIMPipeline(network, DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return lambda: pipeline(number, num_inference_steps=STEPS, output_type="pt").images


# ── MONAI: its network; without a training loop of its own, it is trained as the example above ────


def diffusion_model_unet(shape: Shape) -> nn.Module:
    from monai.networks.nets import DiffusionModelUNet

    return DiffusionModelUNet(
        spatial_dims=2,
        in_channels=3,
        out_channels=3,
        channels=shape.widths,
        attention_levels=[depth == 1 for depth in range(len(shape.widths))],
        num_head_channels=shape.widths[1],
    )


# ── denoising-diffusion-pytorch: its most similar network, and the parts of its Trainer ───────────


def lucidrains_unet(shape: Shape) -> nn.Module:
    from denoising_diffusion_pytorch import Unet

    first, *_ = shape.widths
    attention = tuple(depth == 1 for depth in range(len(shape.widths)))
    return Unet(dim=first, dim_mults=tuple(width // first for width in shape.widths), full_attn=attention)


def gaussian_diffusion_loss(network: nn.Module, side: int) -> Callable[[Tensor], Tensor]:
    from denoising_diffusion_pytorch import GaussianDiffusion

    return GaussianDiffusion(network, image_size=side).to(next(network.parameters()).device)


def trainer_adam(parameters, fused: bool) -> Adam:
    return Adam(parameters, lr=1e-4, betas=(0.9, 0.99), fused=fused or None)


def ema_pytorch(network: nn.Module, foreach: bool) -> Callable[[], None]:
    from ema_pytorch import EMA

    return EMA(network, beta=0.995, update_every=10, use_foreach=foreach).update


# ── the table ─────────────────────────────────────────────────────────────────────────────────────

CONTENDERS = {
    "diffunet": Contender(
        diffunet, diffunet_loss, diffunet_adamw, diffunet_ema, diffunet_sample, Setting(channels_last=True)
    ),
    "diffusers": Contender(unet_2d_model, noise_loss, example_adamw, ema_model, ddim_pipeline),
    "MONAI": Contender(
        diffusion_model_unet, partial(noise_loss, output=lambda tensor: tensor), example_adamw, ema_model
    ),
    "lucidrains": Contender(lucidrains_unet, gaussian_diffusion_loss, trainer_adam, ema_pytorch),
}
CHECKPOINTED = "diffunet, gradient checkpointing"
EVERYONE = CONTENDERS | {
    CHECKPOINTED: replace(CONTENDERS["diffunet"], build=partial(diffunet, gradient_checkpointing=True))
}
