"""Tiles against the whole image, mirrored by numpy."""

import sys

import numpy
import pytest
import torch
from helpers import randomised, thinned

from diffunet.models.conditioning import Conditioning
from diffunet.models.tiling import Tiled, valid_tile_sizes
from diffunet.models.unet import LevelConfig, UNet, UNetConfig
from stress.program import program


def whole(unet, x, cond=None, planes=None):
    """What the network says to the whole mirrored image; sides grow at their ends until every level halves evenly."""
    size, border = x.shape[2:], [(0, 0), (0, 0)]
    least = unet.min_input_size
    eaten = least - unet.output_size(*[least] * len(size))[0]
    for side in size:
        padded = next(n for n in range(side + eaten, 10**6) if valid_tile_sizes(unet, n, n))
        border.append((eaten // 2, padded - side - eaten // 2))

    def mirrored(tensor):
        return torch.from_numpy(numpy.pad(tensor.numpy(), border, mode="reflect"))

    with torch.no_grad():
        cond = Conditioning() if planes is None else Conditioning(planes=mirrored(planes))
        return unet(mirrored(x), cond)[(..., *map(slice, size))]


@pytest.mark.parametrize("size", [(301, 467), (53, 1), (400, 388)])
def test_tiles_are_the_whole_for_the_network_of_2015(size):
    unet = UNet(thinned(UNetConfig(preset="unet2015"), 16)).eval()
    x = torch.randn(1, 1, *size)
    with torch.no_grad():
        found = Tiled(unet, tile=(236, 316))(x)
    assert found.shape == (1, 2, *size)
    expected = whole(unet, x)
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_tiles_are_the_whole_for_a_volume():
    unet = UNet(thinned(UNetConfig(preset="unet3d"), 16)).eval()
    for module in unet.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_mean.normal_()                  # a trained norm, not the identity of a new one
            module.running_var.uniform_(0.5, 2)
    x = torch.randn(1, 3, 41, 30, 57)
    with torch.no_grad():
        found = Tiled(unet, tile=(108, 116, 124))(x)
    torch.testing.assert_close(found, whole(unet, x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("resampling", ["conv", "pool", "pool_relu", "average", "residual"])
@pytest.mark.parametrize("block", ["plain", "residual"])
def test_tiles_are_the_whole_for_every_kind(block, resampling):
    levels = [LevelConfig(channels=4, blocks=1), LevelConfig(channels=8, blocks=1), LevelConfig(channels=8, blocks=1)]
    kind = {"block": block, "resampling": resampling, "padding": "valid", "norm": "none", "middle_attention": False}
    unet = randomised(UNet(UNetConfig(levels=levels, plane_channels=1, dims=1, **kind)))
    x, planes = torch.randn(2, 3, 333), torch.randn(2, 1, 333)
    tile = valid_tile_sizes(unet, 1, 500)[3]
    with torch.no_grad():
        found = Tiled(unet, tile)(x, Conditioning(planes=planes))
    expected = whole(unet, x, planes=planes)
    assert found.shape == (2, 3, 333)
    torch.testing.assert_close(found, expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-5)


def test_overlapping_tiles_of_a_network_with_borders_approach_the_whole():
    torch.manual_seed(1)
    levels = [LevelConfig(channels=4, blocks=1), LevelConfig(channels=8, blocks=1)]
    unet = randomised(UNet(UNetConfig(levels=levels, dims=1, norm="none", middle_attention=False)))
    x = torch.randn(1, 3, 400)
    with torch.no_grad():
        expected = unet(x)
        errors = [(Tiled(unet, 128, overlap)(x) - expected).abs().mean().item() for overlap in (0, 32, 64)]
        torch.testing.assert_close(Tiled(unet, 400)(x), expected, atol=1e-6, rtol=1e-5)
        inside = Tiled(unet, 128, 0)(x)[..., 40:88]         # further from any tile's edge than the network sees
    assert errors[0] > errors[1] > errors[2] > 0
    torch.testing.assert_close(inside, expected[..., 40:88], atol=1e-6, rtol=1e-5)


def test_a_wrong_tile_is_refused_with_the_nearest_right_ones():
    unet = UNet(thinned(UNetConfig(preset="unet2015"), 16))
    for wrong, near in ((570, "556, 572"), (580, "572, 588"), (20, "204, 220"), (188, "204, 220")):
        with pytest.raises(ValueError, match=rf"tile {wrong}: .* nearest right ones: \[{near}\]"):
            Tiled(unet, wrong)
    with pytest.raises(ValueError, match="2 axes"):
        Tiled(unet, (572, 572, 572))
    borders = UNet(thinned(UNetConfig(preset="unet2015", padding="same"), 16))
    with pytest.raises(ValueError, match=r"nearest right ones: \[240, 256\]"):
        Tiled(borders, 250)
    with pytest.raises(ValueError, match="overlap 250: .* at most 240"):
        Tiled(borders, 256, overlap=250)


def test_every_tile_is_watched():
    seen = []

    def progress(tiles):
        for tile in tiles:
            seen.append(tile)
            yield tile

    unet = UNet(thinned(UNetConfig(preset="unet2015"), 16)).eval()
    with torch.no_grad():
        Tiled(unet, 252, progress=progress)(torch.randn(1, 1, 100, 70))
    assert seen == [(0, 0), (0, 64), (64, 0), (64, 64)]


LARGE = """
import resource, torch
from diffunet import Tiled
from diffunet import UNet
from diffunet import UNetConfig
unet = UNet(UNetConfig(preset="unet2015")).eval()
with torch.no_grad():
    answer = Tiled(unet, tile=TILE)(torch.randn(1, 1, *SIZE))
assert answer.shape == (1, 2, *SIZE) and answer.isfinite().all()
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is counted in KiB on Linux only")
def test_the_memory_is_that_of_a_tile():
    """The network of 2015, whole, in 2 GB; the image's size hardly counts (2048×2048: README)."""
    peaks = []
    for size in ((20, 20), (20, 600)):
        script = LARGE.replace("TILE", "284").replace("SIZE", str(size))
        process = program("-c", script)
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output
        peaks.append(int(output.split("peak")[1]) * 1024)
    assert peaks[1] < 2e9
    assert peaks[1] < 1.2 * peaks[0]
