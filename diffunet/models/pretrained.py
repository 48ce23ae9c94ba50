"""Pretrained encoders (Iglovikov & Shvets 2018).

unet = UNet(UNetConfig(preset="ternaus11"))
copy_encoder(unet, torchvision.models.vgg11(weights="DEFAULT").features)
"""

from torch import nn
from torch.nn.modules.conv import _ConvNd

from .unet import UNet


def copy_encoder(unet: UNet, encoder: nn.Module) -> None:
    """Copy the convolutions of `encoder`, in order, into those of the U-Net's way down, finest level first.

    The U-Net then needs inputs normalized as those of the encoder, for instance by ImageNet's mean and standard
    deviation. Raise ValueError, naming the tensor, if a parameter of the encoder has no counterpart.
    """
    theirs = {name: module for name, module in encoder.named_modules() if isinstance(module, _ConvNd)}
    ours = [module for level in unet.levels for module in level.down.modules() if isinstance(module, _ConvNd)]
    copied = {f"{name}.{kind}".lstrip(".") for name in theirs for kind in ("weight", "bias")}
    if other := [name for name, _ in encoder.named_parameters() if name not in copied]:
        raise ValueError(f"encoder: {other[0]} does not belong to a convolution, and has no place in the U-Net")
    if len(theirs) > len(ours):
        raise ValueError(f"encoder: {len(theirs)} convolutions, but the U-Net's way down has {len(ours)}")
    for (name, there), here in zip(theirs.items(), ours, strict=False):
        if there.weight.shape != here.weight.shape or (there.bias is None) != (here.bias is None):
            raise ValueError(
                f"encoder: {name} does not fit (weight {tuple(there.weight.shape)}, bias {there.bias is not None}); "
                f"the U-Net has weight {tuple(here.weight.shape)}, bias {here.bias is not None}"
            )
    for there, here in zip(theirs.values(), ours, strict=False):
        here.load_state_dict(there.state_dict())
