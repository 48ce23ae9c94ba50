"""The best linear prediction against numpy's least squares."""

import numpy as np
import torch

from diffunet.data.cases import Case
from diffunet.data.linear import fit_linear


def cases(noise: float = 0.3) -> list[Case]:
    """Return two cases of three channels, of which the last is constant, and two numbers; some places are unknown."""
    found = []
    for name, size in (("a", (9, 8)), ("b", (5, 7))):
        image = 100 * torch.randn(3, *size) + 1000
        image[2] = 7
        target = torch.stack([2 * image[0] - image[1], 3 + 0.5 * image[1]]) + noise * torch.randn(2, *size)
        target[1, 0, :3] = torch.nan
        found.append(Case(name, image, target))
    return found


def test_it_is_that_of_least_squares():
    some = cases()
    x = np.concatenate([case.image.flatten(1).T.double() for case in some])
    y = np.concatenate([case.target.flatten(1).T.double() for case in some])
    keep = ~np.isnan(y).any(1)
    design = np.concatenate([x[keep, :2], np.ones((keep.sum(), 1))], 1)
    expected, *_ = np.linalg.lstsq(design, y[keep], rcond=None)
    found = fit_linear(some)
    np.testing.assert_allclose(found.matrix[:, :2], expected[:2].T, rtol=1e-4)
    np.testing.assert_allclose(found.matrix[:, 2], 0, atol=1e-6)  # a constant channel
    np.testing.assert_allclose(found.offset, expected[2], rtol=1e-3)
    error = np.sqrt(np.mean((design @ expected - y[keep]) ** 2, 0))
    np.testing.assert_allclose(found.error, error, rtol=1e-4)


def test_channels_that_others_determine_change_nothing():
    some = cases(noise=0)
    twice = [Case(case.name, torch.cat([case.image, case.image[:1] * 2 + 3]), case.target) for case in some]
    for one, two in zip(some, twice, strict=True):
        predicted = fit_linear(twice)(two.image)
        known = ~one.target.isnan()
        torch.testing.assert_close(predicted[known], one.target[known], rtol=1e-4, atol=1e-1)
    assert fit_linear(twice).error.max() < 1e-2


def test_without_a_known_place_it_is_zero():
    unknown = [Case("a", torch.randn(2, 4, 4), torch.full((1, 4, 4), torch.nan))]
    found = fit_linear(unknown)
    assert not found.matrix.any() and not found.offset.any() and not found.error.any()
