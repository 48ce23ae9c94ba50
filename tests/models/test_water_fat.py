import pytest
import torch

from diffunet.core.water_fat import MAPS
from diffunet.models.config import LevelConfig, UNetConfig
from diffunet.models.unet import UNet
from diffunet.models.water_fat import WaterFat


def network(outputs: int = 6) -> UNet:
    levels = tuple(LevelConfig(channels=8, blocks=1) for _ in range(2))
    return UNet(UNetConfig(in_channels=6, out_channels=outputs, levels=levels, middle_attention=False))


def test_maps_are_possible_in_whole_and_in_tiles():
    torch.manual_seed(0)
    model = WaterFat(network()).normalized(output_std=torch.full((6,), 1e4), field_range=torch.tensor(200.0))
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.3)
    image = torch.randn(1, 6, 32, 32)
    with torch.no_grad():
        whole, tiled = model(image), model.tiled(32)(image)
    assert whole.shape == (1, len(MAPS), 32, 32)
    assert 100 < whole[:, 4].abs().max() <= 200
    assert whole[:, 5].min() >= 0
    assert whole[:, :4].abs().max() > 300
    torch.testing.assert_close(tiled, whole)
    assert "field_range" in model.state_dict()


def test_other_numbers_of_maps_are_refused():
    with pytest.raises(ValueError, match="6 maps"):
        WaterFat(network(5))
