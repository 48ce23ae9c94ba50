"""The autoencoder of a run of latents in an export for diffusers."""

from pathlib import Path

from ..models.codec import Codec
from ..runs.config import Config


def save_codec(codec: Codec, folder: Path) -> None:
    """Write the autoencoder as diffusers does; an AutoencoderKL with `latents_mean` and `latents_std` in its config."""
    network = codec.autoencoder.network
    if "latents_mean" in network.config:
        values = {"latents_mean": codec.shift.flatten().tolist(), "latents_std": codec.scale.flatten().tolist()}
        network.register_to_config(**values)
    network.save_pretrained(folder)


def latent_code(codec: Codec, config: Config) -> str:
    """Return Python code that samples latents with diffusers alone, and decodes them."""
    kind, steps = type(codec.autoencoder.network).__name__, config.objective.process.num_train_timesteps
    shape = ", ".join(map(str, codec.shape(config.data.size)))
    mean, std = ([round(value, 6) for value in values.flatten().tolist()] for values in (codec.shift, codec.scale))
    return f"""import torch
from diffusers import {kind}, DDPMScheduler, UNet2DModel

unet = UNet2DModel.from_pretrained("FOLDER", subfolder="unet").eval()
scheduler = DDPMScheduler.from_pretrained("FOLDER", subfolder="scheduler")
autoencoder = {kind}.from_pretrained("FOLDER", subfolder="vae").eval()
mean, std = (torch.tensor(values)[:, None, None] for values in ({mean}, {std}))
x = torch.randn(4, {shape})
scheduler.set_timesteps({steps})
with torch.no_grad():
    for t in scheduler.timesteps:
        x = scheduler.step(unet(x, t).sample, t, x).prev_sample
    images = autoencoder.decode(x * std + mean).sample  # in [-1, 1]"""
