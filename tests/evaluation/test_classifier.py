import torch

from diffunet.evaluation.classifier import Classifier, ClassifierConfig, accuracy_of, load_classifier, save_classifier, shifted
from diffunet.core.rng import BatchRNG

CONFIG = ClassifierConfig(shape=[1, 8, 8], class_names=("a", "b", "c"), blocks=[1, 1, 1, 1])


def test_what_is_saved_comes_back(tmp_path):
    model = Classifier(CONFIG).eval()
    save_classifier(model, 0.5, tmp_path)
    loaded = load_classifier(tmp_path)
    image = torch.randn(5, 1, 8, 8)
    assert torch.equal(loaded(image), model(image))
    assert loaded.config.accuracy == 0.5
    assert loaded.features(image).shape == (5, 512)
    torch.testing.assert_close(loaded.head(loaded.features(image)), loaded(image))


def test_accuracy_counts():
    model = Classifier(CONFIG).eval()
    image = torch.randn(30, 1, 8, 8)
    named = model(image).argmax(1)
    assert accuracy_of(model, image, named) == 1
    assert accuracy_of(model, image, (named + 1) % 3) == 0


def test_shifts_are_whole_pixels_mirrored_at_the_border():
    image = torch.arange(16.0).reshape(1, 1, 1, 16).expand(500, 1, 16, 16)
    found = shifted(image, BatchRNG(torch.Generator().manual_seed(0)))[:, 0]
    assert (found == found[:, :1]).all()                                       # rows of this image are alike
    moves = found[:, 0, 8] - 8
    assert moves.unique().tolist() == [-2, -1, 0, 1, 2]
    left = found[moves == -2][0, 0]
    assert left[:4].tolist() == [2, 1, 0, 1]
    right = found[moves == 2][0, 0]
    assert right[-4:].tolist() == [14, 15, 14, 13]
