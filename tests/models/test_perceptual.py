"""LPIPS by its definition, in the features of a VGG16 without training."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.models import vgg

from diffunet.core.errors import UserError
from diffunet.models.perceptual import build_lpips

TAPPED = (3, 8, 15, 22, 29)
"""The last ReLU at each resolution."""


@pytest.fixture(scope="module")
def layers() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return vgg.make_layers(vgg.cfgs["D"]).eval()


def weights_of(layers) -> dict[str, torch.Tensor]:
    return {f"features.{name}": value for name, value in layers.state_dict().items()}


@pytest.mark.parametrize(("channels", "side"), [(3, 32), (1, 32), (4, 24), (3, 8)])
def test_distances_follow_the_definition(layers, channels, side):
    """Equation 1 of the paper, with the package's weights; gray repeated, small images enlarged to 16 pixels."""
    distance = build_lpips(weights_of(layers))
    a, b = (torch.rand(2, channels, side, side) * 2 - 1 for _ in range(2))
    found = distance(a, b)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x, y = (each[:, :3] if channels > 1 else each.expand(-1, 3, -1, -1) for each in (a, b))
    x, y = (F.interpolate(each, scale_factor=max(1, 16 // side)) for each in (x, y))
    x, y = ((each - shift[:, None, None]) / scale[:, None, None] for each in (x, y))
    expected = torch.zeros(2)
    with torch.no_grad():
        for index, layer in enumerate(layers[:-1]):
            x, y = layer(x), layer(y)
            if index in TAPPED:
                weight = getattr(distance.network, f"lin{TAPPED.index(index)}").model[1].weight
                difference = (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square()
                expected += F.conv2d(difference, weight).mean((1, 2, 3))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert not distance(a, a).any()


def test_gradients_reach_the_images_and_no_weight(layers):
    distance = build_lpips(weights_of(layers))
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    distance(image, torch.zeros(1, 3, 16, 16)).sum().backward()
    assert image.grad.abs().sum() > 0 and not any(p.requires_grad for p in distance.parameters())


def test_other_weights_are_refused(layers):
    with pytest.raises(UserError, match=r"features\.0\.weight: missing"):
        build_lpips({"layer.weight": torch.zeros(1)})
    wrong = weights_of(layers) | {"features.5.weight": torch.zeros(3)}
    with pytest.raises(UserError, match=r"features\.5\.weight: missing, or of another shape"):
        build_lpips(wrong)
