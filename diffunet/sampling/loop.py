"""The sampling loop: any model, any sampler."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.progress import no_progress

WITHOUT_GENERATOR = {"UniPCMultistepScheduler"}
"""Deterministic schedulers whose `step` takes no generator."""
STEP_OPTIONS = {"DDIMScheduler": {"use_clipped_model_output": True}}
"""Other arguments of `step`. DDIM by default mixes the clipped x_0 with the noise that belongs to the unclipped one."""


@torch.no_grad()
def sample(
    model: Callable[..., Tensor],
    sampler: Any,
    noise: Tensor,
    generator: torch.Generator | list[torch.Generator] | None = None,
    progress: Callable = no_progress,
    **conditions: Tensor,
) -> Tensor:
    """Return images (B, C, *S), about in [-1, 1], from standard normal noise of that shape.

    `sampler` is a diffusers scheduler whose timesteps are set (`Objective.sampler`). `generator` feeds stochastic
    samplers: one for the batch, or one per image, which makes an image independent of its batch. `progress` wraps
    the steps.
    """
    kind = type(sampler).__name__
    options = STEP_OPTIONS.get(kind, {})
    if generator is not None and kind not in WITHOUT_GENERATOR:
        options = {**options, "generator": generator}
    x = noise * sampler.init_noise_sigma
    on_device = iter(sampler.timesteps.to(x.device))  # all at once: a copy for each step would wait for the device
    for t in progress(sampler.timesteps):
        prediction = model(sampler.scale_model_input(x, t), next(on_device), **conditions).float()
        prediction = prediction[:, : x.shape[1]]  # ADM's learned variance follows; no sampler uses it
        x = sampler.step(prediction, t, x, **options).prev_sample
    return x
