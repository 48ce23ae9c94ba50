"""The sampling loop: any model, any sampler."""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor

from ..core.progress import no_progress


@torch.no_grad()
def sample(
    model: Callable,
    sampler,
    noise: Tensor,
    generator: torch.Generator | list[torch.Generator] | None = None,
    progress: Callable = no_progress,
    **conditions: Tensor,
) -> Tensor:
    """Images (B, C, *S), about [-1, 1], from standard normal noise of that shape.

    `sampler` is a diffusers scheduler whose timesteps are set (`Objective.sampler`). `generator` feeds the
    stochastic ones: one for the batch, or one for each image, which makes an image independent of its
    batch. `progress` wraps the steps.
    """
    takes_generator = "generator" in inspect.signature(sampler.step).parameters
    options = {"generator": generator} if takes_generator else {}
    x = noise * sampler.init_noise_sigma
    for t in progress(sampler.timesteps):
        prediction = model(sampler.scale_model_input(x, t), t.to(x.device), **conditions).float()
        prediction = prediction[:, : x.shape[1]]              # ADM's learned variance follows; no sampler reads it
        x = sampler.step(prediction, t, x, **options).prev_sample
    return x
