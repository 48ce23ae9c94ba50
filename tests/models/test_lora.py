"""LoRA held to closed forms: the linear layer of least squares, and reduced-rank regression."""

import copy

import pytest
import torch
from helpers import randomized, small_unet
from torch import nn

from diffunet.conditions.label import LabelConfig
from diffunet.models.denoiser import Denoiser
from diffunet.models.lora import LowRank, add_lora, merge
from diffunet.training.ema import EMA, copy_of

CONDITIONS = {"label": LabelConfig(num_classes=3)}


def a_denoiser(**unet) -> Denoiser:
    return Denoiser.from_config(small_unet(**unet), CONDITIONS)


@pytest.fixture
def inputs():
    """A batch for a denoiser with labels."""
    return torch.randn(2, 3, 16, 16), torch.tensor([3.0, 700.0]), torch.tensor([0, -1])


def test_adapted_network_begins_at_the_source_to_the_bit(inputs):
    x_t, t, label = inputs
    source = randomized(a_denoiser())
    adapted = add_lora(copy.deepcopy(source), rank=2)
    assert torch.equal(adapted(x_t, t, label=label), source(x_t, t, label=label))


@pytest.mark.parametrize("unet", [{}, {"resampling": "pool"}, {"dims": 1}])
def test_merged_weights_compute_the_same(inputs, unet):
    x_t, t, label = inputs
    x_t = x_t[:, :, 0] if unet.get("dims") == 1 else x_t
    adapted = randomized(add_lora(randomized(a_denoiser(**unet)), rank=2))
    unchanged = [module.weight for module in adapted.modules() if isinstance(module, nn.GroupNorm)]
    before = adapted(x_t, t, label=label)
    plain = merge(adapted, a_denoiser(**unet)).eval()
    torch.testing.assert_close(plain(x_t, t, label=label), before, atol=1e-6, rtol=1e-6)
    assert plain.state_dict().keys() == a_denoiser(**unet).state_dict().keys()
    assert all(not isinstance(weight, nn.Parameter) for weight in unchanged)


def test_only_low_rank_factors_and_tables_are_trained_and_saved():
    source = a_denoiser()
    layers = [m for m in source.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    expected = sum(3 * (len(m.weight) + m.weight[0].numel()) for m in layers) + 4 * 32  # and the table
    adapted = add_lora(source, rank=3)
    trained = dict(adapted.named_parameters())
    assert sum(p.numel() for p in trained.values()) == expected
    assert set(adapted.state_dict()) == set(trained)
    assert sum(isinstance(module, LowRank) for module in adapted.modules()) == len(layers)


def test_averages_share_the_weights_of_the_source():
    adapted = add_lora(a_denoiser(), rank=2)
    copied = EMA(adapted, lambda step: 0.5).model
    for (name, one), other in zip(adapted.named_buffers(), copied.buffers(), strict=True):
        assert one.data_ptr() == other.data_ptr(), name
    for one, other in zip(adapted.parameters(), copy_of(adapted).parameters(), strict=True):
        assert one.data_ptr() != other.data_ptr()


# ── a linear layer in closed form ─────────────────────────────────────────────────────────────────


def fitted(rank: int, x: torch.Tensor, y: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Return the weight of a linear layer adapted from `start` to the least squares of x @ W.T = y."""
    layer = nn.Linear(*reversed(start.shape), bias=False, dtype=torch.float64)
    layer.weight.data.copy_(start)
    add_lora(layer, rank)
    options = {"max_iter": 1000, "tolerance_grad": 1e-12, "tolerance_change": 0, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS(layer.parameters(), **options)

    def loss():
        optimizer.zero_grad()
        value = (layer(x) - y).square().mean()
        value.backward()
        return value

    optimizer.step(loss)
    return layer.weight.detach()


@pytest.fixture
def regression():
    """Correlated inputs (N, 6), outputs (N, 5) with noise, and the weight (5, 6) to begin from."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = normal(200, 6) @ normal(6, 6)
    return x, x @ normal(6, 5) + normal(200, 5), normal(5, 6)


def test_full_rank_equals_full_finetuning(regression):
    x, y, start = regression
    least_squares = torch.linalg.lstsq(x, y).solution.T
    torch.testing.assert_close(fitted(5, x, y, start), least_squares, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_low_rank_is_the_truncated_svd_of_the_weighted_change(regression, rank):
    """Reduced-rank regression: the best change of rank r is the SVD of (W* - W_0) S^(1/2), truncated (Izenman 1975)."""
    x, y, start = regression
    least_squares = torch.linalg.lstsq(x, y).solution.T
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    root, inverse = (vectors * values**power @ vectors.T for power in (0.5, -0.5))
    u, s, v = torch.linalg.svd((least_squares - start) @ root, full_matrices=False)
    expected = start + (u[:, :rank] * s[:rank]) @ v[:rank] @ inverse
    torch.testing.assert_close(fitted(rank, x, y, start), expected, atol=1e-5, rtol=1e-5)
