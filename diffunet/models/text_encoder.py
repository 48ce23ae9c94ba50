"""Text as hidden states for `TextEmbedding`: a small transformer trained jointly, or the output of a frozen encoder.

Both map the value of a text condition to (hidden states (B, L, width), mask (B, L) bool, False for padding).
"""

from einops import rearrange
from torch import Tensor, nn

from .layers import attend, xavier_, zero_init


class TextTransformer(nn.Module):
    """A transformer over token ids with learned positions and pre-norm layers (Vaswani et al. 2017, Xiong et al. 2020).

    What stands in padding changes no other hidden state.
    """

    def __init__(self, vocab_size: int, max_length: int, width: int, layers: int, heads: int):
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(max_length, width)
        self.layers = nn.ModuleList(TransformerLayer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids: (B, L) int64 in [0, vocab_size), L <= max_length, 0 for padding."""
        mask = ids != 0
        # A softmax over no token is NaN: a row without any attends to its padding.
        attended = rearrange(mask | ~mask.any(dim=1, keepdim=True), "b n -> b 1 1 n")
        h = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for layer in self.layers:
            h = layer(h, attended)
        return self.norm(h), mask


class TransformerLayer(nn.Module):
    """Self-attention, then an MLP of four times the width, each as a residual branch with its norm first."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_1 = nn.LayerNorm(width)
        self.to_qkv = xavier_(nn.Linear(width, 3 * width))
        self.to_out = zero_init(xavier_(nn.Linear(width, width)))
        self.norm_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            xavier_(nn.Linear(width, 4 * width)), nn.GELU(), zero_init(xavier_(nn.Linear(4 * width, width)))
        )

    def forward(self, h: Tensor, attended: Tensor) -> Tensor:
        """h: (B, L, width). attended: (B, 1, 1, L) bool, at least one True in each row."""
        qkv = self.to_qkv(self.norm_1(h))
        q, k, v = rearrange(qkv, "b n (three heads d) -> three b heads n d", three=3, heads=self.heads)
        attention = attend(q, k, v, attended)
        h = h + self.to_out(rearrange(attention, "b heads n d -> b n (heads d)"))
        return h + self.mlp(self.norm_2(h))


class PaddedTokens(nn.Module):
    """Hidden states of a frozen encoder, normalized to unit scale, in which encoders differ (Ba et al. 2016)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """tokens: (B, L, width) in any floating-point type; a row with a NaN is padding."""
        mask = ~tokens.isnan().any(dim=2)
        present = tokens.masked_fill(~mask[..., None], 0)
        return self.norm(present.to(self.norm.weight.dtype)), mask
