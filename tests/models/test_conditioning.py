import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from helpers import randomized

from diffunet.models.conditioning import (
    Conditioning,
    LabelEmbedding,
    PlaneEmbedding,
    TimeEmbedding,
    TokenEmbedding,
    VectorEmbedding,
)
from diffunet.models.config import LevelConfig, UNetConfig
from diffunet.models.unet import UNet


def test_sum_adds_vectors_and_concatenates_tokens():
    a, b = torch.rand(2, 4), torch.rand(1, 4)
    tokens = torch.rand(2, 3, 5)
    both = Conditioning(vector=a, tokens=tokens) + Conditioning(vector=b, tokens=tokens[:, :1])
    assert torch.equal(both.vector, a + b)
    assert both.tokens.shape == (2, 4, 5)
    assert both.planes is None
    assert Conditioning() + Conditioning() == Conditioning()


def test_sum_concatenates_planes():
    planes = torch.rand(2, 1, 4, 4)
    assert (Conditioning(planes=planes) + Conditioning(planes=planes)).planes.shape == (2, 2, 4, 4)


def test_sinusoids_match_diffusers():
    t = torch.tensor([0, 1, 17, 999])
    for shift in (0, 1):
        embedding = TimeEmbedding(vector_dim=32, channels=32, freq_shift=shift)
        embedding.mlp = torch.nn.Sequential(torch.nn.Linear(32, 32))
        torch.nn.init.eye_(embedding.mlp[0].weight)
        torch.nn.init.zeros_(embedding.mlp[0].bias)
        expected = get_timestep_embedding(t, 32, flip_sin_to_cos=True, downscale_freq_shift=shift)
        torch.testing.assert_close(embedding(t).vector, expected, atol=1e-4, rtol=0)


def test_scalar_time_applies_to_the_whole_batch():
    embedding = TimeEmbedding(8, 8)
    one, several = embedding(torch.tensor(5)).vector, embedding(torch.tensor([5, 9])).vector
    torch.testing.assert_close(one, several[:1])


def test_dropped_label_is_the_null_row():
    embedding = LabelEmbedding(vector_dim=4, num_classes=3)
    label = torch.tensor([0, 1, 2])
    null = embedding(None).vector
    mixed = embedding(label, keep_mask=torch.tensor([True, False, True])).vector
    assert torch.equal(mixed[1:2], null)
    assert torch.equal(mixed[[0, 2]], embedding(label).vector[[0, 2]])
    assert not torch.isclose(embedding(label).vector, null).all(dim=1).any()


def test_sum_of_tokens_with_and_without_a_mask():
    tokens, mask = torch.rand(2, 3, 5), torch.tensor([[True, True, False], [True, False, False]])
    both = Conditioning(tokens=tokens, token_mask=mask) + Conditioning(tokens=tokens[:1, :2])
    assert both.tokens.shape == (2, 5, 5)
    assert torch.equal(both.tokens[1, 3:], tokens[0, :2])
    assert both.token_mask.tolist() == [[True, True, False, True, True], [True, False, False, True, True]]
    assert (Conditioning() + Conditioning(tokens=tokens, token_mask=mask)).token_mask is mask


def test_constant_planes_are_broadcast():
    both = Conditioning(planes=torch.ones(1, 2, 1, 1)) + Conditioning(planes=torch.zeros(3, 1, 4, 5))
    assert both.planes.shape == (3, 3, 4, 5)
    assert both.planes.sum() == 3 * 2 * 4 * 5


KEEP = torch.tensor([True, False, True])
VALUES = {
    "vector": (VectorEmbedding(8, width=4), torch.randn(3, 4)),
    "tokens": (TokenEmbedding(6, width=5), 30 * torch.randn(3, 2, 5)),
    "planes": (PlaneEmbedding(channels=2), torch.randn(3, 2, 4, 4)),
}


@pytest.mark.parametrize("route", VALUES)
def test_keep_mask_selects_present_or_absent_per_example(route):
    embedding, value = VALUES[route]
    levels = (LevelConfig(channels=8, blocks=1, attention=True),)
    unet = randomized(UNet(UNetConfig(levels=levels, vector_dim=8, token_dim=6, plane_channels=3, in_channels=1)))
    x, rest = torch.randn(3, 1, 4, 4), Conditioning(planes=None if route == "planes" else torch.zeros(1, 3, 1, 1))
    present, absent = unet(x, embedding(value) + rest), unet(x, embedding(None) + rest)
    mixed = unet(x, embedding(value, KEEP) + rest)
    assert not torch.allclose(present, absent, atol=1e-3)
    torch.testing.assert_close(mixed, torch.where(KEEP[:, None, None, None], present, absent), atol=1e-6, rtol=0)


def test_masked_tokens_have_no_effect():
    embedding, tokens = TokenEmbedding(6, width=5), 30 * torch.randn(2, 4, 5)
    attention_mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])  # as tokenizers write it
    levels = (LevelConfig(channels=8, blocks=1, attention=True),)
    unet = randomized(UNet(UNetConfig(levels=levels, token_dim=6, in_channels=1)))
    x, other = torch.randn(2, 1, 4, 4), torch.where(attention_mask[..., None] > 0, tokens, 99.0)
    padded = unet(x, embedding((tokens, attention_mask)))
    assert torch.equal(padded, unet(x, embedding((other, attention_mask))))
    alone = unet(x[1:], embedding(tokens[1:, :2]))
    torch.testing.assert_close(padded[1:], alone, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(padded, unet(x, embedding(tokens)), atol=1e-3)
