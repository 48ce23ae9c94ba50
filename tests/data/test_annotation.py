"""Labels on some slices of a volume."""

import numpy as np
import pytest

from diffunet.data.annotation import keep_slices
from diffunet.data.labels import UNKNOWN
from diffunet.data.phantoms.registry import PHANTOMS


@pytest.mark.parametrize("slices", [1, 3, (2, 0, 1), (0, 0, 0), 100])
def test_sparse_targets_have_whole_slices_and_nothing_else(slices):
    target = PHANTOMS["tubules"].generate(0, (24, 32, 20)).target.astype(np.int16)
    for seed in range(20):
        check_slices(target, keep_slices(target, np.random.default_rng(seed), slices), slices)


def check_slices(target: np.ndarray, found: np.ndarray, slices: int | tuple[int, int, int]) -> None:
    assert found.dtype == target.dtype
    labeled = found != UNKNOWN
    assert np.array_equal(found[labeled], target[labeled])
    numbers = (slices,) * 3 if isinstance(slices, int) else slices
    expected = np.zeros(target.shape, bool)
    for axis, number in enumerate(numbers):
        others = tuple(other for other in range(3) if other != axis)
        full = labeled.all(axis=others)
        assert full.sum() == min(number, target.shape[axis])
        if 1 < number < target.shape[axis]:  # in each part of the axis
            assert np.diff(np.flatnonzero(full)).max() < 2 * target.shape[axis] / number
        expected |= np.expand_dims(full, others)
    assert np.array_equal(labeled, expected)
