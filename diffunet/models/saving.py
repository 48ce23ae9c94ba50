"""A U-Net by itself as a folder: config.json and its weights as safetensors."""

from pathlib import Path

from ..core.settings import settings_from
from ..core.storage import atomic_write, load_strictly, load_tensors, save_tensors
from .config import UNetConfig
from .unet import UNet

WEIGHTS = "diffusion_pytorch_model.safetensors"
"""File name of the weights of any model, the one that diffusers uses."""


def save_unet(unet: UNet, folder: str | Path) -> None:
    """Write a U-Net to a folder. Raise OSError if that fails."""
    with atomic_write(Path(folder) / "config.json") as file:
        file.write_text(unet.config.model_dump_json(indent=2), encoding="utf-8")
    with atomic_write(Path(folder) / WEIGHTS) as file:
        save_tensors(file, unet.state_dict())


def load_unet(folder: str | Path) -> UNet:
    """Return the U-Net that `save_unet` wrote, in training mode. Raise UserError if its files do not fit."""
    folder = Path(folder)
    unet = UNet(settings_from(folder / "config.json", UNetConfig))
    load_strictly(unet, load_tensors(folder / WEIGHTS), folder / WEIGHTS)
    return unet
