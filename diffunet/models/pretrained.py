"""A way down that was trained elsewhere (Iglovikov & Shvets 2018).

    unet = UNet(UNetConfig(preset="ternaus11"))
    copy_encoder(unet, torchvision.models.vgg11(weights="DEFAULT").features)
"""

from torch import nn
from torch.nn.modules.conv import _ConvNd

from .unet import UNet


def copy_encoder(unet: UNet, encoder: nn.Module) -> None:
    """Copies the convolutions of `encoder`, in order, into those of the U-Net's way down, from the finest on.

    What the encoder was trained with, such as ImageNet's mean and standard deviation of the pixels, the U-Net
    needs too. ValueError, naming the tensor, if the encoder has a parameter that this leaves out.
    """
    theirs = {name: module for name, module in encoder.named_modules() if isinstance(module, _ConvNd)}
    ours = [module for level in unet.levels for module in level.down.modules() if isinstance(module, _ConvNd)]
    copied = {f"{name}.{kind}".lstrip(".") for name in theirs for kind in ("weight", "bias")}
    if left := [name for name, _ in encoder.named_parameters() if name not in copied]:
        raise ValueError(f"{left[0]} of the encoder is not a convolution's; this U-Net has no place for it")
    if len(theirs) > len(ours):
        raise ValueError(f"the encoder has {len(theirs)} convolutions, the way down of this U-Net {len(ours)}")
    for (name, there), here in zip(theirs.items(), ours, strict=False):
        if there.weight.shape != here.weight.shape or (there.bias is None) != (here.bias is None):
            shapes = f"{tuple(there.weight.shape)} of the encoder, {tuple(here.weight.shape)} here"
            raise ValueError(f"{name}.weight does not fit: {shapes}")
    for there, here in zip(theirs.values(), ours, strict=False):
        here.load_state_dict(there.state_dict())
