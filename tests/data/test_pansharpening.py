import pytest
import torch

from diffunet.data.pansharpening import brovey, degraded, enlarged, wald_pair
from diffunet.data.phantoms.registry import PHANTOMS


def ramp(height: int, width: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([100 + 2.0 * x + y, 300 - 1.0 * x]).float()


def test_coarse_bands_keep_the_mean_and_linear_ramps():
    bands = ramp(32, 48)
    coarse = degraded(bands)
    assert coarse.shape == bands.shape
    torch.testing.assert_close(coarse[:, 12:-12, 12:-12], bands[:, 12:-12, 12:-12], atol=0.05, rtol=0)
    checkers = (torch.arange(32)[:, None] + torch.arange(32)) % 2 * 1.0
    assert degraded(checkers[None])[0, 8:-8, 8:-8].std() < 0.01  # finer detail is gone
    assert degraded(checkers[None]).mean() == pytest.approx(0.5, abs=0.01)


def test_the_target_is_the_truth_and_the_image_has_the_panchromatic_one_first():
    bands = ramp(16, 16)
    image, target = wald_pair(bands)
    assert torch.equal(target, bands)
    assert torch.equal(image[0], bands.mean(0))
    assert torch.equal(image[1:], degraded(bands))
    pan = torch.rand(1, 16, 16)
    assert torch.equal(wald_pair(bands, pan)[0][:1], pan)


def test_brovey_is_exact_where_only_the_brightness_varies():
    shade = 1 + torch.rand(16, 16)
    bands = torch.tensor([2.0, 3.0, 5.0])[:, None, None] * shade
    image, target = wald_pair(bands)
    torch.testing.assert_close(brovey(image), target)


def test_a_ratio_that_does_not_divide_the_sides_is_an_error():
    with pytest.raises(ValueError, match="ratio 4 does not divide 30×32 pixels"):
        degraded(torch.rand(2, 30, 32))
    assert enlarged(torch.rand(2, 5, 6), 4).shape == (2, 20, 24)


def test_the_built_in_set_is_such_a_pair():
    image, target, names = PHANTOMS["bands"].generate(0)
    assert image.shape == (5, 256, 256)
    assert target.shape == (4, 256, 256)
    assert len(names) == 4
    expected, _ = wald_pair(torch.from_numpy(target) * 10000)
    assert (torch.from_numpy(image.astype("float32")) - expected.clamp(0)).abs().max() <= 0.51
