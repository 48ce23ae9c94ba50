"""Images from a trained denoiser, with one seed per image: batching does not change them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated

import torch
from pydantic import Field, Strict
from torch import Tensor

from ..core.errors import UserError, did_you_mean
from ..core.progress import no_progress
from ..core.runtime import RuntimeConfig, autocast, prepare_for
from ..core.settings import Settings
from ..data.pixels import denormalize
from ..models.denoiser import Denoiser
from ..objectives.base import Objective
from .guidance import Guided
from .loop import sample

Share = Annotated[float, Field(ge=0, le=1)]


class SampleConfig(Settings):
    """What to sample, and how: the previews of a run, and the defaults of sample.py."""

    runtime: RuntimeConfig = RuntimeConfig()
    num_images: int = Field(64, ge=1, le=10_000_000)
    """Number of images."""
    conditions: dict[str, str | int] = Field({})
    """What to sample, by condition: a class by number or name, several with commas, or none; left out: all in turn."""
    guidance_scale: float = Field(1.0, ge=0, le=1000)
    """Classifier-free guidance: 1 is none; more follows the conditions more closely, with less variety."""
    guidance_interval: Annotated[tuple[Share, Share], Strict(False)] = (0.0, 1.0)
    """Part of the noise axis in which to guide, from 0 (clean) to 1 (noise)."""
    guide: float | None = Field(None, gt=0, lt=1)
    """Guide away from the run's weights after this share of its training; null: from the unconditional prediction."""
    sampler: str = "dpm++"
    """dpm++; with ddpm also sde-dpm++, unipc, ddim, ddpm and euler-a; with edm also sde-dpm++; with flow also unipc."""
    steps: int = Field(25, ge=1, le=1_000_000)
    """Network calls per image (twice as many with guidance)."""
    seed: int = Field(0, ge=0, le=10**18)
    """Seed of the first image; each further image has the next one."""
    batch_size: int = Field(64, ge=1, le=1_000_000)
    """Images sampled at once. Affects speed and memory, not the images."""

    @property
    def total_steps(self) -> int:
        """Steps of all batches together, for a progress bar."""
        return -(-self.num_images // self.batch_size) * self.steps


@dataclass(frozen=True)
class SampleBatch:
    """One batch of sampled images."""

    pixels: Tensor
    """(B, C, H, W) integers of the run's bit depth."""
    seeds: list[int]
    conditions: dict[str, list[int | None]]
    """The class of each image, by condition; None: unconditional."""

    @classmethod
    def concatenate(cls, batches: Iterable["SampleBatch"]) -> "SampleBatch":
        """Return all batches as one."""
        batches = list(batches)
        seeds = [seed for batch in batches for seed in batch.seeds]
        conditions = {name: [c for batch in batches for c in batch.conditions[name]] for name in batches[0].conditions}
        return cls(torch.cat([batch.pixels for batch in batches]), seeds, conditions)


def parse_labels(name: str, value: str | int | None, class_names: tuple[str, ...]) -> list[int | None]:
    """Return the classes to sample in turn, [None] for unconditional. Raise UserError for an unknown class."""
    if value is None:
        return list(range(len(class_names))) or [None]
    if value == "none":
        return [None]
    if not class_names:
        raise UserError(f"{name}: this run has no classes; leave {name} out")
    known = {str(index): index for index in range(len(class_names))}
    known |= {class_name: index for index, class_name in enumerate(class_names)}
    labels = []
    for word in str(value).split(","):
        if word not in known:
            some = ", ".join(class_names[:12]) + (", ..." if len(class_names) > 12 else "")
            near = did_you_mean(word, known)
            raise UserError(f"{name}: {word} is not one of the {len(class_names)} classes: {some}{near}")
        labels.append(known[word])
    return labels


def check_sample_config(
    class_names: Mapping[str, tuple[str, ...]], objective: Objective, config: SampleConfig
) -> dict[str, list[int | None]]:
    """Return the classes to sample in turn, by condition.

    Raise UserError for an unknown condition, class or sampler, or a number of steps that the sampler does not take.
    """
    for name, value in config.conditions.items():
        if name not in class_names and (class_names or value != "none"):
            known = f"one of {', '.join(class_names)}" if class_names else "a condition: this run has no classes"
            raise UserError(f"{name}: not {known}{did_you_mean(name, class_names)}")
    objective.sampler(config.sampler, config.steps)
    return {name: parse_labels(name, config.conditions.get(name), names) for name, names in class_names.items()}


@dataclass
class Sampler:
    """A denoiser, with everything needed to sample images from it."""

    denoiser: Denoiser
    objective: Objective
    shape: tuple[int, ...]
    """(channels, height, width) of an image."""
    bit_depth: int
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of each label condition."""
    guide: Denoiser | None = None
    """The denoiser to guide away from; None: the same one without conditions."""

    def check(self, config: SampleConfig) -> None:
        """Raise UserError for a condition, class or sampler that is not available."""
        check_sample_config(self.class_names, self.objective, config)

    def sample(self, config: SampleConfig, progress: Callable = no_progress) -> Iterator[SampleBatch]:
        """Yield batches of images, on the CPU. `progress` wraps the steps of each batch.

        Image i has the seed `config.seed` + i, and its classes cycle through those of each condition.
        Raise UserError before the first batch if `check` does, and if the network's output is not finite.
        """
        labels = check_sample_config(self.class_names, self.objective, config)
        device = next(self.denoiser.parameters()).device
        model = self._model(config, device)
        for first in range(0, config.num_images, config.batch_size):
            indices = range(first, min(first + config.batch_size, config.num_images))
            seeds = [config.seed + index for index in indices]
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            noise = torch.stack([torch.randn(self.shape, generator=generator) for generator in generators]).to(device)
            classes = {name: [turn[index % len(turn)] for index in indices] for name, turn in labels.items()}
            conditions = {name: torch.tensor(turn, device=device) for name, turn in classes.items() if None not in turn}
            sampler = self.objective.sampler(config.sampler, config.steps)
            images = sample(model, sampler, noise, generators, progress, **conditions)
            yield SampleBatch(denormalize(images, self.bit_depth).cpu(), seeds, classes)

    def _model(self, config: SampleConfig, device: torch.device) -> Guided:
        """Return the guided denoiser, in the precision and memory format of the config."""
        networks = [network for network in (self.denoiser, self.guide) if network]
        for network in networks:
            prepare_for(network.unet, config.runtime)
        model, *guide = (autocast(network, config.runtime.mixed_precision, device) for network in networks)
        lowest, highest = map(self.objective.timestep_at, config.guidance_interval)
        return Guided(model, config.guidance_scale, (lowest, highest), *guide)
