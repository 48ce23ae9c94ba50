"""diffunet: a U-Net backbone, and denoising diffusion with it.

    from diffunet import UNet, UNetConfig, LevelConfig
"""

import importlib

_HOMES = {
    "Conditioning": "conditioning",
    "TimeEmbedding": "conditioning",
    "LabelEmbedding": "conditioning",
    "VectorEmbedding": "conditioning",
    "TokenEmbedding": "conditioning",
    "PlaneEmbedding": "conditioning",
    "LevelConfig": "unet",
    "UNetConfig": "unet",
    "UNet": "unet",
    "features": "inspection",
    "receptive_field": "inspection",
    "describe": "inspection",
    "Tiled": "tiles",
    "copy_encoder": "encoders",
    "ForDiffusers": "hosts",
    "ForLucidrains": "hosts",
    "ConditionsConfig": "denoiser",
    "Denoiser": "denoiser",
    "Guided": "denoiser",
    "Objective": "objective",
    "Diffusion": "diffusion",
    "DiffusionConfig": "diffusion",
    "EDM": "edm",
    "EDMConfig": "edm",
    "Flow": "flow",
    "FlowConfig": "flow",
    "sample": "sampling",
    "Trainer": "training",
    "TrainConfig": "training",
    "Run": "checkpoint",
    "load_denoiser": "checkpoint",
    "load_unet": "checkpoint",
    "save_unet": "checkpoint",
    "load_guided_diffusion": "guided_diffusion",
    "save_guided_diffusion": "guided_diffusion",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    """Loads a part when it is first asked for, so that `from diffunet import UNet` needs only torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
