"""A forecast of the memory that a training of a predictor needs, without values and without waiting."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from ..data.paired import PairedData
from ..models.meta import on_meta
from ..training.benchmark import images_that_fit, per_example, stored_bytes
from .prediction import PredictionConfig

COPIES = 2
"""Copies of the weights that a training allocates beside those of the optimizer: the network and its EMA."""


def patches_that_fit(config: PredictionConfig, pairs: PairedData, size: Sequence[int], memory: int) -> float:
    """Return how many patches of these sides of a step fit into free memory, in fp32; mixed precision needs less."""
    with on_meta():
        weights = sum(parameter.nbytes for parameter in config.build_predictor().parameters())
    free = memory - COPIES * weights
    return images_that_fit(free, weights, bytes_per_patch(config, pairs, size))


def bytes_per_patch(config: PredictionConfig, pairs: PairedData, size: Sequence[int]) -> float:
    """Return the bytes that a training step in fp32 stores for each patch of these sides, of a resolved config.

    Network and loss run on the meta device, which has all sizes and no values.
    """
    with on_meta(), _FusedAttention():
        predictor, objective = config.build_predictor(), config.build_objective(pairs)

        def stored(number: int) -> int:
            image = torch.empty(number, config.data.channels or 1, *size)
            channels = () if pairs.labels else (config.unet.out_channels,)
            target = torch.empty(number, *channels, *size, dtype=torch.int16 if pairs.labels else torch.float32)
            return stored_bytes(lambda: objective.loss(predictor, image, target))

        return per_example(stored)


class _FusedAttention(TorchFunctionMode):
    """Attention that stores as much as the kernels in use; the one of the meta device stores all pairs of positions."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args[:3])[0]
        return func(*args, **(kwargs or {}))
