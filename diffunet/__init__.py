"""diffunet: a U-Net backbone, and denoising diffusion with it.

    from diffunet import UNet, UNetConfig, LevelConfig
"""

import importlib

_HOMES = {
    "Conditioning": "models.conditioning",
    "TimeEmbedding": "models.conditioning",
    "LabelEmbedding": "models.conditioning",
    "VectorEmbedding": "models.conditioning",
    "TokenEmbedding": "models.conditioning",
    "PlaneEmbedding": "models.conditioning",
    "LevelConfig": "models.unet",
    "UNetConfig": "models.unet",
    "UNet": "models.unet",
    "features": "models.inspection",
    "receptive_field": "models.inspection",
    "describe": "models.inspection",
    "Tiled": "models.tiling",
    "copy_encoder": "models.pretrained",
    "DiffusersUNet": "interop.adapters",
    "LucidrainsUNet": "interop.adapters",
    "Denoiser": "models.denoiser",
    "LabelConfig": "models.denoiser",
    "AugmentationConfig": "models.denoiser",
    "TimeConfig": "models.denoiser",
    "Guided": "sampling.guidance",
    "Objective": "objectives.base",
    "DDPM": "objectives.ddpm",
    "DDPMConfig": "objectives.ddpm",
    "EDM": "objectives.edm",
    "EDMConfig": "objectives.edm",
    "Flow": "objectives.flow",
    "FlowConfig": "objectives.flow",
    "sample": "sampling.loop",
    "Trainer": "training.trainer",
    "TrainConfig": "training.trainer",
    "Run": "runs.run",
    "load_denoiser": "runs.run",
    "load_unet": "runs.run",
    "save_unet": "runs.run",
    "load_guided_diffusion": "interop.guided_diffusion",
    "save_guided_diffusion": "interop.guided_diffusion",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    """Loads a part when it is first asked for, so that `from diffunet import UNet` needs only torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
