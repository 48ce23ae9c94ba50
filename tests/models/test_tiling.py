"""Tiled inference against the whole image, reflected by numpy."""

import sys

import numpy
import pytest
import torch
from helpers import PEAK_MEMORY, randomized, thinned

from diffunet.models.conditioning import Conditioning
from diffunet.models.config import LevelConfig, UNetConfig
from diffunet.models.tiling import Tiled, valid_tile_sizes
from diffunet.models.unet import UNet
from stress.program import program


def whole(unet, x, cond=None, planes=None):
    """Return the output for the whole reflected image, padded at its ends until every level halves evenly."""
    size, border = x.shape[2:], [(0, 0), (0, 0)]
    least = unet.min_input_size
    consumed = least - unet.output_size(*[least] * len(size))[0]
    for side in size:
        padded = next(n for n in range(side + consumed, 10**6) if valid_tile_sizes(unet, n, n))
        border.append((consumed // 2, padded - side - consumed // 2))

    def reflected(tensor):
        return torch.from_numpy(numpy.pad(tensor.numpy(), border, mode="reflect"))

    with torch.no_grad():
        cond = Conditioning() if planes is None else Conditioning(planes=reflected(planes))
        return unet(reflected(x), cond)[(..., *map(slice, size))]


@pytest.mark.parametrize("size", [(301, 467), (53, 1), (400, 388)])
def test_tiles_equal_the_whole_image_for_unet2015(size):
    unet = UNet(thinned(UNetConfig(preset="unet2015"), 16)).eval()
    x = torch.randn(1, 1, *size)
    with torch.no_grad():
        found = Tiled(unet, tile=(236, 316))(x)
    assert found.shape == (1, 2, *size)
    expected = whole(unet, x)
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_tiles_equal_the_whole_volume():
    unet = UNet(thinned(UNetConfig(preset="unet3d"), 16)).eval()
    for module in unet.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_mean.normal_()  # a trained norm, not the identity of a new one
            module.running_var.uniform_(0.5, 2)
    x = torch.randn(1, 3, 41, 30, 57)
    with torch.no_grad():
        found = Tiled(unet, tile=(108, 116, 124))(x)
    torch.testing.assert_close(found, whole(unet, x), atol=1e-5, rtol=1e-5)


def test_tiles_equal_the_whole_volume_of_unequal_spacing():
    levels = (LevelConfig(channels=4, blocks=1), LevelConfig(channels=4, blocks=1, halves=("y", "x")))
    levels += (LevelConfig(channels=4, blocks=1), LevelConfig(channels=4, blocks=1, halves=("x",), up=()))
    config = UNetConfig(levels=levels, dims=3, padding="valid", block="plain", norm="none", skips="level",
                        resampling="pool", middle_blocks=0, in_channels=1, out_channels=2)  # fmt: skip
    unet = randomized(UNet(config)).eval()
    sizes = [valid_tile_sizes(unet, 1, 100, axis)[1] for axis in range(3)]
    assert len(set(sizes)) == 3
    x = torch.randn(1, 1, 19, 23, 70)
    border = [side - out for side, out in zip(sizes, unet.output_size(*sizes), strict=True)]
    padded = [next(n for n in range(s + b, 999) if valid_tile_sizes(unet, n, n, a)) for a, (s, b) in
              enumerate(zip(x.shape[2:], border, strict=True))]  # fmt: skip
    around = [(0, 0), (0, 0)] + [(b // 2, p - s - b // 2) for b, p, s in zip(border, padded, x.shape[2:], strict=True)]
    with torch.no_grad():
        found = Tiled(unet, tile=tuple(sizes))(x)
        expected = unet(torch.from_numpy(numpy.pad(x.numpy(), around, mode="reflect")))[..., :19, :23, :70]
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match=f"tile {sizes[0] + 1}"):
        Tiled(unet, tile=(sizes[2], sizes[0] + 1, sizes[2]))


@pytest.mark.parametrize("resampling", ["conv", "pool", "pool_relu", "average", "residual"])
@pytest.mark.parametrize("block", ["plain", "residual"])
def test_tiles_equal_the_whole_for_every_resampling(block, resampling):
    levels = [LevelConfig(channels=4, blocks=1), LevelConfig(channels=8, blocks=1), LevelConfig(channels=8, blocks=1)]
    kind = {"block": block, "resampling": resampling, "padding": "valid", "norm": "none", "middle_attention": False}
    unet = randomized(UNet(UNetConfig(levels=levels, plane_channels=1, dims=1, **kind)))
    x, planes = torch.randn(2, 3, 333), torch.randn(2, 1, 333)
    tile = valid_tile_sizes(unet, 1, 500)[3]
    with torch.no_grad():
        found = Tiled(unet, tile)(x, Conditioning(planes=planes))
    expected = whole(unet, x, planes=planes)
    assert found.shape == (2, 3, 333)
    torch.testing.assert_close(found, expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-5)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_boxes_are_parts_of_the_whole_to_the_bit(padding):
    levels = [LevelConfig(channels=4, blocks=1), LevelConfig(channels=8, blocks=1)]
    unet = randomized(UNet(UNetConfig(levels=levels, padding=padding, middle_attention=False, norm_groups=2)))
    tile = next(side for side in valid_tile_sizes(unet, 24, 128) if unet.output_size(side, side)[0] >= 24)
    seen = []
    tiled = Tiled(unet, tile, progress=lambda corners: seen.append(len(corners)) or corners)
    x = torch.randn(2, 3, 75, 61)
    with torch.no_grad():
        whole = tiled(x)
        for top, bottom in ((0, 75), (0, 10), (10, 11), (11, 75)):
            for left, right in ((0, 61), (17, 40), (60, 61)):
                part = tiled(x, box=[(top, bottom), (left, right)])
                assert torch.equal(part, whole[..., top:bottom, left:right])
    assert min(seen) == 1 < max(seen) == seen[0]  # only the tiles of a box are computed


def test_overlapping_tiles_with_same_borders_approach_the_whole():
    torch.manual_seed(1)
    levels = [LevelConfig(channels=4, blocks=1), LevelConfig(channels=8, blocks=1)]
    unet = randomized(UNet(UNetConfig(levels=levels, dims=1, norm="none", middle_attention=False)))
    x = torch.randn(1, 3, 400)
    with torch.no_grad():
        expected = unet(x)
        errors = [(Tiled(unet, 128, overlap)(x) - expected).abs().mean().item() for overlap in (0, 32, 64)]
        torch.testing.assert_close(Tiled(unet, 400)(x), expected, atol=1e-6, rtol=1e-5)
        inside = Tiled(unet, 128, 0)(x)[..., 40:88]  # half the receptive field away from any tile's edge
    assert errors[0] > errors[1] > errors[2] > 0
    torch.testing.assert_close(inside, expected[..., 40:88], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("side", [400, 397, 128, 50])
def test_the_last_tile_with_same_borders_ends_at_the_image_edge(side):
    """There the network pads, the whole image as the tile; images smaller than a tile are one tile."""
    levels = [LevelConfig(channels=4, blocks=1), LevelConfig(channels=8, blocks=1)]
    kind = {"dims": 1, "norm": "none", "middle_attention": False, "plane_channels": 1}
    unet = randomized(UNet(UNetConfig(levels=levels, **kind)))
    x, cond = torch.randn(2, 3, side), Conditioning(planes=torch.randn(2, 1, side))
    with torch.no_grad():
        found, expected = Tiled(unet, 128)(x, cond), unet(x, cond)
    assert found.shape == expected.shape
    exact = slice(-8, None) if side > 128 else slice(None)  # only the last tile covers these
    torch.testing.assert_close(found[..., exact], expected[..., exact], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found[..., :40], expected[..., :40], atol=1e-6, rtol=1e-5)


def test_invalid_tile_is_an_error_with_the_nearest_valid_ones():
    unet = UNet(thinned(UNetConfig(preset="unet2015"), 16))
    for wrong, near in ((570, "556, 572"), (580, "572, 588"), (20, "204, 220"), (188, "204, 220")):
        with pytest.raises(ValueError, match=rf"tile {wrong}: .* nearest valid sides: \[{near}\]"):
            Tiled(unet, wrong)
    with pytest.raises(ValueError, match="2 axes"):
        Tiled(unet, (572, 572, 572))
    borders = UNet(thinned(UNetConfig(preset="unet2015", padding="same"), 16))
    with pytest.raises(ValueError, match=r"nearest valid sides: \[240, 256\]"):
        Tiled(borders, 250)
    with pytest.raises(ValueError, match="overlap 250: .* at most 240"):
        Tiled(borders, 256, overlap=250)


def test_progress_wraps_every_tile():
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
import torch
from diffunet import Tiled
from diffunet import UNet
from diffunet import UNetConfig
unet = UNet(UNetConfig(preset="unet2015")).eval()
with torch.no_grad():
    answer = Tiled(unet, tile=TILE)(torch.randn(1, 1, *SIZE))
assert answer.shape == (1, 2, *SIZE) and answer.isfinite().all()
print("peak", peak_memory())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.slow
def test_memory_is_that_of_a_tile():
    """unet2015 at full width in 2 GB, almost independent of the size of the image (2048×2048: README)."""
    peaks = []
    for size in ((20, 20), (20, 600)):
        script = PEAK_MEMORY + LARGE.replace("TILE", "284").replace("SIZE", str(size))
        process = program("-c", script)
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output
        peaks.append(int(output.split("peak")[1]))
    assert peaks[1] < 2e9
    assert peaks[1] < 1.2 * peaks[0]
