import math

import pytest
import torch

from diffunet.core.complex_channels import to_channels, to_complex
from diffunet.core.fourier import Cartesian, sampled_lines, to_kspace
from diffunet.models.config import LevelConfig, UNetConfig
from diffunet.models.data_consistency import DataConsistency, consistent_channels
from diffunet.models.predictor import Predictor
from diffunet.models.unet import UNet


def a_case(size: tuple[int, int] = (16, 16), echoes: int = 1, every: float = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs (2, 2E + 1, *S), zero-filled images with their masks, and whole images (2, 2E, *S)."""
    torch.manual_seed(0)
    whole = torch.randn(2, 2 * echoes, *size)
    lines = torch.stack([sampled_lines(size[1], every, 0.1, seed=seed) for seed in range(2)])
    mask = lines[:, None].expand(-1, *size)
    operator = Cartesian(mask)
    zero_filled = to_channels(operator.adjoint(operator.apply(to_complex(whole))))
    return torch.cat([zero_filled, mask[:, None].float()], dim=1), whole


@pytest.mark.parametrize("echoes", [1, 3])
def test_measured_lines_are_kept_and_the_others_are_the_predictor_s(echoes):
    image, whole = a_case(echoes=echoes)
    guess = torch.randn_like(whole)
    found = to_kspace(to_complex(DataConsistency(lambda x: guess)(image)))
    mask = image[:, -1:].bool().expand_as(found)
    torch.testing.assert_close(found[mask], to_kspace(to_complex(whole))[mask])
    torch.testing.assert_close(found[~mask], to_kspace(to_complex(guess))[~mask])


def test_the_mixture_is_that_of_equation_6():
    image, whole = a_case()
    guess, weight = torch.randn_like(whole), 3.0
    found = to_kspace(to_complex(DataConsistency(lambda x: guess, weight)(image)))
    mask = image[:, -1:].bool()
    predicted, measured = to_kspace(to_complex(guess)), to_kspace(to_complex(whole))
    torch.testing.assert_close(found, torch.where(mask, (predicted + weight * measured) / (1 + weight), predicted))


def test_fully_sampled_images_are_the_measurement_and_the_projection_is_idempotent():
    image, whole = a_case(every=1)
    torch.testing.assert_close(DataConsistency(lambda x: torch.randn_like(x))(image), whole)
    image, whole = a_case()
    once = DataConsistency(lambda x: torch.randn_like(x))(image)
    torch.testing.assert_close(DataConsistency(lambda x: once)(image), once)
    assert (once - whole).square().mean() < (torch.randn_like(once) - whole).square().mean()


def test_weight_zero_is_the_prediction():
    image, whole = a_case()
    torch.testing.assert_close(DataConsistency(lambda x: whole + 1, 0.0)(image), whole + 1)


@pytest.mark.parametrize("weight", [math.inf, 2.0])
def test_gradients_equal_finite_differences(weight):
    image, whole = a_case((4, 4))
    mask = image[:, -1] > 0.5
    guess = torch.randn_like(whole).double().requires_grad_()
    measured = image[:, :-1].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda g, m: consistent_channels(g, m, mask, weight), (guess, measured))


def test_a_predictor_learns_through_it():
    """Only what was not measured is left to learn, and gradients reach the weights."""
    config = UNetConfig(
        in_channels=2, out_channels=2, levels=(LevelConfig(channels=8, blocks=1),), middle_attention=False
    )
    model = DataConsistency(Predictor(UNet(config)))
    image, whole = a_case()
    loss = (model(image) - whole).square().mean()
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        found = model(image)
    kspace, mask = to_kspace(to_complex(found.float())), image[:, -1:].bool()
    assert found.dtype == torch.float32
    torch.testing.assert_close(kspace[mask], to_kspace(to_complex(whole))[mask], atol=1e-5, rtol=0)
