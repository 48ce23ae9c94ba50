"""The denoiser of targets: its normalizations, its routes and its tiles."""

import torch
from helpers import randomized, small_unet

from diffunet.models.conditioning import Conditioning
from diffunet.models.posterior import TargetDenoiser
from diffunet.models.unet import UNet

STATISTICS = {
    "input_mean": torch.tensor([100.0, -2.0, 0.0]),
    "input_std": torch.tensor([50.0, 0.5, 2.0]),
    "target_mean": torch.tensor([3.0, -7.0]),
    "target_scale": torch.tensor([2.0, 0.25]),
}


def denoiser() -> TargetDenoiser:
    """Return a denoiser of two numbers under three channels."""
    return randomized(TargetDenoiser(UNet(small_unet(in_channels=2, out_channels=2, plane_channels=3))))


def test_image_and_time_enter_by_their_routes():
    model, x_t, image = denoiser(), torch.randn(2, 2, 16, 12), 50 * torch.randn(2, 3, 16, 12)
    model.normalized(**STATISTICS)
    t = torch.tensor([3.0, 700.0])
    planes = (image - STATISTICS["input_mean"].reshape(3, 1, 1)) / STATISTICS["input_std"].reshape(3, 1, 1)
    with torch.no_grad():
        expected = model.unet(x_t, model.time(t) + Conditioning(planes=planes))
        assert torch.equal(model(x_t, t, image=image), expected)
        assert not torch.equal(model(x_t, t.flip(0), image=image), expected)
        assert not torch.equal(model(x_t, t, image=image.flip(0)), expected)
        assert torch.equal(model(x_t, t, image=image.int()), model(x_t, t, image=image.int().float()))


def test_statistics_are_part_of_the_weights():
    model = denoiser().normalized(**STATISTICS)
    loaded = denoiser()
    loaded.load_state_dict(model.state_dict())
    for name, values in STATISTICS.items():
        assert torch.equal(getattr(loaded, name), values)
    assert not set(STATISTICS) & {name for name, _ in model.named_parameters()}
    found = loaded.target_of(torch.tensor([[1.0, -1.0]]).reshape(1, 2, 1, 1))
    assert found.flatten().tolist() == [5.0, -7.25]


def test_tiles_share_the_weights():
    model = denoiser()
    tiled = model.tiled(16)
    model.normalized(**STATISTICS)
    assert {id(p) for p in tiled.parameters()} == {id(p) for p in model.parameters()}
    x_t, image, t = torch.randn(1, 2, 16, 16), torch.randn(1, 3, 16, 16), torch.tensor(5.0)
    with torch.no_grad():
        torch.testing.assert_close(tiled(x_t, t, image=image), model(x_t, t, image=image))
        assert tiled(torch.randn(1, 2, 37, 21), t, image=torch.randn(1, 3, 37, 21)).shape == (1, 2, 37, 21)
