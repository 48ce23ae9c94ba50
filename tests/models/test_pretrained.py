"""Encoders of torchvision in the way down of a U-Net: equal features, gray images, and what does not fit."""

import pytest
import torch
from helpers import randomized, thinned
from torch import nn
from torchvision.models import vgg11, vgg11_bn, vgg13
from torchvision.models.vgg import make_layers

from diffunet.models.config import UNetConfig
from diffunet.models.inspection import features
from diffunet.models.meta import on_meta
from diffunet.models.pretrained import copy_encoder, match_encoder
from diffunet.models.unet import UNet

BLOCKS = {"vgg11": (1, 1, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3)}
WIDTHS = 8, 16, 32, 64, 64
"""An eighth of VGG's."""


def narrow(blocks: tuple[int, ...], in_channels: int = 3) -> tuple[UNet, nn.Sequential]:
    """Return a U-Net and the layers of torchvision's VGG with these convolutions before each pooling."""
    levels = [{"channels": width, "blocks": number} for width, number in zip(WIDTHS, blocks, strict=True)]
    levels.append({"channels": 8, "blocks": 1, "up": []})
    unet = UNet(UNetConfig(preset="ternaus11", levels=levels, in_channels=in_channels))
    layers = [part for width, number in zip(WIDTHS, blocks, strict=True) for part in [*[width] * number, "M"]]
    return unet.eval(), make_layers(layers).eval()


def assert_features_equal(unet: UNet, layers: nn.Sequential, x: torch.Tensor, theirs: torch.Tensor) -> None:
    """Compare the features before each of VGG's poolings, of which there are five."""
    with torch.no_grad():
        found, h, depth = features(unet, x), theirs, 0
        for layer in layers:
            if isinstance(layer, nn.MaxPool2d):
                assert h.std() > 1e-4
                torch.testing.assert_close(found[f"down.{depth}"], h, atol=1e-6, rtol=1e-5)
                depth += 1
            h = layer(h)
    assert depth == 5


@pytest.mark.parametrize("name", BLOCKS)
def test_features_of_the_way_down_match_torchvision(name):
    unet, vgg = narrow(BLOCKS[name])
    assert copy_encoder(unet, vgg) == []
    x = torch.randn(1, 3, 64, 96)
    assert_features_equal(unet, vgg, x, x)


def test_a_gray_image_has_the_features_of_itself_in_three_channels():
    unet, vgg = narrow(BLOCKS["vgg11"], in_channels=1)
    copy_encoder(unet, vgg)
    x = torch.randn(1, 1, 64, 96)
    assert_features_equal(unet, vgg, x, x.expand(-1, 3, -1, -1))


def test_a_classifier_is_left_out():
    with on_meta():
        unet, tensors = UNet(UNetConfig(preset="ternaus11")), vgg11(weights=None).state_dict()
        found, left_out = match_encoder(unet, tensors)
    assert left_out == [f"classifier.{index}.{kind}" for index in (0, 3, 6) for kind in ("weight", "bias")]
    assert len(found) == 16
    assert found["body.inner.inner.down.0.1.conv.weight"] is tensors["features.8.weight"]


def test_levels_beyond_the_encoder_keep_their_weights():
    unet = randomized(UNet(thinned(UNetConfig(preset="ternaus11"), 8)))
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    copy_encoder(unet, nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3)))
    moved = {name for name, tensor in unet.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {f"body{inner}.down.0.0.conv.{kind}" for inner in ("", ".inner") for kind in ("weight", "bias")}


@pytest.mark.parametrize("changes", [{"block": "residual"}, {"norm": "group"}, {"resampling": "conv"}])
def test_a_way_down_with_other_layers_is_an_error(changes):
    unet, vgg = narrow(BLOCKS["vgg11"])
    other = UNet(UNetConfig.model_validate(unet.config.model_dump() | changes))
    with pytest.raises(ValueError, match=f"encoder: needs block plain, .*{next(iter(changes.values()))}.*; use preset"):
        copy_encoder(other, vgg)


def test_encoders_that_do_not_fit_are_errors():
    unet = UNet(thinned(UNetConfig(preset="ternaus11"), 4))
    before = [parameter.clone() for parameter in unet.parameters()]
    with on_meta():
        encoders = [make(weights=None).features for make in (vgg11_bn, vgg13, vgg11)]
        encoders += [nn.Sequential(nn.Conv2d(3, 16, 3, bias=False)), nn.Conv1d(3, 16, 3), nn.Linear(3, 16)]
    problems = (
        "encoder: 1.weight does not belong to a convolution",
        "encoder: 10 convolutions, but the U-Net's way down has 9; add",
        r"encoder: 0 does not fit \(weight \(64, 3, 3, 3\)",
        r"encoder: 0 does not fit \(weight \(16, 3, 3, 3\), bias False\); the U-Net has weight .*, bias True",
        "encoder: weight does not belong to a convolution",
        "encoder: no convolutions; use",
    )
    for encoder, problem in zip(encoders, problems, strict=True):
        with pytest.raises(ValueError, match=problem):
            copy_encoder(unet, encoder)
    assert all(torch.equal(a, b) for a, b in zip(before, unet.parameters(), strict=True))
