import pytest
import torch
from helpers import thinned
from torchvision.models import vgg11, vgg11_bn, vgg13

from diffunet.models.config import UNetConfig
from diffunet.models.inspection import features
from diffunet.models.meta import on_meta
from diffunet.models.pretrained import copy_encoder
from diffunet.models.unet import UNet


def test_features_of_the_way_down_match_vgg11():
    """The features before each of VGG's poolings match torchvision's."""
    vgg = vgg11(weights=None).features.eval()
    unet = UNet(UNetConfig(preset="ternaus11")).eval()
    copy_encoder(unet, vgg)
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found, h, depth = features(unet, x), x, 0
        for layer in vgg:
            if isinstance(layer, torch.nn.MaxPool2d):
                assert h.std() > 1e-4
                torch.testing.assert_close(found[f"down.{depth}"], h, atol=1e-6, rtol=1e-5)
                depth += 1
            h = layer(h)
    assert depth == 5


def test_encoders_that_do_not_fit_are_errors():
    unet = UNet(thinned(UNetConfig(preset="ternaus11"), 4))
    before = [parameter.clone() for parameter in unet.parameters()]
    with on_meta():
        encoders = [make(weights=None).features for make in (vgg11_bn, vgg13, vgg11)]
    problems = (
        "encoder: 1.weight does not belong to a convolution",
        "encoder: 10 convolutions, but the U-Net's way down has 9",
        r"encoder: 0 does not fit \(weight \(64, 3, 3, 3\)",
    )
    for encoder, problem in zip(encoders, problems, strict=True):
        with pytest.raises(ValueError, match=problem):
            copy_encoder(unet, encoder)
    assert all(torch.equal(a, b) for a, b in zip(before, unet.parameters(), strict=True))
