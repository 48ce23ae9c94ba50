"""Mirrored positions against numpy."""

import numpy as np
import pytest
import torch

from diffunet.core.reflect import reflect_index


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_positions_beyond_the_edges_are_those_of_numpy(size):
    found = reflect_index(torch.arange(-20, size + 20), size)
    assert found.tolist() == np.pad(np.arange(size), 20, mode="reflect").tolist()
