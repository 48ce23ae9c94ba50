"""LoRA: finetuning by a change of low rank of each weight (Hu et al. 2021, "LoRA: Low-rank adaptation").

W = W_0 + (alpha / rank) B A, with A (rank, fan_in) random and B (fan_out, rank) zero, so that training begins at W_0.
The weight of a convolution is the matrix (channels out, channels in × kernel): A is a convolution with the same kernel
down to `rank` channels, and B one of kernel 1 up; for a transposed convolution the other way round.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize


class LowRank(nn.Module):
    """The parametrization W_0 -> W_0 + (alpha / rank) B A of a weight."""

    def __init__(self, weight: Tensor, rank: int, alpha: float):
        super().__init__()
        self.scale = alpha / rank
        self.down = nn.Parameter(weight.new_empty(rank, weight[0].numel()))  # A
        self.up = nn.Parameter(weight.new_zeros(len(weight), rank))  # B
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))  # that of nn.Linear

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight of the adapted layer, in the shape of W_0."""
        return weight + self.scale * (self.up @ self.down).view(weight.shape)


def add_lora(model: nn.Module, rank: int, alpha: float | None = None) -> nn.Module:
    """Adapt every linear layer and convolution of `model`, in place, and return it. alpha: `rank`, a scale of 1.

    Only A, B and tables of embeddings, whose rows are few and may be new, remain parameters. All other weights become
    buffers outside the state dict, so that optimizers, averages and checkpoints have no copies of them.
    """
    for layer in list(model.modules()):
        if isinstance(layer, nn.Embedding):
            continue
        for name, parameter in list(layer.named_parameters(recurse=False)):
            delattr(layer, name)
            layer.register_buffer(name, parameter.detach(), persistent=False)
        if isinstance(layer, nn.Linear | _ConvNd):
            weight = layer.weight
            parametrize.register_parametrization(layer, "weight", LowRank(weight, rank, alpha or rank))
            layer.get_submodule("parametrizations.weight").register_buffer("original", weight, persistent=False)
    return model


@torch.no_grad()
def merge(adapted: nn.Module, plain: nn.Module) -> nn.Module:
    """Copy the weights that `adapted` computes with into `plain`, a model as before `add_lora`, and return it."""
    for name, tensor in plain.state_dict().items():
        owner, _, key = name.rpartition(".")
        tensor.copy_(getattr(adapted.get_submodule(owner), key))
    return plain
