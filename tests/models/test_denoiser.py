import pytest
import torch
from helpers import randomised, small_unet

from diffunet.models.conditioning import PlaneEmbedding, TimeEmbedding, VectorEmbedding
from diffunet.models.denoiser import ConditionsConfig, Denoiser, Guided
from diffunet.models.unet import UNet


@pytest.fixture
def denoiser():
    return randomised(Denoiser.from_config(small_unet(), ConditionsConfig(classes=3)))


X_T, T = torch.randn(4, 3, 8, 8), torch.tensor([1, 50, 500, 999])
LABEL = torch.tensor([0, 1, 2, 0])


def test_withholding_is_not_telling(denoiser):
    told = torch.tensor([True, False, True, False])
    mixed = denoiser(X_T, T, told=told, label=LABEL)
    expected = torch.where(told[:, None, None, None], denoiser(X_T, T, label=LABEL), denoiser(X_T, T))
    torch.testing.assert_close(mixed, expected, atol=1e-6, rtol=0)
    assert not torch.allclose(denoiser(X_T, T, label=LABEL), denoiser(X_T, T), atol=1e-3)


def test_conditions_are_withheld_one_by_one():
    unet = UNet(small_unet(plane_channels=2))
    embeddings = {"pose": VectorEmbedding(32, width=4), "sketch": PlaneEmbedding(channels=1)}
    denoiser = randomised(Denoiser(unet, TimeEmbedding(32, 8), **embeddings))
    pose, sketch = torch.randn(4, 4), torch.randn(4, 1, 8, 8)
    told = {"pose": torch.tensor([True, True, False, False]), "sketch": torch.tensor([True, False, True, False])}
    found = denoiser(X_T, T, told=told, pose=pose, sketch=sketch)
    for index, conditions in enumerate(({"pose": pose, "sketch": sketch}, {"pose": pose}, {"sketch": sketch}, {})):
        expected = denoiser(X_T, T, **conditions)
        torch.testing.assert_close(found[index], expected[index], atol=1e-6, rtol=0)
        others = [other for other in range(4) if other != index]
        assert not torch.isclose(found[others], expected[others], atol=1e-3).flatten(1).all(1).any()
    with pytest.raises(TypeError, match="no embedding for condition scetch; did you mean sketch?"):
        denoiser(X_T, T, told={"scetch": told["sketch"]})


def test_without_a_vector_there_is_no_time():
    with pytest.raises(ValueError, match="vector_dim is 0, .*; try 32"):
        Denoiser.from_config(small_unet(vector_dim=0), ConditionsConfig())


def test_a_condition_without_embedding_is_refused_with_the_nearest(denoiser):
    with pytest.raises(TypeError, match="no embedding for condition lable; did you mean label?"):
        denoiser(X_T, T, lable=LABEL)


def test_guidance_is_the_equation(denoiser):
    t = torch.tensor(500)
    conditional, unconditional = denoiser(X_T, t, label=LABEL), denoiser(X_T, t)
    for scale in (0.0, 1.0, 2.5):
        guided = Guided(denoiser, scale)(X_T, t, label=LABEL)
        torch.testing.assert_close(guided, unconditional + scale * (conditional - unconditional), atol=1e-5, rtol=1e-5)


def test_autoguidance_is_the_equation_told_the_same(denoiser):
    torch.manual_seed(1)
    guide = randomised(Denoiser.from_config(small_unet(), ConditionsConfig(classes=3)))
    t = torch.tensor(500)
    better, worse = denoiser(X_T, t, label=LABEL), guide(X_T, t, label=LABEL)
    found = Guided(denoiser, 2.5, guide=guide)(X_T, t, label=LABEL)
    torch.testing.assert_close(found, worse + 2.5 * (better - worse), atol=1e-5, rtol=1e-5)


def test_a_distortion_is_told_and_none_is_nothing():
    config = ConditionsConfig(classes=3, augmentation=8)
    denoiser = randomised(Denoiser.from_config(small_unet(), config))
    plain = denoiser(X_T, T, label=LABEL)
    torch.testing.assert_close(denoiser(X_T, T, label=LABEL, augmentation=torch.zeros(4, 8)), plain)
    distorted = denoiser(X_T, T, label=LABEL, augmentation=torch.ones(4, 8))
    assert not torch.allclose(distorted, plain, atol=1e-3)
    never = torch.zeros(4, dtype=torch.bool)                                   # withholds the label, not what happened
    withheld = denoiser(X_T, T, told=never, label=LABEL, augmentation=torch.ones(4, 8))
    torch.testing.assert_close(withheld, denoiser(X_T, T, augmentation=torch.ones(4, 8)))


def test_guidance_only_in_its_interval(denoiser):
    guided = Guided(denoiser, 3.0, interval=(200, 800))
    for t, inside in ((199, False), (200, True), (800, True), (801, False)):
        same = torch.equal(guided(X_T, torch.tensor(t), label=LABEL), denoiser(X_T, torch.tensor(t), label=LABEL))
        assert same != inside
