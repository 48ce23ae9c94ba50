import pytest
import torch

from diffunet.core.errors import UserError
from diffunet.core.rng import BatchRNG
from diffunet.core.settings import settings_from
from diffunet.data.columns import Column
from diffunet.data.config import DataConfig
from diffunet.data.dataset import ImageDataset
from diffunet.evaluation.classifier import (
    ClassificationLoss,
    Classifier,
    ClassifierConfig,
    accuracy_of,
    load_classifier,
    random_shift,
    save_classifier,
)

CONFIG = ClassifierConfig(shape=[1, 8, 8], class_names=("a", "b", "c"), blocks=[1, 1, 1, 1])


def test_save_and_load_roundtrip(tmp_path):
    model = Classifier(CONFIG).eval()
    save_classifier(model, 0.5, tmp_path)
    loaded = load_classifier(tmp_path)
    image = torch.randn(5, 1, 8, 8)
    assert torch.equal(loaded(image), model(image))
    assert loaded.config.accuracy == 0.5
    assert loaded.features(image).shape == (5, 512)
    torch.testing.assert_close(loaded.head(loaded.features(image)), loaded(image))


def test_accuracy():
    model = Classifier(CONFIG).eval()
    image = torch.randn(30, 1, 8, 8)
    predicted = model(image).argmax(1)
    assert accuracy_of(model, image, predicted) == 1
    assert accuracy_of(model, image, (predicted + 1) % 3) == 0


def test_shifts_are_whole_pixels_reflected_at_the_border():
    image = torch.arange(16.0).reshape(1, 1, 1, 16).expand(500, 1, 16, 16)
    found = random_shift(image, BatchRNG(torch.Generator().manual_seed(0)))[:, 0]
    assert (found == found[:, :1]).all()  # rows of this image are equal
    shifts = found[:, 0, 8] - 8
    assert shifts.unique().tolist() == [-2, -1, 0, 1, 2]
    left = found[shifts == -2][0, 0]
    assert left[:4].tolist() == [2, 1, 0, 1]
    right = found[shifts == 2][0, 0]
    assert right[-4:].tolist() == [14, 15, 14, 13]


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"blocks": "[1, 1]"}, "--blocks: .*at least 4 items"),
        ({"blocks": "[1, 1, 1, 1, 1]"}, "--blocks: .*at most 4 items"),
        ({"blocks": "[1, 1, 0, 1]"}, "--blocks: .*greater than or equal to 1"),
        ({"shape": "[8, 8]"}, "--shape: .*at least 3 items"),
    ],
)
def test_impossible_sizes_are_errors_of_validation(flags, problem):
    with pytest.raises(UserError, match=problem):
        settings_from(CONFIG, ClassifierConfig, flags)


def test_augmented_data_train_a_classifier():
    """The augment labels of a batch are ignored."""
    pixels, labels = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8), torch.tensor([0, 1, 2, 0, 1, 2])
    config = DataConfig(resolution=8, channels=1, bit_depth=8, augmentation=0.5)
    data = ImageDataset(config, pixels, {"label": Column(labels)})
    batch = data.prepare(data.__getitems__(list(range(6))), BatchRNG())
    assert "augmentation" in batch
    found = ClassificationLoss().loss(Classifier(CONFIG), **batch, rng=BatchRNG())
    assert found["loss"].shape == found["accuracy"].shape == (6,)
