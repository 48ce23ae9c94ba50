"""diffunet: a U-Net backbone, and denoising diffusion with it.

    from diffunet import UNet, UNetConfig, LevelConfig

Names are imported on first use, so that the backbone needs only torch; `__init__.pyi` lists them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
