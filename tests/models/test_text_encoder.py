import pytest
import torch
from helpers import randomized, small_unet
from torch import nn

from diffunet.models.conditioning import TextEmbedding
from diffunet.models.text_encoder import PaddedTokens, TextTransformer
from diffunet.models.unet import UNet

IDS = torch.tensor([[5, 7, 2, 0, 0], [3, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
MASK = IDS != 0


def encoder(**changes) -> TextTransformer:
    settings = {"vocab_size": 9, "max_length": 8, "width": 16, "layers": 2, "heads": 4} | changes
    return randomized(TextTransformer(**settings)).double()


def embedding() -> TextEmbedding:
    return randomized(TextEmbedding(encoder(), width=16, token_dim=6, vector_dim=10)).double()


def test_layers_match_those_of_torch():
    ours = encoder()
    h = ours.tokens(IDS) + ours.positions(torch.arange(5))
    for layer in ours.layers:
        theirs = nn.TransformerEncoderLayer(16, 4, 64, 0.0, "gelu", batch_first=True, norm_first=True).double()
        parts = {
            "self_attn.in_proj_weight": layer.to_qkv.weight,
            "self_attn.in_proj_bias": layer.to_qkv.bias,
            "self_attn.out_proj.weight": layer.to_out.weight,
            "self_attn.out_proj.bias": layer.to_out.bias,
        }
        for ours_name, name in (("norm_1", "norm1"), ("norm_2", "norm2"), ("mlp.0", "linear1"), ("mlp.2", "linear2")):
            module = layer.get_submodule(ours_name)
            parts |= {f"{name}.weight": module.weight, f"{name}.bias": module.bias}
        theirs.load_state_dict(parts)
        h = theirs(h, src_key_padding_mask=~MASK)
    hidden, mask = ours(IDS)
    assert torch.equal(mask, MASK)
    torch.testing.assert_close(hidden[MASK], ours.norm(h)[MASK], atol=1e-12, rtol=0)


def test_layers_start_as_the_identity():
    fresh = TextTransformer(vocab_size=9, max_length=8, width=16, layers=2, heads=4)
    tokens = fresh.tokens(IDS) + fresh.positions.weight[:5]
    torch.testing.assert_close(fresh(IDS)[0], fresh.norm(tokens))


def test_length_of_the_padding_changes_nothing():
    embed, longer = embedding(), nn.functional.pad(IDS, (0, 3))
    short, long = embed(IDS), embed(longer)
    torch.testing.assert_close(short.vector, long.vector, atol=1e-12, rtol=0)
    torch.testing.assert_close(short.tokens[MASK], long.tokens[:, :5][MASK], atol=1e-12, rtol=0)
    assert torch.equal(long.token_mask, longer != 0)


def test_padding_holds_no_information():
    embed = embedding()
    before = embed(IDS)
    with torch.no_grad():
        embed.encoder.tokens.weight[0] = 1e3  # the hidden state of padding
    after = embed(IDS)
    torch.testing.assert_close(before.vector, after.vector, atol=1e-12, rtol=0)
    torch.testing.assert_close(before.tokens[MASK], after.tokens[MASK], atol=1e-12, rtol=0)


def test_order_of_words_matters_and_order_of_captions_does_not():
    embed = embedding()
    vector = embed(IDS).vector
    assert not torch.isclose(embed(IDS[:1, [1, 0, 2, 3, 4]]).vector, vector[:1]).all()
    torch.testing.assert_close(embed(IDS[[2, 0, 1]]).vector, vector[[2, 0, 1]])


def test_vector_is_the_mean_over_the_tokens():
    embed = embedding()
    hidden, _ = embed.encoder(IDS)
    means = torch.stack([embed.to_vector(hidden[0, :3].mean(0)), embed.to_vector(hidden[1, 0]), embed.null_vector[0]])
    torch.testing.assert_close(embed(IDS).vector, means)


@pytest.mark.parametrize("keep", [None, torch.tensor([True, False, True])])
def test_text_without_tokens_is_absent_and_has_finite_gradients(keep):
    embed = embedding()
    cond = embed(IDS, keep)
    absent = [2] if keep is None else [1, 2]
    assert torch.equal(cond.vector[absent], embed(None).vector.expand(len(absent), -1))
    assert not cond.token_mask[absent].any()
    (cond.vector.square().sum() + (cond.tokens * cond.token_mask[..., None]).square().sum()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in embed.parameters())
    assert embed.encoder.tokens.weight.grad[0].eq(0).all()  # padding has no effect on the loss


def test_absent_text_is_the_null_vector_alone():
    fresh = TextEmbedding(encoder(), width=16, token_dim=6, vector_dim=10)
    assert fresh(None).vector.eq(0).all()
    assert fresh(None).tokens is None


def test_network_ignores_the_tokens_of_an_absent_text():
    unet = randomized(UNet(small_unet(vector_dim=10, token_dim=6))).double()
    embed, x_t = embedding(), torch.randn(3, 3, 8, 8, dtype=torch.float64)
    dropped = unet(x_t, embed(IDS, keep_mask=torch.tensor([True, False, True])))
    torch.testing.assert_close(dropped[1:], unet(x_t[1:], embed(None)), atol=1e-10, rtol=0)
    assert not torch.isclose(dropped[:1], unet(x_t[:1], embed(None))).all()


def test_rows_of_nan_are_padding():
    embed = randomized(TextEmbedding(PaddedTokens(4), width=4, token_dim=6, vector_dim=10))
    tokens = torch.randn(2, 3, 4).half()
    padded = nn.functional.pad(tokens, (0, 0, 0, 2), value=float("nan"))
    padded = torch.cat([padded, torch.full_like(padded[:1], float("nan"))])
    cond = embed(padded)
    assert cond.token_mask.sum(1).tolist() == [3, 3, 0]
    assert cond.tokens.dtype == torch.float32
    normalized = (tokens.float() - tokens.float().mean(2, keepdim=True)) / tokens.float().std(2, False, True)
    hidden = normalized * embed.encoder.norm.weight + embed.encoder.norm.bias
    torch.testing.assert_close(cond.tokens[:2, :3], embed.to_tokens(hidden), atol=1e-3, rtol=0)
    torch.testing.assert_close(cond.vector[:2], embed.to_vector(hidden.mean(1)), atol=1e-3, rtol=0)
    torch.testing.assert_close(cond.vector[2:], embed.null_vector)
    cond.vector.sum().backward()
    assert all(p.grad.isfinite().all() for p in embed.parameters() if p.grad is not None)
