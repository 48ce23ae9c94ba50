import pytest
import torch

from diffunet.core.errors import UserError
from diffunet.data.pixels import denormalize, normalize, to_8bit, to_16bit, to_unit


@pytest.mark.parametrize("bit_depth", [8, 16])
def test_denormalize_inverts_normalize(bit_depth):
    pixels = torch.arange(2**bit_depth).reshape(1, 1, -1, 16)
    image = normalize(pixels, bit_depth)
    assert image.min() == -1
    assert image.max() == 1
    assert torch.equal(denormalize(image, bit_depth).int(), pixels.int())
    torch.testing.assert_close(to_unit(pixels, bit_depth), (image + 1) / 2)


def test_denormalize_clips_and_rejects_nan():
    assert denormalize(torch.tensor([-3.0, 3.0]), 8).tolist() == [0, 255]
    with pytest.raises(UserError, match="not finite"):
        denormalize(torch.tensor([0.0, torch.nan]), 8)


def test_bit_depths_convert_both_ways():
    pixels = torch.arange(256, dtype=torch.uint8)
    assert to_16bit(pixels, 8)[[0, -1]].tolist() == [0, 65535]
    assert torch.equal(to_8bit(to_16bit(pixels, 8), 16), pixels)
    assert to_8bit(pixels, 8) is pixels


def test_pixels_of_32_bits_are_floats_from_0_to_1():
    pixels = torch.linspace(0, 1, 9)
    assert normalize(pixels, 32).tolist() == torch.linspace(-1, 1, 9).tolist()
    assert torch.equal(denormalize(normalize(pixels, 32), 32), pixels)
    assert denormalize(torch.tensor([-3.0, 3.0]), 32).tolist() == [0, 1]
    assert torch.equal(to_unit(pixels, 32), pixels)
    assert to_8bit(pixels, 32).tolist() == (pixels * 255).round().int().tolist()
    assert to_16bit(pixels, 32).tolist() == (pixels * 65535).round().int().tolist()
