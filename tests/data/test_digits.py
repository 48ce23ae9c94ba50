import numpy as np
import pytest
import torch

from diffunet.data.digits import (
    CAPTIONS,
    CLASSES,
    SLANTS,
    WEIGHTS,
    caption_of,
    digit_images,
    digit_table,
    load_digits,
    measure,
    words_of,
)


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits as expected

    levels, classes = load_digits()
    assert np.array_equal(levels, expected().images)
    assert np.array_equal(classes, expected().target)
    assert (digit_images().amin(), digit_images().amax()) == (0, 255)


def test_measured_words_of_a_digit_are_those_of_its_caption():
    table, (_, classes) = digit_table(), load_digits()
    words = words_of(**measure(digit_images() / 255), classes=classes)
    requested = [CAPTIONS[caption] for caption in table.values("caption")]
    assert [(digit, *pair) for digit, pair in zip(classes.tolist(), words, strict=True)] == requested
    assert table.values("label") == classes.tolist()


def test_every_word_has_a_third_of_every_class_and_every_combination_has_examples():
    requested = [CAPTIONS[caption] for caption in digit_table().values("caption")]
    assert set(requested) == set(CAPTIONS.values())
    for digit in range(10):
        own = [words for words in requested if words[0] == digit]
        for axis, known in ((1, WEIGHTS), (2, SLANTS)):
            shares = [sum(words[axis] == word for words in own) / len(own) for word in known]
            np.testing.assert_allclose(shares, 1 / 3, atol=0.01)


def test_captions_are_english():
    assert len(CAPTIONS) == 90
    assert caption_of(7, "bold", "leaning right") == "a bold seven leaning right"
    assert caption_of(2, "regular", "upright") == "an upright two"
    assert caption_of(1, "regular", "leaning left") == "a one leaning left"
    assert caption_of(8, "regular", "leaning left") == "an eight leaning left"
    assert caption_of(8, "thin", "upright") == "a thin upright eight"
    assert all(sum(name in caption.split() for name in CLASSES) == 1 for caption in CAPTIONS)


@pytest.mark.parametrize("shear", [-1, -0.5, 0, 0.5, 1])
def test_slant_is_the_shear_of_a_sheared_bar(shear):
    """Each row of an upright bar is moved to the right by `shear` pixels for each row that it is higher."""
    image = torch.zeros(1, 1, 21, 41)
    for row in range(21):
        place = 20 + shear * (10 - row)
        low = int(np.floor(place))
        image[0, 0, row, low], image[0, 0, row, low + 1] = 1 - (place - low), place - low
    assert measure(image)["slant"].item() == pytest.approx(shear, abs=1e-6)


def test_shearing_real_digits_adds_to_their_slant():
    wide = torch.nn.functional.pad(digit_images() / 255, (8, 8))
    sheared = torch.stack([wide[:, :, row].roll(3 - row, -1) for row in range(8)], dim=2)
    torch.testing.assert_close(measure(sheared)["slant"], measure(wide)["slant"] + 1, atol=1e-6, rtol=0)


def test_slant_depends_neither_on_brightness_nor_on_place():
    images = torch.nn.functional.pad(digit_images()[:50] / 255, (4, 4, 4, 4))
    moved = images.roll((2, -3), (2, 3))
    torch.testing.assert_close(measure(moved / 2)["slant"], measure(images)["slant"], atol=1e-6, rtol=0)


def test_ink_grows_with_the_brightness_and_with_the_strokes():
    images = digit_images() / 255
    thicker = torch.nn.functional.max_pool2d(images, 3, stride=1, padding=1)
    assert (measure(thicker)["ink"] > measure(images)["ink"]).all()
    torch.testing.assert_close(measure(images / 2)["ink"], measure(images)["ink"] / 2)


def test_blank_image_has_neither_ink_nor_slant():
    assert {name: value.item() for name, value in measure(torch.zeros(1, 1, 8, 8)).items()} == {"ink": 0, "slant": 0}


def test_words_follow_ink_and_slant_within_the_class():
    """A digit with more ink, or more slant, is never called thinner, or more to the left; sevens lean as sevens do."""
    classes = torch.full((100,), 7)
    words = words_of(torch.linspace(0.1, 0.6, 100), torch.linspace(-1, 1, 100), classes)
    for axis, known in enumerate((WEIGHTS, SLANTS)):
        places = [known.index(pair[axis]) for pair in words]
        assert places == sorted(places)
        assert set(places) == {0, 1, 2}
    typical = torch.tensor([0.14, 0.14], dtype=torch.float64)
    assert [slant for _, slant in words_of(typical, typical, torch.tensor([7, 6]))] == ["upright", "leaning right"]
