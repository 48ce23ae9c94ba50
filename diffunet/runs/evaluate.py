"""Evaluation of runs and of folders of images against real images."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..core.errors import UserError
from ..core.progress import no_progress
from ..core.runtime import default_device
from ..core.settings import Settings
from ..core.storage import atomic_write, sha256_of_tensors
from ..data.dataset import DataConfig, ImageDataset, load_images
from ..evaluation.features import FeatureExtractor, choose_features
from ..evaluation.report import Evaluation, check_enough
from ..models.denoiser import Denoiser
from ..sampling.generate import SampleBatch, SampleConfig
from .config import Config
from .figures import save_grid
from .run import Run


class EvaluationConfig(Settings):
    """The real images, and the features in which samples are compared with them."""

    features: str | None = None
    """pixels, inception (FID), dinov2, or a folder of diffunet classifier; null: pixels."""
    weights: str | None = None
    """File or folder of the weights of inception or dinov2; null: downloaded, or from the cache."""
    data: DataConfig = DataConfig()
    """The real images; for a run those it was trained on, unless set."""


def real_images(config: Config, data: DataConfig) -> ImageDataset:
    """Return the real images to compare a run with. UserError if size, channels or bit depth differ from the run's."""
    labels = {name: label.column for name, label in config.labels.items()}
    real = load_images(data, labels, log=_silent)
    for key in ("size", "channels", "bit_depth"):
        if (found := getattr(real.config, key)) != (expected := getattr(config.data, key)):
            raise UserError(f"--data: the run samples images of {key} {expected} (got {found}); use matching images")
    return real


def evaluate(
    run: Run,
    config: EvaluationConfig | None = None,
    sampling: SampleConfig | None = None,
    progress: Callable = no_progress,
) -> Evaluation:
    """Sample from a run and compare with real images. By default the settings of sampling and the data are the run's.

    Raise UserError for too few images, or for real images that do not fit the run.
    """
    own = run.config()
    config = config or EvaluationConfig(data=own.data)
    real = real_images(own, config.data)
    features = choose_features(config.features, config.weights, real, default_device())
    return evaluate_denoiser(run, run.denoiser(), sampling or own.sample, real, features, progress)


def evaluate_denoiser(
    run: Run,
    denoiser: Denoiser,
    sampling: SampleConfig,
    real: ImageDataset,
    features: FeatureExtractor,
    progress: Callable = no_progress,
) -> Evaluation:
    """Evaluate any weights of the run's network, with real images and features at hand."""
    check_enough(sampling.num_images, len(real))
    sampler = run.sampler(sampling, denoiser.to(default_device()))
    samples = SampleBatch.concatenate(sampler.sample(sampling, progress))
    source = sampling.model_dump(mode="json", exclude={"batch_size"})
    source |= {"objective": run.config().objective.type, "weights_sha256": sha256_of_tensors(denoiser.state_dict())}
    if sampling.guide and sampling.guidance_scale != 1:
        source["guide_sha256"] = sha256_of_tensors(run.snapshot(sampling.guide).state_dict())
    bar = partial(_features_bar, progress)
    return Evaluation.of(source, samples.pixels, samples.conditions, real, features, bar)


def evaluate_folder(
    folder: Path, config: EvaluationConfig, num_images: int | None = None, progress: Callable = no_progress
) -> Evaluation:
    """Compare the images in a folder, or the first `num_images` of them, with real images."""
    labels = {"label": None}
    real = load_images(config.data, labels, log=_silent)
    shape = {key: getattr(real.config, key) for key in ("resolution", "channels", "bit_depth")}
    found = load_images(DataConfig(path=str(folder), split="train", **shape), labels)
    number = len(found) if num_images is None else num_images
    if number > len(found):
        raise UserError(f"--num_images: {folder} holds {len(found)} images (got {number}); pass fewer")
    batch = found.__getitems__(list(range(number)))
    same_classes = found.class_names == real.class_names and "label" in batch
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
