import pytest
import torch
from conftest import randomised, small_unet

from diffunet.denoiser import ConditionsConfig, Denoiser, Guided


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


def test_a_condition_without_embedding_is_refused_with_the_nearest(denoiser):
    with pytest.raises(TypeError, match="no embedding for condition lable; did you mean label?"):
        denoiser(X_T, T, lable=LABEL)


def test_guidance_is_the_equation(denoiser):
    t = torch.tensor(500)
    conditional, unconditional = denoiser(X_T, t, label=LABEL), denoiser(X_T, t)
    for scale in (0.0, 1.0, 2.5):
        guided = Guided(denoiser, scale)(X_T, t, label=LABEL)
        torch.testing.assert_close(guided, unconditional + scale * (conditional - unconditional), atol=1e-5, rtol=1e-5)


def test_guidance_only_in_its_interval(denoiser):
    guided = Guided(denoiser, 3.0, interval=(200, 800))
    for t, inside in ((199, False), (200, True), (800, True), (801, False)):
        same = torch.equal(guided(X_T, torch.tensor(t), label=LABEL), denoiser(X_T, torch.tensor(t), label=LABEL))
        assert same != inside
