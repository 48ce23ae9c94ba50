"""Pretrained encoders (Iglovikov & Shvets 2018).

unet = UNet(UNetConfig(preset="ternaus11"))
copy_encoder(unet, torchvision.models.vgg11(weights="DEFAULT"))
"""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from .unet import UNet

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the inputs of torchvision's networks: red, green and blue, from 0 to 1."""
POOLED = "pool", "pool_relu", "average"
"""Kinds of `resampling` without a convolution on the way down."""


def copy_encoder(unet: UNet, encoder: nn.Module) -> list[str]:
    """Copy the convolutions of `encoder` into the U-Net's way down, and return the names of what is left out.

    The U-Net then needs inputs normalized as those of the encoder, for instance by IMAGENET_MEAN and IMAGENET_STD.
    Raise ValueError as `match_encoder`.
    """
    found, left_out = match_encoder(unet, encoder.state_dict())
    unet.load_state_dict(unet.state_dict() | found)
    return left_out


def match_encoder(unet: UNet, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of an encoder under the names of the U-Net's way down, and the names of those left out.

    Convolutions are matched in order, finest level first; levels beyond the encoder are not in the result. Linear
    layers, as those of a classifier, are left out. With one input channel, the first convolution is the sum over those
    of the encoder, whose features are then those of the image repeated in each. Raise ValueError for a way down that
    computes more than convolutions, ReLU and pooling, and, naming the tensor, for one without counterpart.
    """
    kinds = unet.config.block, unet.config.norm, unet.config.resampling
    if kinds[:2] != ("plain", "none") or kinds[2] not in POOLED:
        got = ", ".join(kinds)
        raise ValueError(f"encoder: needs block plain, norm none, resampling by pool (got {got}); use preset ternaus11")
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        layers.setdefault(layer, {})[kind] = tensor
    linear = {layer for layer, parts in layers.items() if "weight" in parts and parts["weight"].ndim == 2}
    convolutions = {layer: parts for layer, parts in layers.items() if layer not in linear}
    for layer, parts in convolutions.items():
        for kind in parts:
            if kind not in ("weight", "bias") or "weight" not in parts or parts["weight"].ndim != unet.config.dims + 2:
                name = f"{layer}.{kind}".lstrip(".")
                raise ValueError(
                    f"encoder: {name} does not belong to a convolution, and has no place in the U-Net; "
                    "use a plain stack of convolutions, as vgg11"
                )
    ours = _way_down(unet)
    if not convolutions:
        raise ValueError("encoder: no convolutions; use a plain stack of them, as vgg11")
    if len(convolutions) > len(ours):
        raise ValueError(
            f"encoder: {len(convolutions)} convolutions, but the U-Net's way down has {len(ours)}; add levels or blocks"
        )
    found = {}
    for depth, ((theirs, parts), (here, module)) in enumerate(zip(convolutions.items(), ours.items(), strict=False)):
        weight, bias = parts["weight"], parts.get("bias")
        if depth == 0 and unet.config.in_channels == 1:
            weight = weight.sum(1, keepdim=True)
        if weight.shape != module.weight.shape or (bias is None) != (module.bias is None):
            raise ValueError(
                f"encoder: {theirs} does not fit (weight {tuple(parts['weight'].shape)}, bias {bias is not None}); "
                f"the U-Net has weight {tuple(module.weight.shape)}, bias {module.bias is not None}; "
                "give its levels the channels of the encoder, as preset ternaus11 those of vgg11"
            )
        found |= {f"{here}.weight": weight} | ({} if bias is None else {f"{here}.bias": bias})
    return found, [name for name in tensors if name.rpartition(".")[0] in linear]


def _way_down(unet: UNet) -> dict[str, _ConvNd]:
    """Return the convolutions of the U-Net's way down by their names, finest level first."""
    names = {module: name for name, module in unet.named_modules()}
    modules = [module for level in unet.levels for module in level.down.modules()]
    return {names[module]: module for module in modules if isinstance(module, _ConvNd)}
