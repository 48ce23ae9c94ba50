from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import randomized

from diffunet.models.conditioning import Conditioning
from diffunet.models.layers import (
    CrossAttention,
    Downsample,
    DownsampleEndPadded,
    Modulated,
    PlainBlock,
    SelfAttention,
    Upsample,
    attend,
    center_crop,
    convolution,
    group_norm,
    join,
    kaiming_,
    transposed_convolution,
)

UNCONDITIONAL = Conditioning()


def norm(channels):
    return group_norm(4, 1e-5, channels)


def test_center_crop_is_the_identity_for_equal_sizes():
    x = torch.arange(25.0).reshape(1, 1, 5, 5)
    assert center_crop(x, torch.empty(1, 1, 3, 1)).flatten().tolist() == [7, 12, 17]
    assert center_crop(x, x) is x


def test_join_crops_the_skip():
    assert join(torch.zeros(1, 2, 3, 3), torch.zeros(1, 4, 7, 7)).shape == (1, 6, 3, 3)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_same_keeps_the_size_and_valid_is_unpadded(dims):
    x = torch.zeros(1, 2, *[6] * dims)
    assert convolution(dims, "same", 2, 3)(x).shape == (1, 3, *[6] * dims)
    assert convolution(dims, "valid", 2, 3)(x).shape == (1, 3, *[4] * dims)


def test_xavier_has_the_variance_of_ddpm():
    layer = convolution(2, "same", 64, 192)
    expected = 2 / ((64 + 192) * 9)
    assert layer.weight.var().item() == pytest.approx(expected, rel=0.02)
    assert not layer.bias.any()


def test_groups_divide_the_channels():
    assert group_norm(32, 1e-5, 48).num_groups == 16
    assert group_norm(32, 1e-5, 128).num_groups == 32


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_resampling_halves_and_doubles(dims):
    def conv(*args, **kwargs):
        return convolution(dims, "same", *args, **kwargs)

    x = torch.rand(1, 4, *[8] * dims)
    factors = (2,) * dims
    for down in (Downsample(4, conv, factors), DownsampleEndPadded(4, factors)):
        assert down(x, UNCONDITIONAL).shape == (1, 4, *[4] * dims)
        assert Upsample(4, 4, conv, factors)(down(x, UNCONDITIONAL), UNCONDITIONAL).shape == x.shape


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_transposed_convolution_doubles_and_valid_omits_the_border(dims):
    x = torch.ones(1, 1, *[3] * dims)
    along = {("same", 2): [1, 1, 1, 1, 1, 1], ("same", 3): [1, 2, 1, 2, 1, 1]}
    along |= {("valid", 2): [1, 1, 1, 1, 1, 1], ("valid", 3): [1, 2, 1, 2, 1]}
    for (padding, kernel_size), reached in along.items():
        layer = transposed_convolution((2,) * dims, padding, 1, 1, kernel_size, bias=False)
        torch.nn.init.ones_(layer.weight)
        expected = torch.tensor(reached, dtype=torch.float)
        for _ in range(dims - 1):
            expected = expected[..., None] * torch.tensor(reached)
        assert torch.equal(layer(x)[0, 0], expected)


def test_plain_blocks_are_modulated_between_convolution_and_relu():
    modulated = partial(Modulated, vector_dim=5, norm=norm, modulation="scale_shift")
    block = randomized(PlainBlock(4, 8, partial(convolution, 2, "same"), norm, modulated, dropout=0.0))
    x, vector = torch.randn(2, 4, 6, 6), torch.randn(2, 5)
    h = F.group_norm(F.conv2d(x, block.conv.weight, block.conv.bias, padding=1), 4, *block.modulated.norm.parameters())
    scale, shift = block.modulated.project(F.silu(vector)).chunk(2, dim=1)
    expected = F.relu(h * (1 + scale[..., None, None]) + shift[..., None, None])
    torch.testing.assert_close(block(x, Conditioning(vector=vector)), expected, atol=1e-5, rtol=1e-5)


def test_kaiming_has_the_variance_of_he():
    layer = kaiming_(convolution(2, "same", 64, 192))
    assert layer.weight.var().item() == pytest.approx(2 / (64 * 9), rel=0.02)
    assert not layer.bias.any()


def test_end_padding_starts_at_the_first_position():
    down = DownsampleEndPadded(1, (2,))
    torch.nn.init.ones_(down.conv.weight)
    assert down(torch.tensor([[[1.0, 2, 4, 8]]]), UNCONDITIONAL).flatten().tolist() == [7, 12]


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 2)])
def test_self_attention_matches_torch(shape):
    """The same projections in torch's own multi-head attention, over the flattened positions."""
    layer = randomized(SelfAttention(8, heads=2, norm=norm))
    oracle = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()
    oracle.in_proj_weight.data, oracle.in_proj_bias.data = layer.to_qkv.weight.data, layer.to_qkv.bias.data
    oracle.out_proj.load_state_dict(layer.to_out.state_dict())
    x = torch.randn(2, 8, *shape)
    h = layer.norm(x).flatten(2).transpose(1, 2)
    expected = x + oracle(h, h, h)[0].transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(layer(x, UNCONDITIONAL), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("keys", [5, 64])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_attention_and_its_gradients_in_training(keys, masked, dtype, tolerance):
    """Against torch's own in double precision, from the same rounded values."""
    given = [torch.randn(2, number, 3, 16).transpose(1, 2).to(dtype) for number in (64, keys, keys)]
    mask = torch.rand(2, 1, 1, keys) < 0.5 if masked else None
    if masked:
        mask[..., 0] = True
    up = torch.randn(2, 3, 64, 16)

    def results(function, type_of):
        values = [value.to(type_of).clone().requires_grad_() for value in given]
        output = function(*values, mask)
        output.backward(up.to(output.dtype))
        return [output.detach(), *(value.grad for value in values)]

    for found, true in zip(results(attend, dtype), results(F.scaled_dot_product_attention, torch.float64), strict=True):
        assert found.dtype == dtype
        assert (found.double() - true).norm() < tolerance * true.norm()


def test_training_in_bf16_on_a_cpu_avoids_the_slow_kernel(monkeypatch):
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *_: pytest.fail("torch's kernel"))
    values = torch.randn(1, 1, 512, 4, dtype=torch.bfloat16).requires_grad_()
    assert attend(values, values, values).shape == values.shape
    longer = torch.randn(1, 1, 513, 4, dtype=torch.bfloat16).requires_grad_()
    for others in (values.detach(), values.float(), longer):  # sampling; another type; too many pairs to store
        with pytest.raises(pytest.fail.Exception, match="torch's kernel"):
            attend(others, others, others)


def test_cross_attention_is_a_softmax_over_the_tokens():
    layer = randomized(CrossAttention(8, heads=1, norm=norm, token_dim=5))
    x, tokens = torch.randn(2, 8, 3, 3), torch.randn(2, 4, 5)
    q = layer.to_q(layer.norm(x).flatten(2).transpose(1, 2))
    k, v = layer.to_kv(tokens).chunk(2, dim=-1)
    read = F.softmax(q @ k.transpose(1, 2) / 8**0.5, dim=-1) @ v
    expected = x + layer.to_out(read).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(layer(x, Conditioning(tokens=tokens)), expected, atol=1e-5, rtol=0)
    assert layer(x, UNCONDITIONAL) is x

    mask = torch.tensor([[True, False, True, True], [False] * 4])
    scores = (q @ k.transpose(1, 2) / 8**0.5).masked_fill(~mask[:, None], -torch.inf)
    read = F.softmax(scores[:1], dim=-1) @ v[:1]
    expected = x[:1] + layer.to_out(read).transpose(1, 2).reshape(x[:1].shape)
    masked = layer(x, Conditioning(tokens=tokens, token_mask=mask))
    torch.testing.assert_close(masked[:1], expected, atol=1e-5, rtol=0)
    assert torch.equal(masked[1], x[1])  # no token to attend to, and no NaN
    masked.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())
