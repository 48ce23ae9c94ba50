import pytest
import torch

from diffunet.core.rng import BatchRNG
from diffunet.data.augmentation import KINDS, distort

IMAGE = torch.randn(400, 1, 9, 13, generator=torch.Generator().manual_seed(0))


def augment(probability: float, image=IMAGE):
    return distort(image, probability, BatchRNG(torch.Generator().manual_seed(0)))


def test_images_with_a_zero_label_are_unchanged():
    image, augment_labels = augment(0.1)
    untouched = (augment_labels == 0).all(1)
    assert 50 < untouched.sum() < 350
    assert torch.equal(image[untouched], IMAGE[untouched])
    changed = (image != IMAGE).flatten(1).any(1)
    assert torch.equal(changed, ~untouched)
    assert torch.equal(augment(0.0)[0], IMAGE)
    assert augment_labels.shape == (400, KINDS)


def test_each_kind_has_the_configured_probability():
    _, augment_labels = augment(0.3, torch.zeros(20_000, 1, 4, 4))
    rates = (augment_labels != 0).float().mean(0)
    expected = [0.15, 0.15, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3]  # a chosen flip is applied half the time
    assert rates.tolist() == pytest.approx(expected, abs=0.02)
    spread = augment_labels[augment_labels[:, 6] != 0, 6].std()
    assert spread == pytest.approx(1, abs=0.05)


def only(augment_labels: torch.Tensor, kind: int) -> torch.Tensor:
    """Return the mask of images with this transformation and no other."""
    others = [k for k in range(KINDS) if k != kind]
    return (augment_labels[:, kind] != 0) & (augment_labels[:, others] == 0).all(1)


def test_flips_equal_torch_flip():
    image, augment_labels = augment(0.2)
    for kind, axis in ((0, -1), (1, -2)):
        chosen = only(augment_labels, kind)
        assert chosen.any()
        torch.testing.assert_close(image[chosen], IMAGE[chosen].flip(axis), atol=1e-5, rtol=0)


def ramp(axis: int) -> torch.Tensor:
    """Return images whose values are the position along an axis, in half sides from the center."""
    place = (2 * torch.arange(17) + 1) / 17 - 1
    shape = (17, 1) if axis == -2 else (1, 17)
    return place.reshape(shape).expand(4000, 1, 17, 17)


@pytest.mark.parametrize("axis", [-1, -2])
def test_scale_and_anisotropy_are_powers_of_two_of_the_label(axis):
    """The slope of a ramp at the center of the image shows the scale."""
    image, augment_labels = augment(0.2, ramp(axis))
    slope = (image.select(axis, 9) - image.select(axis, 7))[:, 0, 8] / (4 / 17)
    for kind, sign in ((2, 1), (5, 1 if axis == -1 else -1)):
        chosen = only(augment_labels, kind)
        assert chosen.sum() > 20
        expected = 2 ** (-0.2 * sign * augment_labels[chosen, kind])
        torch.testing.assert_close(slope[chosen], expected, atol=1e-4, rtol=1e-3)


def test_rotations_keep_distances_and_match_their_label():
    image, augment_labels = augment(0.2, ramp(-1))
    rotated = (augment_labels[:, 4] != 0) & (augment_labels[:, [0, 1, 2, 5, 6, 7]] == 0).all(1)
    along_x = (image[:, 0, 8, 9] - image[:, 0, 8, 7]) / (4 / 17)
    along_y = (image[:, 0, 9, 8] - image[:, 0, 7, 8]) / (4 / 17)
    torch.testing.assert_close(along_x[rotated], 1 + augment_labels[rotated, 3], atol=1e-4, rtol=0)
    torch.testing.assert_close(along_y[rotated].abs(), augment_labels[rotated, 4].abs(), atol=1e-4, rtol=0)


def test_random_numbers_follow_the_position_in_the_batch():
    whole, augment_labels = augment(0.3)
    part = slice(100, 200)
    rng = BatchRNG(torch.Generator().manual_seed(0), part, 400)
    image, part_labels = distort(IMAGE[part], 0.3, rng)
    torch.testing.assert_close(image, whole[part])
    assert torch.equal(part_labels, augment_labels[part])
