import pytest
import torch

from diffunet.core.complex_channels import to_channels, to_complex
from diffunet.core.errors import UserError


@pytest.mark.parametrize("size", [(5,), (3, 4), (2, 3, 4)])
def test_real_and_imaginary_parts_alternate(size):
    image = torch.randn(2, 6, *size)
    echoes = to_complex(image)
    assert echoes.shape == (2, 3, *size)
    for number in range(3):
        assert torch.equal(echoes[:, number].real, image[:, 2 * number])
        assert torch.equal(echoes[:, number].imag, image[:, 2 * number + 1])
    assert torch.equal(to_channels(echoes), image)
    assert torch.equal(to_channels(echoes.conj())[:, 1::2], -image[:, 1::2])


def test_an_odd_number_of_channels_is_refused():
    with pytest.raises(UserError, match="got 3 channels"):
        to_complex(torch.zeros(1, 3, 4, 4))
