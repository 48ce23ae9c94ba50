import pytest
import torch

from diffunet.core.complex_channels import to_channels, to_complex
from diffunet.core.water_fat import MAPS, signal_of_maps
from diffunet.models.config import LevelConfig, UNetConfig
from diffunet.models.unet import UNet
from diffunet.models.water_fat import WaterFat

TIMES = [1.2e-3, 2.2e-3, 3.2e-3]


def network(outputs: int = 3) -> UNet:
    levels = tuple(LevelConfig(channels=8, blocks=1) for _ in range(2))
    return UNet(UNetConfig(in_channels=6, out_channels=outputs, levels=levels, middle_attention=False))


def test_maps_are_possible_in_whole_and_in_tiles():
    torch.manual_seed(0)
    model = WaterFat(network(), TIMES, 3.0).normalized(
        output_std=torch.full((3,), 1e4), field_range=torch.tensor(200.0)
    )
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.3)
    image = torch.randn(1, 6, 32, 32)
    with torch.no_grad():
        whole, tiled = model(image), model.tiled(32)(image)
    assert whole.shape == (1, len(MAPS), 32, 32)
    assert 100 < whole[:, 4].abs().max() <= 200
    assert whole[:, 5].min() >= 0
    torch.testing.assert_close(tiled, whole)
    assert {"field_range", "output_std"} <= model.state_dict().keys()


def test_of_the_true_field_the_species_are_exact():
    """A network without weights predicts no field and the R2* of its bound, and water and fat of any phase follow."""
    model = WaterFat(network(), TIMES, 3.0)
    maps = torch.randn(2, 6, 8, 8)
    with torch.no_grad():
        maps[:, 4:] = model(torch.randn(2, 6, 8, 8))[:, 4:]
        found = model(to_channels(signal_of_maps(maps, TIMES, 3.0)))
    assert not found[:, 4].any()
    torch.testing.assert_close(found, maps, atol=1e-4, rtol=1e-4)


def test_other_numbers_of_channels_are_refused():
    with pytest.raises(ValueError, match="the field and R2"):
        WaterFat(network(6), TIMES, 3.0)
    with pytest.raises(ValueError, match=r"two or more, each of 2 channels \(got 2 and 6\)"):
        WaterFat(network(), TIMES[:2], 3.0)


def test_species_turn_with_the_phase_and_field_and_decay_do_not():
    """Whatever the phase of the first echo is in each voxel."""
    torch.manual_seed(0)
    model = WaterFat(network(), TIMES, 3.0)
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.1)
    echoes = torch.randn(2, 3, 8, 8, dtype=torch.complex64)
    turn = torch.polar(torch.ones(2, 1, 8, 8), 6 * torch.rand(2, 1, 8, 8))
    with torch.no_grad():
        before, after = model(to_channels(echoes)), model(to_channels(echoes * turn))
    torch.testing.assert_close(after[:, 4:], before[:, 4:], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(after[:, :4], to_channels(to_complex(before[:, :4]) * turn), atol=1e-3, rtol=1e-3)
    assert before[:, 4].std() > 1  # the weights count


def test_voxels_without_signal_give_finite_maps():
    with torch.no_grad():
        assert WaterFat(network(), TIMES, 3.0)(torch.zeros(1, 6, 8, 8)).isfinite().all()
