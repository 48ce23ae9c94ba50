"""Evaluation of runs and of folders of images against real images."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch
from torch import Tensor

from ..conditions.base import ConditionConfig, Value
from ..conditions.label import LabelConfig
from ..core.errors import UserError
from ..core.progress import no_progress, shared_bar
from ..core.rng import fixed_subset
from ..core.runtime import default_device
from ..core.settings import Settings
from ..core.storage import atomic_write, sha256_of_tensors
from ..data.config import DataConfig
from ..data.dataset import ImageDataset, load_images
from ..data.pixels import normalize
from ..evaluation.conditional import Measurement, evaluate_conditional
from ..evaluation.features import FeatureExtractor, choose_features
from ..evaluation.report import Evaluation, check_enough
from ..models.denoiser import Denoiser
from ..sampling.generate import SampleBatch, SampleConfig, Sampler
from .config import Config
from .examples import examples_of
from .figures import save_grid
from .run import Run
from .samples import encode_image

MAX_EXAMPLES, SAMPLES_PER_EXAMPLE = 100, 8
"""Held-out examples, at most, whose conditions are sampled, and samples for each."""


class Collect(Protocol):
    """How the samples of an evaluation are made."""

    def __call__(
        self, sampler: Sampler, config: SampleConfig, progress: Callable = no_progress, purpose: str = ""
    ) -> SampleBatch:
        """Return all of them; `purpose` identifies conditions that are temporary files."""
        ...


def in_memory(
    sampler: Sampler, config: SampleConfig, progress: Callable = no_progress, purpose: str = ""
) -> SampleBatch:
    """Return all samples, made in this process."""
    return SampleBatch.concatenate(sampler.sample(config, progress))


class EvaluationConfig(Settings):
    """The real images, and the features in which samples are compared with them."""

    features: str | None = None
    """pixels, inception (FID), dinov2, or a folder of diffunet classifier; null: pixels."""
    weights: str | None = None
    """File or folder of the weights of inception or dinov2; null: downloaded, or from the cache."""
    data: DataConfig = DataConfig()
    """The real images; for a run those it was trained on, unless set."""


def real_images(config: Config, data: DataConfig, folder: Path | None = None) -> ImageDataset:
    """Return the real images to compare a run with; `folder`: its model/ folder.

    Raise UserError if size, channels or bit depth differ from the run's.
    """
    real = load_images(data, config.inputs, folder, log=_silent)
    for key in ("size", "channels", "bit_depth", "value_range"):
        if (found := getattr(real.config, key)) != (expected := getattr(config.data, key)):
            raise UserError(f"--data: the run samples images of {key} {expected} (got {found}); use matching images")
    return real


def evaluate(
    run: Run,
    config: EvaluationConfig | None = None,
    sampling: SampleConfig | None = None,
    progress: Callable = no_progress,
    collect: Collect = in_memory,
) -> Evaluation:
    """Sample from a run and compare with real images. By default the settings of sampling and the data are the run's.

    A run with other conditions than labels is also sampled under those of held-out examples. `collect` samples.

    Raise UserError for too few images, or for real images that do not fit the run.
    """
    own = run.config()
    config = config or EvaluationConfig(data=own.data)
    real = real_images(own, config.data, run.folder / "model")
    features = choose_features(config.features, config.weights, real, default_device())
    denoiser, sampling = run.denoiser(), sampling or own.sample
    evaluation = evaluate_denoiser(run, denoiser, sampling, real, features, progress, collect)
    if held_out := HeldOut.of(run.sampler(sampling, denoiser), sampling, real):
        evaluation.record["conditional"] = held_out.measure(features, progress, collect)
    return evaluation


def sample_for(run: Run, config: EvaluationConfig, sampling: SampleConfig, assist: Callable) -> None:
    """Sample for another process that calls `evaluate` with the same arguments. Raise UserError if that does.

    assist: takes what a `Collect` takes.
    """
    real = real_images(run.config(), config.data, run.folder / "model")
    check_enough(sampling.num_images, len(real))
    sampler = run.sampler(sampling)
    assist(sampler, sampling)
    if held_out := HeldOut.of(sampler, sampling, real):
        with held_out.sampling_config() as (sample_config, purpose):
            assist(sampler, sample_config, no_progress, purpose)


def evaluate_denoiser(
    run: Run,
    denoiser: Denoiser,
    sampling: SampleConfig,
    real: ImageDataset,
    features: FeatureExtractor,
    progress: Callable = no_progress,
    collect: Collect = in_memory,
) -> Evaluation:
    """Evaluate any weights of the run's network, with real images and features at hand."""
    check_enough(sampling.num_images, len(real))
    sampler = run.sampler(sampling, denoiser.to(default_device()))
    samples = collect(sampler, sampling, progress)
    source = sampling.model_dump(mode="json", exclude={"batch_size"})
    source |= {"objective": run.config().objective.type, "weights_sha256": sha256_of_tensors(denoiser.state_dict())}
    if sampling.guide and sampling.guidance_scale != 1:
        source["guide_sha256"] = sha256_of_tensors(run.snapshot(sampling.guide).state_dict())
    bar = partial(_features_bar, progress)
    return Evaluation.of(source, samples.pixels, samples.conditions, real, features, bar)


@dataclass(frozen=True)
class HeldOut:
    """Samples under the conditions of held-out examples: SAMPLES_PER_EXAMPLE for each of at most MAX_EXAMPLES."""

    sampler: Sampler
    sampling: SampleConfig
    real: ImageDataset
    truth: Tensor
    """The examples themselves, integers (N, C, H, W)."""
    words: Mapping[str, list]
    """Their conditions, by name."""

    @classmethod
    def of(cls, sampler: Sampler, sampling: SampleConfig, real: ImageDataset) -> "HeldOut | None":
        """Return the examples among the held-out images; None if there are only labels, or too few images."""
        _, held_out = real.split_held_out()
        shared = [name for name in real.conditions if name in sampler.conditions]
        if all(isinstance(sampler.conditions[name], LabelConfig) for name in shared) or len(held_out) < 2:
            return None
        truth, words = examples_of(held_out, fixed_subset(len(held_out), MAX_EXAMPLES).tolist())
        return cls(sampler, sampling, real, truth, {name: words[name] for name in shared})

    @contextmanager
    def sampling_config(self) -> Iterator[tuple[SampleConfig, str]]:
        """Yield the settings of the samples, with temporary files as sources, and their `purpose`."""
        with TemporaryDirectory() as folder:
            conditions = {name: _as_files(self.real, name, words, Path(folder)) for name, words in self.words.items()}
            number = SAMPLES_PER_EXAMPLE * len(self.truth)
            config = self.sampling.model_copy(update={"num_images": number, "conditions": conditions})
            yield config, f"held-out images of {self.real.fingerprint}"

    def measure(self, features: FeatureExtractor, progress: Callable, collect: Collect) -> dict[str, Any]:
        """Return the record of the samples, from `sampling.seed`, beside the examples."""
        with self.sampling_config() as (config, purpose):
            values = self.sampler.values(config)
            bar = progress if progress is no_progress else shared_bar("sample examples", "step", config.total_steps)
            pixels = collect(self.sampler, config, bar, purpose).pixels  # of each example in turn
        samples = pixels.unflatten(0, (SAMPLES_PER_EXAMPLE, -1)).transpose(0, 1)
        shared, bit_depth = {name: self.sampler.conditions[name] for name in self.words}, self.sampler.bit_depth
        measured = {
            name: _measurement(condition, values[name], self.truth, samples, bit_depth)
            for name, condition in shared.items()
        }
        measured = {name: measurement for name, measurement in measured.items() if measurement is not None}
        types = {condition.type for condition in shared.values()}
        metrics = evaluate_conditional(self.truth, samples, bit_depth, types, features, measured)
        about = {"examples": len(self.truth), "samples_per_example": SAMPLES_PER_EXAMPLE, "seed": self.sampling.seed}
        return about | {"metrics": metrics}


def _measurement(
    condition: ConditionConfig, values: list[Value], truth: Tensor, samples: Tensor, bit_depth: int
) -> Measurement | None:
    """Return what the sources, the truth (N, C, H, W) and the samples (N, k, C, H, W) measure; None if undefined."""
    given = torch.tensor([value.measurement is not None for value in values])
    if not given.any():
        return None
    values = [value for value in values if value.measurement is not None]
    parts = [normalize(truth[given], bit_depth), *normalize(samples[given], bit_depth).unbind(1)]
    measured = [condition.measure(part, values) for part in parts]
    if measured[0] is None:
        return None
    sources = torch.stack([value.measurement[: measured[0].shape[1]] for value in values])
    return Measurement(sources, measured[0], torch.stack(measured[1:], dim=1))


def _as_files(real: ImageDataset, name: str, words: list, folder: Path) -> list:
    """Return the words of a condition, images among them as files in a folder."""
    files = []
    for place, word in enumerate(words):
        if isinstance(word, Tensor):
            suffix, content = encode_image(word, real.conditions[name].bit_depth, real.conditions[name].value_range)
            file = folder / f"{name}_{place:05d}{suffix}"
            file.write_bytes(content)
            word = str(file)
        files.append(word)
    return files


def evaluate_folder(
    folder: Path, config: EvaluationConfig, num_images: int | None = None, progress: Callable = no_progress
) -> Evaluation:
    """Compare the images in a folder, or the first `num_images` of them, with real images."""
    labels = {"label": LabelConfig()}
    real = load_images(config.data, labels, log=_silent)
    shape = {key: getattr(real.config, key) for key in ("resolution", "channels", "bit_depth", "value_range")}
    found = load_images(DataConfig(path=str(folder), split="train", **shape), labels)
    number = len(found) if num_images is None else num_images
    if number > len(found):
        raise UserError(f"--num_images: {folder} holds {len(found)} images (got {number}); pass fewer")
    batch = found.__getitems__(list(range(number)))
    same_classes = found.conditions == real.conditions and "label" in batch
    conditions = {"label": batch["label"].tolist()} if same_classes else {}
    features = choose_features(config.features, config.weights, real, default_device())
    source = {"folder": folder.name, "num_images": number}
    return Evaluation.of(source, batch["image"], conditions, real, features, partial(_features_bar, progress))


def save_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write evaluation.json and closest_in_*.png: samples on the left, the nearest real image on the right."""
    with atomic_write(folder / "evaluation.json") as file:
        file.write_text(json.dumps(evaluation.record, indent=2), encoding="utf-8")
    for name, pairs in evaluation.closest().items():
        save_grid(pairs, evaluation.real.config.bit_depth or 8, folder / f"closest_in_{name}.png", columns=2)


def _features_bar(progress: Callable, parts: list) -> list:
    """Show a bar for the features of real images, unless there is only one part."""
    if progress is no_progress or len(parts) < 2:
        return parts
    from tqdm import tqdm

    return tqdm(parts, desc="features", leave=False, dynamic_ncols=True)


def _silent(text: str) -> None:
    """Discard messages that were already logged during training."""
