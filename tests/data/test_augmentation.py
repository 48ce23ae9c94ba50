import pytest
import torch

from diffunet.data.augmentation import KINDS, distort
from diffunet.core.rng import BatchRNG

IMAGE = torch.randn(400, 1, 9, 13, generator=torch.Generator().manual_seed(0))


def distorted(probability: float, image=IMAGE):
    return distort(image, probability, BatchRNG(torch.Generator().manual_seed(0)))


def test_nothing_said_is_nothing_done():
    image, told = distorted(0.1)
    untouched = (told == 0).all(1)
    assert 50 < untouched.sum() < 350
    assert torch.equal(image[untouched], IMAGE[untouched])
    changed = (image != IMAGE).flatten(1).any(1)
    assert torch.equal(changed, ~untouched)
    assert torch.equal(distorted(0.0)[0], IMAGE)
    assert told.shape == (400, KINDS)


def test_each_kind_happens_as_often_as_asked():
    _, told = distorted(0.3, torch.zeros(20_000, 1, 4, 4))
    rates = (told != 0).float().mean(0)
    expected = [0.15, 0.15, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3]            # a chosen mirroring is done half the time
    assert rates.tolist() == pytest.approx(expected, abs=0.02)
    spread = told[told[:, 6] != 0, 6].std()
    assert spread == pytest.approx(1, abs=0.05)


def only(told: torch.Tensor, kind: int) -> torch.Tensor:
    """Images to which nothing but this was done."""
    others = [k for k in range(KINDS) if k != kind]
    return (told[:, kind] != 0) & (told[:, others] == 0).all(1)


def test_mirroring_is_a_flip():
    image, told = distorted(0.2)
    for kind, axis in ((0, -1), (1, -2)):
        chosen = only(told, kind)
        assert chosen.any()
        torch.testing.assert_close(image[chosen], IMAGE[chosen].flip(axis), atol=1e-5, rtol=0)


def ramp(axis: int) -> torch.Tensor:
    """Images whose values are the place along an axis, in half sides from the middle."""
    place = (2 * torch.arange(17) + 1) / 17 - 1
    shape = (17, 1) if axis == -2 else (1, 17)
    return place.reshape(shape).expand(4000, 1, 17, 17)


@pytest.mark.parametrize("axis", [-1, -2])
def test_zoom_and_stretch_are_the_told_powers_of_two(axis):
    """Read off the slope of a ramp in the middle of the picture."""
    image, told = distorted(0.2, ramp(axis))
    slope = (image.select(axis, 9) - image.select(axis, 7))[:, 0, 8] / (4 / 17)
    for kind, sign in ((2, 1), (5, 1 if axis == -1 else -1)):
        chosen = only(told, kind)
        assert chosen.sum() > 20
        torch.testing.assert_close(slope[chosen], 2 ** (-0.2 * sign * told[chosen, kind]), atol=1e-4, rtol=1e-3)


def test_turns_keep_distances_and_are_told():
    image, told = distorted(0.2, ramp(-1))
    turned = (told[:, 4] != 0) & (told[:, [0, 1, 2, 5, 6, 7]] == 0).all(1)
    across = (image[:, 0, 8, 9] - image[:, 0, 8, 7]) / (4 / 17)
    down = (image[:, 0, 9, 8] - image[:, 0, 7, 8]) / (4 / 17)
    torch.testing.assert_close(across[turned], 1 + told[turned, 3], atol=1e-4, rtol=0)
    torch.testing.assert_close(down[turned].abs(), told[turned, 4].abs(), atol=1e-4, rtol=0)


def test_the_draws_belong_to_the_place_in_the_batch():
    whole, told = distorted(0.3)
    part = slice(100, 200)
    rng = BatchRNG(torch.Generator().manual_seed(0), part, 400)
    image, told_part = distort(IMAGE[part], 0.3, rng)
    torch.testing.assert_close(image, whole[part])
    assert torch.equal(told_part, told[part])
