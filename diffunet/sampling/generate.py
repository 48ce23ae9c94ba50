"""Images from a trained denoiser, with one seed per image: batching does not change them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, Strict
from torch import Tensor

from ..conditions.base import NONE, ConditionConfig, Value
from ..conditions.label import LabelConfig
from ..core.errors import UserError, did_you_mean
from ..core.progress import no_progress
from ..core.runtime import RuntimeConfig, autocast, prepare_for
from ..core.settings import Settings
from ..data.pixels import denormalize
from ..models.codec import Codec
from ..models.denoiser import Denoiser
from ..objectives.base import Objective
from .editing import FROM_NOISE, Edit, Interpolate, invert
from .guidance import EVERYWHERE, Guided
from .loop import sample

Share = Annotated[float, Field(ge=0, le=1)]
Scale = Annotated[float, Field(ge=0, le=1000)]
Words = str | int | float | list[str | int | float | list[float] | None]
PlannedBatch = tuple[list[int], tuple[int, int]]
"""Indices of the images of a batch, and their (height, width)."""


class SampleConfig(Settings):
    """What to sample, and how: the previews of a run, and the defaults of sample.py."""

    runtime: RuntimeConfig = RuntimeConfig()
    num_images: int = Field(64, ge=1, le=10_000_000)
    """Number of images."""
    conditions: dict[str, Words] = Field({})
    """What to sample, by condition: classes, a prompt, a source file, numbers, a list in turn, or none; left out: all
    classes, or the conditions of held-out examples, in turn; where others are given, absent."""
    guidance_scale: Scale | dict[str, Scale] = 1.0
    """Classifier-free guidance: 1 is none, more follows the conditions more closely; one number or one by condition."""
    guidance_interval: Annotated[tuple[Share, Share], Strict(False)] = (0.0, 1.0)
    """Part of the noise axis in which to guide, from 0 (clean) to 1 (noise)."""
    guide: float | None = Field(None, gt=0, lt=1)
    """Guide away from the run's weights after this share of its training; null: from the unconditional prediction."""
    sampler: str = "dpm++"
    """dpm++, sde-dpm++ or ancestral; with ddpm also unipc, ddim, ddpm and euler-a; with flow also unipc; with
    consistency only consistency."""
    steps: int = Field(15, ge=1, le=1_000_000)
    """Network calls per image (twice as many with guidance)."""
    seed: int = Field(0, ge=0, le=10**18)
    """Seed of the first image; each further image has the next one."""
    batch_size: int = Field(64, ge=1, le=1_000_000)
    """Images sampled at once. Affects speed and memory, not the images."""
    tile: int | None = Field(None, ge=1, le=65_536)
    """Side of the tiles of the network's input for sources larger than the images trained on; null: no tiles."""
    agree: bool = False
    """Correct each sample so that, degraded as in training, it equals its source to the bit depth."""

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
    conditions: dict[str, list]
    """What each image was sampled for, by condition: a class, a caption, a file or numbers; None: absent."""

    @classmethod
    def concatenate(cls, batches: Iterable["SampleBatch"]) -> "SampleBatch":
        """Return all batches as one."""
        batches = list(batches)
        seeds = [seed for batch in batches for seed in batch.seeds]
        conditions = {name: [c for batch in batches for c in batch.conditions[name]] for name in batches[0].conditions}
        return cls(torch.cat([batch.pixels for batch in batches]), seeds, conditions)


def check_sample_config(conditions: Mapping[str, ConditionConfig], objective: Objective, config: SampleConfig) -> None:
    """Raise UserError for an unknown condition, class or sampler, or for steps that the sampler does not take."""
    scales = config.guidance_scale if isinstance(config.guidance_scale, dict) else {}
    for name in (*config.conditions, *scales):
        if name not in conditions and (conditions or config.conditions.get(name) != NONE):
            known = f"one of {', '.join(conditions)}" if conditions else "a condition: this run has none"
            raise UserError(f"{name}: not {known}{did_you_mean(name, conditions)}")
    if isinstance(config.guidance_scale, dict) and config.guide:
        raise UserError("guidance_scale: one by condition needs no guide; leave guide out, or give one number")
    for name, condition in conditions.items():
        if isinstance(condition, LabelConfig) and name in config.conditions:
            condition.parse(name, config.conditions[name])
    objective.sampler(config.sampler, config.steps)


@dataclass
class Sampler:
    """A denoiser, with everything needed to sample images from it."""

    denoiser: Denoiser
    objective: Objective
    shape: tuple[int, int, int]
    """(channels, height, width) of an image."""
    bit_depth: int
    conditions: Mapping[str, ConditionConfig] = field(default_factory=dict)
    folder: Path = Path()
    """The model/ folder of the run, with the files that conditions need to parse words."""
    examples: Mapping[str, list] = field(default_factory=dict)
    """Words of held-out examples by condition, sampled in turn where no condition is given."""
    guide: Denoiser | None = None
    """The denoiser to guide away from; None: the same one without conditions."""
    codec: Codec | None = None
    """Makes images of the latents that the denoiser generates; None: it generates images."""

    def noise_shape(self, size: tuple[int, int] | None = None) -> tuple[int, int, int]:
        """Return (channels, height, width) of the noise of images of a size, by default the run's."""
        height, width = size or self.shape[1:]
        return self.codec.shape((height, width)) if self.codec else (self.shape[0], height, width)

    def check(self, config: SampleConfig) -> None:
        """Raise UserError for a condition, class, sampler or other setting that is not available."""
        check_sample_config(self.conditions, self.objective, config)
        if self.codec and config.tile and config.tile % self.codec.factor:
            factor = self.codec.factor
            near = max(1, round(config.tile / factor)) * factor
            raise UserError(f"tile: each latent stands for {factor}×{factor} pixels (got {config.tile}); use {near}")

    def values(self, config: SampleConfig) -> dict[str, list[Value]]:
        """Return the values to sample in turn, by condition.

        Without any condition in the config they are those of the examples, or, where there are only labels, all
        classes. With some, the others are absent, and labels again all classes if there are only labels.
        Raise UserError for a word that cannot be used.
        """
        self.check(config)
        every = {name: condition.choices for name, condition in self.conditions.items()}
        values = {}
        for name, condition in self.conditions.items():
            words: Any = config.conditions.get(name)
            if words is None and None not in every.values():
                words = every[name]
            elif words is None:
                words = NONE if config.conditions else self.examples.get(name, NONE)
            values[name] = condition.parse(name, words, self.folder, self.shape[1:])
            if not values[name]:
                raise UserError(f"{name}: no values (got an empty list); give one, or {NONE}")
        return values

    def number_of_files(self, config: SampleConfig, values: Mapping[str, list[Value]]) -> int:
        """Return the number of sources or prompts that files in the config contain; 0 if it names no file."""
        words = {name: word for name, word in config.conditions.items() if isinstance(word, str)}
        files = [name for name, word in words.items() if self.conditions[name].is_file(word)]
        return max((len(values[name]) for name in files), default=0)

    def sample(
        self,
        config: SampleConfig,
        progress: Callable = no_progress,
        edit: Edit = FROM_NOISE,
        watch: Callable[[Tensor], None] | None = None,
        choose: Callable[[list[PlannedBatch]], Iterable[PlannedBatch]] = iter,
    ) -> Iterator[SampleBatch]:
        """Yield batches of images, on the CPU. `progress` wraps the steps of each batch.

        Image i has the seed `config.seed` + i, and its conditions cycle through the values of each. A batch has images
        of one size. `watch` gets the estimate of the images, (B, C, H, W) in about [-1, 1], at each network call.
        `choose` gets all batches and returns those to sample, by default all of them, in order.
        Raise UserError before the first batch if `values` does, and if the network's output is not finite.
        """
        values = self.values(config)
        if config.agree:
            self._check_agreement(values)
        device = next(self.denoiser.parameters()).device
        planned = list(self.plan(config, values, edit))
        loop_edit = edit.of_latents(self.codec.encode) if self.codec else edit
        for indices, size in choose(planned):
            model = self._model(config, device, config.tile if size != self.shape[1:] else None)
            model = loop_edit.model(model, self.objective, indices)
            seeds = [config.seed + index for index in indices]
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            shape = self.noise_shape(size)
            noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(device)
            chosen = {name: [turn[index % len(turn)] for index in indices] for name, turn in values.items()}
            stacked = {name: self.conditions[name].stack(turn) for name, turn in chosen.items()}
            conditions = {name: value.to(device) for name, value in stacked.items() if value is not None}
            sampler = loop_edit.sampler(self.objective, config.sampler, config.steps, shape[1:])
            model = model if watch is None else _watched(model, self.objective, watch, self._decode)
            start = loop_edit.start(noise, sampler, indices)
            samples = sample(model, sampler, start, generators, progress, **conditions)
            images = edit.finish(self._decode(samples), indices)
            for name, turn in chosen.items() if config.agree else ():
                images = self.conditions[name].agree(images, turn)
            words = {name: [value.word for value in turn] for name, turn in chosen.items()}
            yield SampleBatch(denormalize(images, self.bit_depth).cpu(), seeds, words)

    def _decode(self, samples: Tensor) -> Tensor:
        """Return the images that the network's samples are, or are the latents of."""
        return self.codec.decode(samples) if self.codec else samples

    def invert(self, config: SampleConfig, images: Tensor, progress: Callable = no_progress) -> Tensor:
        """Return the noise (B, C, H, W) from which `Interpolate` samples these images in [-1, 1], on the CPU.

        The conditions are the first of each. Raise UserError with guidance, under which inversion diverges.
        """
        if config.guidance_scale != 1:
            raise UserError(f"guidance_scale: images are inverted without it (got {config.guidance_scale}); use 1")
        device = next(self.denoiser.parameters()).device
        size = (images.shape[2], images.shape[3])
        model = self._model(config, device, config.tile if size != self.shape[1:] else None)
        chosen = {
            name: self.conditions[name].stack(turn[:1] * len(images)) for name, turn in self.values(config).items()
        }
        conditions = {name: value.to(device) for name, value in chosen.items() if value is not None}
        images = self.codec.encode(images) if self.codec else images
        solver = Interpolate(images).sampler(self.objective, config.sampler, config.steps, tuple(images.shape[2:]))
        return invert(model, solver, images.to(device), progress, **conditions).cpu()

    def _check_agreement(self, values: Mapping[str, list[Value]]) -> None:
        """Raise UserError unless a source is given that samples can be made to agree with; others are left alone."""
        problems = []
        for name, turn in values.items():
            if any(value.measurement is not None for value in turn):
                try:
                    return self.conditions[name].check_agreement(name, turn)
                except UserError as problem:
                    problems.append(problem)
        raise problems[0] if problems else UserError("agree: no source is given; give one, or leave agree out")

    def plan(
        self, config: SampleConfig, values: dict[str, list[Value]], edit: Edit = FROM_NOISE
    ) -> Iterator[PlannedBatch]:
        """Yield the indices of each batch and the (height, width) of its images.

        Raise UserError for another size than the run's without tiles, or for images of different sizes.
        """
        own = self.shape[1:]

        def size_of(index: int) -> tuple[int, int]:
            chosen = {name: turn[index % len(turn)].size for name, turn in values.items()} | {"image": edit.size}
            sizes = {name: size for name, size in chosen.items() if size}
            if len(set(sizes.values())) > 1:
                found = ", ".join(f"{height}×{width}" for height, width in sizes.values())
                raise UserError(f"{', '.join(sizes)}: sources of images of different sizes (got {found}); match them")
            height, width = next(iter(sizes.values()), own)
            return height, width

        for size, group in groupby(range(config.num_images), key=size_of):
            if size != own and not config.tile:
                height, width = own
                given = "edit" if edit.size else "source"
                raise UserError(
                    f"tile: the {given} gives an image of {size[0]}×{size[1]}, but the run was trained on "
                    f"{height}×{width}; add --tile {min(own)}"
                )
            if self.codec and any(side % self.codec.factor for side in size):
                block = f"{self.codec.factor}×{self.codec.factor}"
                raise UserError(
                    f"image: of {size[0]}×{size[1]}, but each latent stands for {block} pixels; crop or extend it"
                )
            indices = list(group)
            for first in range(0, len(indices), config.batch_size):
                yield indices[first : first + config.batch_size], size

    def _model(self, config: SampleConfig, device: torch.device, tile: int | None) -> Guided:
        """Return the guided denoiser, in the precision and memory format of the config, in tiles if there is a side."""
        networks = [network for network in (self.denoiser, self.guide) if network]
        for network in networks:
            prepare_for(network.unet, config.runtime)
        try:
            positions = tile // self.codec.factor if tile and self.codec else tile
            networks = [network.tiled(positions) for network in networks] if positions else networks
        except ValueError as error:
            raise UserError(f"tile: {str(error).removeprefix('tile ')}") from None
        model, *guide = (autocast(network, config.runtime.mixed_precision, device) for network in networks)
        interval = EVERYWHERE
        if config.guidance_interval != (0, 1):
            lowest, highest = self.objective.time_at(torch.tensor(config.guidance_interval)).tolist()
            interval = lowest, highest
        scale = config.guidance_scale
        if isinstance(scale, dict):  # in the order of the conditions, whatever that of the config
            scale = {name: scale[name] for name in self.conditions if name in scale}
        return Guided(model, scale, interval, *guide)


def _watched(
    model: Callable[..., Tensor],
    objective: Objective,
    watch: Callable[[Tensor], None],
    decode: Callable[[Tensor], Tensor],
) -> Callable:
    """Return the model, with `watch` called with the estimate of the images that each prediction implies."""

    def call(x_t: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        prediction = model(x_t, t, **conditions)
        watch(decode(objective.clean(prediction[:, : x_t.shape[1]].float(), x_t, t)))
        return prediction

    return call
