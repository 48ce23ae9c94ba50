"""New pictures from a denoiser: one seed per picture, whatever the batch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, Strict
from torch import Tensor, nn

from ..data.dataset import DataConfig, denormalize
from .guidance import Guided
from ..core.runtime import RuntimeConfig, autocast
from ..objectives.base import Objective
from .loop import sample
from ..core.errors import UserError, did_you_mean
from ..core.progress import no_progress

Share = Annotated[float, Field(ge=0, le=1)]


class SampleConfig(RuntimeConfig):
    """What to draw, and how: in a run's config, its previews and what sample.py does unless told otherwise."""

    num_images: int = Field(64, ge=1, le=10_000_000)
    """ImageDataset to draw."""
    label: str | None = None
    """Class to draw, by number or name, or several with commas between; none: not told; null: all in turn."""
    guidance_scale: float = Field(1.0, ge=0, le=1000)
    """Classifier-free guidance: 1 is none, more is nearer to the class and less varied."""
    guidance_interval: Annotated[tuple[Share, Share], Strict(False)] = (0.0, 1.0)
    """Part of the noise axis in which to guide, 0 clean to 1 noise."""
    guide: float | None = Field(None, gt=0, lt=1)
    """What guidance leads away from: the run's own weights after this share of the training; null: from no class."""
    sampler: str = "dpm++"
    """dpm++, and for diffusion sde-dpm++, unipc, ddim, ddpm, euler-a; for edm sde-dpm++; for flow unipc."""
    steps: int = Field(25, ge=1, le=1_000_000)
    """Network calls per picture (twice as many with guidance)."""
    seed: int = Field(0, ge=0, le=10**18)
    """Seed of the first picture; each further picture has the next one."""
    batch_size: int = Field(64, ge=1, le=1_000_000)
    """ImageDataset drawn together. Changes the speed and the memory, not the pictures."""
    output: str | None = None
    """Folder for the pictures; null: a new one in the run folder."""


@dataclass(frozen=True)
class SampleBatch:
    """One batch of new pictures."""

    pixels: Tensor
    """(B, C, H, W) integers of the run's bit depth."""
    seeds: list[int]
    labels: list[int | None]


def parse_labels(wish: str | None, class_names: tuple[str, ...]) -> list[int | None]:
    """The classes to draw in turn. UserError for a class that the run does not have."""
    if wish is None:
        return list(range(len(class_names))) or [None]
    if wish == "none":
        return [None]
    if not class_names:
        raise UserError("label: this run has no classes; leave label out")
    numbers = {str(index): index for index in range(len(class_names))}
    known = numbers | {name: index for index, name in enumerate(class_names)}
    labels = []
    for word in wish.split(","):
        if word not in known:
            shown = ", ".join(class_names[:12]) + (", ..." if len(class_names) > 12 else "")
            near = did_you_mean(word, known)
            raise UserError(f"label: {word} is not one of the {len(class_names)} classes: {shown}{near}")
        labels.append(known[word])
    return labels


def check_sample_config(class_names: tuple[str, ...], objective: Objective, wish: SampleConfig) -> None:
    """UserError for a label or a sampler that cannot be served."""
    parse_labels(wish.label, class_names)
    objective.sampler(wish.sampler, wish.steps)


def generate(
    denoiser: nn.Module,
    class_names: tuple[str, ...],
    objective: Objective,
    data: DataConfig,
    wish: SampleConfig,
    guide: nn.Module | None = None,
    progress: Callable = no_progress,
) -> Iterator[SampleBatch]:
    """Draws the pictures that `wish` asks of a denoiser of such classes, objective and (settled) data, batch by batch.

    `guide` is the denoiser that guidance leads away from, if it is not this one told nothing.
    UserError, before anything is drawn, for a label or a sampler that cannot be served.
    """
    check_sample_config(class_names, objective, wish)
    labels = parse_labels(wish.label, class_names)
    device = next(denoiser.parameters()).device
    lowest, highest = map(objective.time, wish.guidance_interval)
    denoiser, guide = (m and autocast(m, wish.mixed_precision, device) for m in (denoiser, guide))
    model = Guided(denoiser, wish.guidance_scale, (lowest, highest), guide)
    shape = (data.channels, *data.size)
    for first in range(0, wish.num_images, wish.batch_size):
        places = range(first, min(first + wish.batch_size, wish.num_images))
        seeds = [wish.seed + place for place in places]
        told = [labels[place % len(labels)] for place in places]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(device)
        conditions = {} if None in told else {"label": torch.tensor(told, device=device)}
        sampler = objective.sampler(wish.sampler, wish.steps)
        images = sample(model, sampler, noise, generators, progress, **conditions)
        yield SampleBatch(denormalize(images, data.bit_depth).cpu(), seeds, told)
