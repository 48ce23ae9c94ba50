import io

import numpy as np
import pytest
import torch
from PIL import Image

from diffunet.data.decoding import decode
from diffunet.runs.samples import encode_image


def random_pixels(channels, bit_depth):
    generator = torch.Generator().manual_seed(channels)
    if bit_depth == 32:
        return torch.rand(channels, 5, 7, generator=generator)
    dtype = torch.uint8 if bit_depth == 8 else torch.int32
    return torch.randint(0, 2**bit_depth, (channels, 5, 7), generator=generator, dtype=dtype)


@pytest.mark.parametrize("bit_depth", [8, 16, 32])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 12])
def test_every_kind_of_image_is_read_back_exactly(channels, bit_depth):
    pixels = random_pixels(channels, bit_depth)
    suffix, content = encode_image(pixels, bit_depth)
    png = (bit_depth == 8 and channels in (1, 3, 4)) or (bit_depth, channels) == (16, 1)
    assert suffix == (".png" if png else ".npy")
    assert torch.equal(decode({"bytes": content, "path": None}, channels, bit_depth), pixels)
    file = io.BytesIO(content)
    values = np.array(Image.open(file)) if png else np.load(file)
    assert np.array_equal(values.reshape(5, 7, channels), pixels.permute(1, 2, 0))


def test_float_pixels_are_written_in_the_units_of_the_data():
    pixels, value_range = random_pixels(1, 32), (-1000.0, 3000.0)
    _, content = encode_image(pixels, 32, value_range)
    values = np.load(io.BytesIO(content))
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, -1000 + 4000 * pixels[0].double(), rtol=1e-6)
    torch.testing.assert_close(decode({"bytes": content, "path": None}, 1, 32, value_range), pixels)
