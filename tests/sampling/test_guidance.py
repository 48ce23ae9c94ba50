import pytest
import torch
from helpers import randomized, small_unet

from diffunet.conditions.label import LabelConfig
from diffunet.models.denoiser import Denoiser
from diffunet.sampling.guidance import Guided

X_T, T = torch.randn(4, 3, 8, 8), torch.tensor(500)
LABEL = torch.tensor([0, 1, 2, 0])


def conditional() -> Denoiser:
    return randomized(Denoiser.from_config(small_unet(), {"label": LabelConfig(num_classes=3)}))


@pytest.fixture
def denoiser():
    return conditional()


def test_classifier_free_guidance_is_the_equation(denoiser):
    kept, dropped = denoiser(X_T, T, label=LABEL), denoiser(X_T, T)
    for scale in (0.0, 1.0, 2.5):
        found = Guided(denoiser, scale)(X_T, T, label=LABEL)
        torch.testing.assert_close(found, dropped + scale * (kept - dropped), atol=1e-5, rtol=1e-5)


def test_autoguidance_is_the_equation_with_the_same_conditions(denoiser):
    guide = conditional()
    better, worse = denoiser(X_T, T, label=LABEL), guide(X_T, T, label=LABEL)
    found = Guided(denoiser, 2.5, guide=guide)(X_T, T, label=LABEL)
    torch.testing.assert_close(found, worse + 2.5 * (better - worse), atol=1e-5, rtol=1e-5)


def test_guidance_is_limited_to_its_interval(denoiser):
    guided = Guided(denoiser, 3.0, interval=(200, 800))
    for t, inside in ((199, False), (200, True), (800, True), (801, False)):
        same = torch.equal(guided(X_T, torch.tensor(t), label=LABEL), denoiser(X_T, torch.tensor(t), label=LABEL))
        assert same != inside
