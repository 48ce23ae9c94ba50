"""LPIPS, the perceptual distance of images in the features of VGG16 (Zhang et al. 2018), by the package `lpips`."""

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..core.errors import UserError

SMALLEST = 16
"""Side in pixels below which the last features of VGG16 are empty."""


class LPIPS(nn.Module):
    """`distance(images, references)`, of (B, C, H, W) in [-1, 1], (B,); frozen, with gradients of both."""

    def __init__(self, network: nn.Module):
        """network: `lpips.LPIPS`."""
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    def forward(self, images: Tensor, references: Tensor) -> Tensor:
        """Gray images are repeated in each color; of more than three channels the first three count."""
        images, references = (enlarged(color(each)) for each in (images, references))
        return self.network(images, references).flatten(1).mean(1)


def color(images: Tensor) -> Tensor:
    """Return images (B, 3, H, W) of images (B, C, H, W)."""
    return images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)


def enlarged(images: Tensor) -> Tensor:
    """Return images of at least SMALLEST pixels a side, by repetition of pixels."""
    factor = -(-SMALLEST // min(images.shape[2:]))
    return images.repeat_interleave(factor, 2).repeat_interleave(factor, 3) if factor > 1 else images


def import_lpips() -> Any:
    """Return the package. Raise UserError if it is missing."""
    try:
        import lpips
    except ImportError:
        raise UserError("lpips is not installed; pip install 'diffunet[perceptual]'") from None
    return lpips


def build_lpips(vgg16: Mapping[str, Tensor]) -> LPIPS:
    """Return LPIPS with the convolutions of torchvision's VGG16, `features.0.weight`, ...; others are left out.

    The weights of each feature come with the package `lpips`. Raise UserError if it is missing, or a convolution is.
    """
    lpips = import_lpips()
    with warnings.catch_warnings(action="ignore"):  # torchvision's, about the arguments that the package uses
        network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    own = network.net.state_dict()
    named = {name: f"features.{name.partition('.')[2]}" for name in own}  # slice1.0.weight -> features.0.weight
    for name, theirs in named.items():
        if theirs not in vgg16 or vgg16[theirs].shape != own[name].shape:
            raise UserError(f"{theirs}: missing, or of another shape; use the weights of torchvision's VGG16")
    network.net.load_state_dict({name: vgg16[theirs] for name, theirs in named.items()})
    return LPIPS(network)
