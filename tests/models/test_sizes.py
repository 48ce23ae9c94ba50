"""The sizes among which `unet.levels: auto` chooses."""

import itertools

import pytest
import torch

from diffunet import UNet
from diffunet.models.config import UNetConfig
from diffunet.models.inspection import describe
from diffunet.models.sizes import FINEST, SIZES, compact, published, size_for

SIDES = [1, 3, 4, 8, 16, 28, 32, 48, 64, 100, 256]


@pytest.mark.parametrize("side", SIDES)
def test_compact_networks_take_images_of_any_size(side):
    config = UNetConfig(**compact(8, side))
    finest = -(-side // config.unshuffle)
    assert finest <= FINEST
    assert (config.unshuffle > 1) == (side > FINEST)
    coarsest = side / config.strides[0]
    assert coarsest <= 8
    assert len(config.levels) > 1 or side < 4
    attended = [finest / 2**depth for depth, level in enumerate(config.levels) if level.attention]
    assert 1 <= len(attended) <= 2
    assert max(attended) <= 16
    with torch.no_grad():
        assert UNet(config)(torch.zeros(1, 3, side, side + 5)).shape == (1, 3, side, side + 5)


@pytest.mark.parametrize("side", [8, 16, 28, 32, 48, 64, 128, 256])
def test_published_proportions(side):
    levels = UNetConfig(**published(side)).levels
    assert 3 <= side / 2 ** (len(levels) - 1) <= 16
    attended = [side / 2**depth for depth, level in enumerate(levels) if level.attention]
    assert attended
    assert max(attended) <= 16


@pytest.mark.parametrize("side", [28, 32, 64, 128])
def test_each_size_has_more_parameters_operations_and_images_than_the_last(side):
    networks = [describe(size.of(UNetConfig(), side), (side, side))[-1] for size in SIZES]
    for smaller, larger in itertools.pairwise(networks):
        assert smaller.parameters < larger.parameters
        assert smaller.flops < larger.flops
    images = [size.images for size in SIZES]
    assert images == sorted(set(images))
    assert images[0] == 0


def test_a_size_keeps_what_it_does_not_decide():
    given = UNetConfig(dropout=0.3, modulation="shift", in_channels=5, unshuffle=2)
    found = SIZES[1].of(given, 256)
    assert (found.dropout, found.modulation, found.in_channels) == (0.3, "shift", 5)
    assert found.unshuffle == 4  # blocks of 2×2 in 128 pixels, given blocks of 2×2
    assert found.levels == SIZES[1].of(UNetConfig(), 256).levels
    assert found == UNetConfig.model_validate(found.model_dump())


def test_a_training_of_more_images_takes_a_larger_size():
    for size, larger in itertools.pairwise(SIZES):
        assert size_for(size.images) == size_for(larger.images - 1) == size
    assert size_for(10**12) == SIZES[-1]


def test_auto_is_a_word_in_files_and_no_levels_in_memory():
    config = UNetConfig.model_validate({"levels": "auto"})
    assert config == UNetConfig()
    assert config.model_dump(mode="json")["levels"] == "auto"
    with pytest.raises(ValueError, match="large is neither a list of levels nor auto"):
        UNetConfig.model_validate({"levels": "large"})
