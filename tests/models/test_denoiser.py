import pytest
import torch
from helpers import randomized, small_unet

from diffunet.conditions.augmentation import AugmentationConfig
from diffunet.conditions.label import LabelConfig
from diffunet.models.conditioning import PlaneEmbedding, TimeEmbedding, VectorEmbedding
from diffunet.models.denoiser import Denoiser, TimeConfig
from diffunet.models.unet import UNet

LABELS = {"label": LabelConfig(num_classes=3)}
X_T, T = torch.randn(4, 3, 8, 8), torch.tensor([1, 50, 500, 999])
LABEL = torch.tensor([0, 1, 2, 0])


@pytest.fixture
def denoiser():
    return randomized(Denoiser.from_config(small_unet(), LABELS))


def test_dropped_label_equals_absent_label(denoiser):
    keep = torch.tensor([True, False, True, False])
    mixed = denoiser(X_T, T, keep_masks={"label": keep}, label=LABEL)
    expected = torch.where(keep[:, None, None, None], denoiser(X_T, T, label=LABEL), denoiser(X_T, T))
    torch.testing.assert_close(mixed, expected, atol=1e-6, rtol=0)
    assert not torch.allclose(denoiser(X_T, T, label=LABEL), denoiser(X_T, T), atol=1e-3)


def test_conditions_are_dropped_one_by_one():
    unet = UNet(small_unet(plane_channels=2))
    embeddings = {"pose": VectorEmbedding(32, width=4), "sketch": PlaneEmbedding(channels=1)}
    denoiser = randomized(Denoiser(unet, TimeEmbedding(32, 8), **embeddings))
    pose, sketch = torch.randn(4, 4), torch.randn(4, 1, 8, 8)
    keep = {"pose": torch.tensor([True, True, False, False]), "sketch": torch.tensor([True, False, True, False])}
    found = denoiser(X_T, T, keep, pose=pose, sketch=sketch)
    for index, conditions in enumerate(({"pose": pose, "sketch": sketch}, {"pose": pose}, {"sketch": sketch}, {})):
        expected = denoiser(X_T, T, **conditions)
        torch.testing.assert_close(found[index], expected[index], atol=1e-6, rtol=0)
        others = [other for other in range(4) if other != index]
        assert not torch.isclose(found[others], expected[others], atol=1e-3).flatten(1).all(1).any()
    with pytest.raises(TypeError, match="no embedding for condition scetch; did you mean sketch?"):
        denoiser(X_T, T, {"scetch": keep["sketch"]})


def test_condition_without_embedding_is_an_error_with_the_nearest_name(denoiser):
    with pytest.raises(TypeError, match="no embedding for condition lable; did you mean label?"):
        denoiser(X_T, T, lable=LABEL)


def test_zero_augmentation_equals_none_and_is_never_dropped():
    denoiser = randomized(Denoiser.from_config(small_unet(), LABELS | {"augmentation": AugmentationConfig(width=8)}))
    plain = denoiser(X_T, T, label=LABEL)
    torch.testing.assert_close(denoiser(X_T, T, label=LABEL, augmentation=torch.zeros(4, 8)), plain)
    augmented = denoiser(X_T, T, label=LABEL, augmentation=torch.ones(4, 8))
    assert not torch.allclose(augmented, plain, atol=1e-3)
    never = dict.fromkeys(("label", "augmentation"), torch.zeros(4, dtype=torch.bool))
    dropped = denoiser(X_T, T, never, label=LABEL, augmentation=torch.ones(4, 8))
    torch.testing.assert_close(dropped, denoiser(X_T, T, augmentation=torch.ones(4, 8)))


def test_from_config_keeps_the_names_of_old_weights():
    conditions = {"label": LabelConfig(num_classes=3), "augmentation": AugmentationConfig(width=2)}
    denoiser = Denoiser.from_config(small_unet(), conditions, TimeConfig(freq_shift=1))
    shapes = {name: tuple(tensor.shape) for name, tensor in denoiser.state_dict().items()}
    assert shapes["embeddings.label.table.weight"] == (4, 32)
    assert shapes["embeddings.augmentation.project.weight"] == (32, 2)
    assert shapes["time.mlp.0.weight"] == (32, 8)
    assert denoiser.time.frequencies[-1].item() == pytest.approx(1e-4)


def test_incomplete_configurations_are_errors():
    with pytest.raises(ValueError, match="unet.vector_dim: 0, .*; try 32"):
        Denoiser.from_config(small_unet(vector_dim=0))
    with pytest.raises(ValueError, match="unet.levels: empty"):
        Denoiser.from_config(small_unet(levels=()))
    with pytest.raises(ValueError, match="conditions.breed.num_classes: not set"):
        Denoiser.from_config(small_unet(), {"breed": LabelConfig()})
