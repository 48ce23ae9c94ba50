import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import distance_transform_edt, label

from diffunet.data.borders import border_weights, class_balance, separate_touching


def equation_2(instances, w0, sigma):
    """Return the second term on the background, by distances to all instances in the whole map."""
    names = [n for n in np.unique(instances) if n > 0]
    if len(names) < 2:
        return np.zeros(instances.shape)
    d1, d2 = np.sort([distance_transform_edt(instances != n) for n in names], axis=0)[:2]
    return w0 * np.exp(-((d1 + d2) ** 2) / (2 * sigma**2)) * (instances == 0)


def blobs(shape, number, seed=0, radius=4):
    """Return balls at random places, later ones over earlier ones, with large numbers that have gaps."""
    rng = np.random.default_rng(seed)
    grid, instances = np.indices(shape), np.zeros(shape, dtype=np.int64)
    for _ in range(number):
        center = [rng.integers(0, side) for side in shape]
        inside = sum((axis - c) ** 2 for axis, c in zip(grid, center, strict=True)) < rng.uniform(1, radius) ** 2
        instances[inside] = rng.integers(1, 10**9)
    return instances


@pytest.mark.parametrize("shape", [(200,), (70, 90), (20, 24, 28)])
@pytest.mark.parametrize("sigma", [1.0, 5.0])
def test_weights_are_those_of_equation_2(shape, sigma):
    instances = blobs(shape, 25)
    weight = border_weights(instances, w0=10, sigma=sigma)
    assert weight.dtype == np.float32
    error = 1 + equation_2(instances, 10, sigma) - weight
    assert error.min() > -2e-6
    assert error.max() < 4e-6 * 10 + 2e-6  # the cutoff, and rounding to fp32
    assert weight.max() > 2


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.int64, hnp.array_shapes(min_dims=1, max_dims=3, max_side=12), elements=st.integers(0, 5)))
def test_weights_of_any_small_map_are_those_of_equation_2(instances):
    np.testing.assert_allclose(border_weights(instances, sigma=2.0), 1 + equation_2(instances, 10, 2.0), atol=5e-5)


def test_the_weight_between_two_lines_has_a_closed_form():
    instances = np.zeros((9, 60), dtype=np.int32)
    instances[:, 20], instances[:, 27] = 4, 9
    weight = border_weights(instances, w0=7, sigma=3)
    np.testing.assert_allclose(weight[4, 21:27], 1 + 7 * np.exp(-(7**2) / 18), rtol=1e-6)
    np.testing.assert_allclose(weight[4, 28:34], 1 + 7 * np.exp(-((2 * np.arange(1, 7) + 7) ** 2) / 18), rtol=1e-6)
    assert weight[4, 20] == weight[4, 27] == 1


def test_one_instance_has_no_border():
    for instances in (np.zeros((8, 8), int), blobs((30, 30), 1)):
        assert (border_weights(instances) == 1).all()


def test_class_weights_are_added_and_unlabeled_places_have_none():
    instances = blobs((40, 40), 9)
    instances[:, 30:] = -1
    w_c = class_balance([(instances == 0).sum(), (instances > 0).sum()])[(instances > 0).astype(int)]
    weight = border_weights(instances, class_weight=w_c)
    labeled = instances >= 0
    np.testing.assert_allclose(weight[labeled], (w_c + equation_2(instances, 10, 5))[labeled], atol=5e-5)
    assert (weight[~labeled] == 0).all()


def test_components_beside_membranes_are_instances():
    target = np.ones((30, 30), dtype=int)
    target[10], target[:, 12] = 0, 0
    instances, number = label(target != 0)
    assert number == 4
    np.testing.assert_allclose(border_weights(instances)[10, :8], 1 + 10 * np.exp(-(2**2) / 50), rtol=1e-6)


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.int32, hnp.array_shapes(min_dims=1, max_dims=3, max_side=8), elements=st.integers(-1, 4)))
def test_separated_instances_do_not_touch(instances):
    separated = separate_touching(instances)
    kept = separated == instances
    assert (separated[~kept] == 0).all()
    assert kept[instances <= 0].all()
    padded, original = np.pad(separated, 1), np.pad(instances, 1)
    inner = tuple(slice(1, -1) for _ in instances.shape)
    needed = np.zeros(instances.shape, dtype=bool)
    for offset in np.ndindex(*(3,) * instances.ndim):
        shift = tuple(o - 1 for o in offset)
        neighbor, before = (np.roll(x, shift, range(x.ndim))[inner] for x in (padded, original))
        assert not ((separated > 0) & (neighbor > 0) & (separated != neighbor)).any()
        needed |= (instances > 0) & (before > 0) & (before != instances)
    assert not (~kept & ~needed).any()  # nothing away from borders is lost


def test_the_line_is_one_pixel_wide_and_taken_from_the_larger_instance():
    instances = np.full((8, 10), 5, dtype=np.uint16)
    instances[:, 7:] = 900
    expected = instances.copy()
    expected[:, 6] = 0
    separated = separate_touching(instances)
    np.testing.assert_array_equal(separated, expected)
    assert separated.dtype == np.uint16
    point = np.full((5, 5), 1)
    point[2, 2] = 2
    assert separate_touching(point)[2, 2] == 2
    assert label(separate_touching(instances), np.ones((3, 3)))[1] == 2


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=6).filter(any))
def test_class_weights_have_mean_one_and_give_each_class_the_same_share(counts):
    counts, weights = np.array(counts), class_balance(counts)
    assert (weights * counts).sum() / counts.sum() == pytest.approx(1)
    shares = (weights * counts)[counts > 0]
    np.testing.assert_allclose(shares, shares[0])
    assert (weights[counts == 0] == weights.max()).all()


def test_counts_without_labels_are_an_error():
    with pytest.raises(ValueError, match="no labeled place"):
        class_balance([0, 0])
