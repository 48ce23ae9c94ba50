"""The commands that measure: evaluate, ema, classifier."""

import argparse
import json
import subprocess
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ..training.ema import LONGEST, SHORTEST
from ..runs.run import AVERAGE, Run
from ..runs.config import Config
from ..core.runtime import default_device
from .console import next_folder, check_writable, user_friendly
from ..data.dataset import DataConfig, ImageDataset, load_images, normalize
from ..runs.figures import save_grid
from ..evaluation.report import closest_pairs, evaluate_pictures, check_enough
from ..evaluation.features import DigitFeatures, FeatureExtractor, PixelFeatures, load_features
from .flags import add_flags, parse_flags
from ..core.settings import settings_from
from ..sampling.generate import SampleConfig
from .sample import draw, sampling_bar
from ..core.settings import Settings
from ..core.errors import UserError
from ..core.storage import sha256_of_tensors, atomic_write
from ..training.trainer import TrainConfig

CLOSEST = 12
"""Pairs in a picture of the drawn pictures that come closest to real ones."""
MOST_SEARCHED = 10_000
"""Real pictures among which that picture's pairs are sought."""


# ── evaluate ──────────────────────────────────────────────────────────────────────────────────────


class EvaluationConfig(SampleConfig):
    """What to draw, what to compare it with, and by what."""

    features: str | None = None
    """pixels, inception (FID), dinov2, or a folder that diffunet classifier wrote; null: pixels."""
    weights: str | None = None
    """File or folder of the weights of inception or dinov2; null: fetched, or as fetched before."""
    data: DataConfig = DataConfig()
    """The real pictures; of a run those it was trained on, unless told otherwise."""


@user_friendly
def evaluate(argv: list[str] | None = None) -> int:
    """Measure a run, or a folder of pictures, against real pictures.

    A run draws new pictures first. The record goes to RUN/evaluations, or for a folder to --output, beside
    pictures of the drawn ones that come closest to real ones.
    """
    parser = argparse.ArgumentParser(prog="diffunet evaluate", description=evaluate.__doc__)
    parser.add_argument("what", metavar="RUN", help="a run folder, or a folder of pictures (with --data.path)")
    add_flags(parser, EvaluationConfig)
    asked, flags = parse_flags(parser, argv)
    run = Run(asked.what)
    if run.exists or not run.folder.is_dir():
        record, closest, bit_depth, folder = _evaluate_run(run, flags)
    else:
        record, closest, bit_depth, folder = _evaluate_folder(run.folder, flags)
    with atomic_write(folder / "evaluation.json") as file:
        file.write_text(json.dumps(record, indent=2), encoding="utf-8")
    for name, pairs in closest.items():
        save_grid(pairs, bit_depth, folder / f"closest_in_{name}.png", columns=2)
    print(_table(record))
    print(f"{folder}: evaluation.json; closest_in_*.png, drawn on the left, the nearest real picture on the right")
    return 0


def _evaluate_run(run: Run, flags: dict[str, str]) -> tuple[dict, dict[str, Tensor], int, Path]:
    config = run.config()
    own = EvaluationConfig(**config.sample.model_dump(), data=config.data)
    wish = settings_from(own, EvaluationConfig, flags)
    pictures = load_images(wish.data, labelled=config.conditions.classes != 0, say=_quietly)
    for key in ("size", "channels", "bit_depth"):
        if (found := getattr(pictures.config, key)) != (drawn := getattr(config.data, key)):
            raise UserError(f"--data: pictures of {key} {found}, but the run draws {key} {drawn}")
    folder = Path(wish.output) if wish.output else next_folder(run.folder / "evaluations")
    check_writable(folder)
    features = choose_features(wish.features, wish.weights, pictures)
    record, pixels = measure(run, run.denoiser(), config, wish, pictures, features)
    return record, _closest(pixels, pictures, features), pictures.config.bit_depth, folder


def measure(
    run: Run, denoiser: nn.Module, config: Config, wish: SampleConfig, pictures: ImageDataset, features: FeatureExtractor
) -> tuple[dict[str, Any], Tensor]:
    """The record of what a denoiser of a run draws, and the pictures, integers (N, C, H, W)."""
    check_enough(wish.num_images, len(pictures))
    batches = list(draw(run, denoiser.to(default_device()), config, wish, sampling_bar(wish)))
    pixels = torch.cat([batch.pixels for batch in batches])
    labels = [label for batch in batches for label in batch.labels]
    how = wish.model_dump(mode="json", include=set(SampleConfig.model_fields) - {"output", "batch_size"})
    drawn = {**how, "objective": config.objective, "weights_sha256": sha256_of_tensors(denoiser.state_dict())}
    if wish.guide and wish.guidance_scale != 1:
        drawn["guide_sha256"] = sha256_of_tensors(run.snapshot(wish.guide).state_dict())
    return _record(drawn, pixels, labels, pictures, features), pixels


def _evaluate_folder(folder: Path, flags: dict[str, str]) -> tuple[dict, dict[str, Tensor], int, Path]:
    wish = settings_from(EvaluationConfig(), EvaluationConfig, flags)
    if "data.path" not in flags or not wish.output:
        raise UserError(f"{folder}: no run; a folder of pictures needs --data.path DATA and --output FOLDER, too")
    for flag in flags:
        if flag.split(".")[0] not in ("features", "weights", "data", "num_images", "output"):
            raise UserError(f"--{flag}: only says how a run draws, and {folder} is a folder of pictures")
    real = load_images(wish.data, labelled=True, say=_quietly)
    shape = {key: getattr(real.config, key) for key in ("resolution", "channels", "bit_depth")}
    found = load_images(DataConfig(path=str(folder), split="train", **shape), labelled=True, say=print)
    number = wish.num_images if "num_images" in flags else len(found)
    if number > len(found):
        raise UserError(f"--num_images: {number}, but {folder} holds {len(found)}")
    batch = found.__getitems__(list(range(number)))
    labels = batch["label"].tolist() if found.class_names == real.class_names and "label" in batch else [None]
    features = choose_features(wish.features, wish.weights, real)
    record = _record({"folder": folder.name, "num_images": number}, batch["image"], labels, real, features)
    return record, _closest(batch["image"], real, features), real.config.bit_depth, Path(wish.output)


def choose_features(name: str | None, weights: str | None, pictures: ImageDataset) -> FeatureExtractor:
    """The features of that name; without one the pixels, with the built-in digits on their own scale."""
    if name is None and pictures.config.path == "digits" and pictures.config.size == (8, 8):
        trained, _ = load_images(pictures.config, labelled=True).split_held_out()
        batch = trained.__getitems__(list(range(len(trained))))
        return DigitFeatures(batch["image"], batch["label"])
    return load_features(name or "pixels", weights, pictures.config.bit_depth, default_device())


def _record(drawn: dict, pixels: Tensor, labels: list, real: ImageDataset, features: FeatureExtractor) -> dict[str, Any]:
    found = evaluate_pictures(pixels, labels, real, features, partial(_bar, "features"))
    found["real"] = {"path": real.config.path, "split": real.config.split, **found["real"]}
    return {"drawn": drawn, **found, "diffunet": _program()}


def _closest(pixels: Tensor, real: ImageDataset, features: FeatureExtractor) -> dict[str, Tensor]:
    images = real.images[list(range(min(len(real), MOST_SEARCHED)))]
    ways: dict[str, Callable] = {"pixels": PixelFeatures(real.config.bit_depth)}
    if features.weights:
        ways["features"] = features
    return {name: closest_pairs(pixels, images, way(pixels), way(images), CLOSEST) for name, way in ways.items()}


def _program() -> dict[str, str | None]:
    """The version of this program and, in a checkout, its commit."""
    try:
        number = version("diffunet")
    except PackageNotFoundError:
        number = None
    try:
        where = Path(__file__).parents[2]
        if not (where / ".git").exists():
            return {"version": number, "commit": None}
        answer = subprocess.run(
            ["git", "-C", where, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
        )
        return {"version": number, "commit": answer.stdout.strip() or None}
    except (OSError, subprocess.SubprocessError):
        return {"version": number, "commit": None}


def _table(record: dict[str, Any]) -> str:
    """The record as people read it."""
    drawn, real, features = record["drawn"], record["real"], record["features"]
    how = "" if "folder" in drawn else f" ({drawn['sampler']}, {drawn['steps']} steps, seed {drawn['seed']})"
    lines = [
        f"{drawn['num_images']:,} drawn pictures{how} against {real['num_images']:,} of {real['path']}",
        f"features: {features['name']} ({features['dimensions']} numbers)",
        "",
        f"{'':34}{'drawn':>22}{'as many real ones':>22}",
    ]
    rows = {name.replace("_", " "): value for name, value in record["metrics"].items()}
    rows |= {f"too near to a training picture, in {name}": value for name, value in record["memorization"].items()}
    if "class_accuracy" in record:
        rows["named as asked"] = record["class_accuracy"]
    for name, row in rows.items():
        floor = f"{row['floor']:.4g}" if "floor" in row else ""
        lines.append(f"{name:42}{row['value']:>10.4g} ± {row['error']:<10.2g}{floor:>12}")
    if any(row["verdict"] for row in record["memorization"].values()):
        lines.append("MEMORISED: the drawn pictures are nearer to the training pictures than pictures it never saw are")
    return "\n".join(lines)


def _quietly(text: str) -> None:
    """Says nothing: what was found in the data was said when it was trained on."""


def _bar(what: str, parts: list):
    from tqdm import tqdm

    return tqdm(parts, desc=what, leave=False, dynamic_ncols=True, disable=len(parts) < 2)


# ── ema ───────────────────────────────────────────────────────────────────────────────────────────


@user_friendly
def ema(argv: list[str] | None = None) -> int:
    """Choose how long the average of a run's weights is, after its training.

    One length is made the run's model. Of several each is measured as `diffunet evaluate` does, and the one
    with the least Fréchet distance is made its model.
    """
    parser = argparse.ArgumentParser(prog="diffunet ema", description=ema.__doc__)
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument(
        "lengths", metavar="LENGTH", nargs="+", help=f"share of the training to average over, {SHORTEST} to {LONGEST}"
    )
    add_flags(parser, EvaluationConfig)
    asked, flags = parse_flags(parser, argv)
    run = Run(asked.run)
    config = run.config()
    lengths = [_length(word) for word in asked.lengths]
    averages = {length: run.averaged(length) for length in lengths}
    best, distances = lengths[0], {}
    if len(lengths) > 1:
        own = EvaluationConfig(**config.sample.model_dump(), data=config.data)
        wish = settings_from(own, EvaluationConfig, flags)
        pictures = load_images(wish.data, labelled=config.conditions.classes != 0, say=_quietly)
        features = choose_features(wish.features, wish.weights, pictures)
        print(f"{'length':>8}  Fréchet distance ({features.name}, {wish.num_images} pictures)")
        for length, denoiser in averages.items():
            record, _ = measure(run, denoiser, config, wish, pictures, features)
            found = next(iter(record["metrics"].values()))
            distances[length] = found["value"]
            print(f"{length:8.3f}  {found['value']:.4g} ± {found['error']:.2g}", flush=True)
        best = min(distances, key=distances.__getitem__)
    run.publish(averages[best].cpu())
    with atomic_write(run.folder / "model" / AVERAGE) as file:
        file.write_text(json.dumps({"length": best, "frechet_distances": distances}, indent=2), encoding="utf-8")
    print(f"{run.folder}/model: now averaged over {best} of the training; --resume makes it the usual average again")
    return 0


def _length(word: str) -> float:
    try:
        length = float(word)
    except ValueError:
        length = -1.0
    if not SHORTEST <= length <= LONGEST:
        raise UserError(f"{word}: a length is a number from {SHORTEST} to {LONGEST}, such as 0.1")
    return length


# ── classifier ────────────────────────────────────────────────────────────────────────────────────


class ClassifierRun(Settings):
    """How to train a classifier of pictures to compare others by."""

    data: DataConfig = DataConfig(random_flip=True)
    """The pictures and their classes."""
    test_split: str | None = None
    """Split that the accuracy is measured on; null: the pictures that data.held_out keeps from training."""
    blocks: list[int] = Field([2, 2, 2, 2])
    """Residual blocks of each stage."""
    train: TrainConfig = TrainConfig(
        output="runs/classifier",
        steps=6000,
        batch_size=256,
        learning_rate=2e-3,
        lr_schedule="cosine",
        warmup_steps=300,
        weight_decay=0.05,
        ema_decay=0.999,
        snapshots=0,
        preview_every=500,
        checkpoint_every=2000,
    )
    """How to train."""


@user_friendly
def classifier(argv: list[str] | None = None) -> int:
    """Train a classifier (ResNet-18) on pictures and their classes, for `diffunet evaluate --features FOLDER`.

    The same command goes on where it was stopped.
    """
    from accelerate import Accelerator
    from accelerate.utils import set_seed

    from ..evaluation.classifier import Classifier, ClassifierConfig, ClassificationLoss, accuracy_of, save_classifier
    from ..training.trainer import Trainer

    parser = argparse.ArgumentParser(prog="diffunet classifier", description=classifier.__doc__)
    add_flags(parser, ClassifierRun)
    _, flags = parse_flags(parser, argv)
    wish = settings_from(ClassifierRun(), ClassifierRun, flags)
    folder, settings = Path(wish.train.output), wish.model_dump_json(indent=2)
    begun = folder / "settings.json"
    if Run(folder).files() and not (begun.is_file() and begun.read_text() == settings):
        raise UserError(f"{folder}: is not empty, and no such training; name another with --train.output")
    pictures = load_images(wish.data, labelled=True)
    if pictures.labels is None:
        raise UserError(f"data.label_column: {wish.data.path} has no classes to learn")
    trained, test = pictures.split_held_out()
    if wish.test_split:
        resolved = pictures.config.model_copy(update={"split": wish.test_split})
        trained, test = pictures, load_images(resolved, labelled=True)
    if not len(test):
        raise UserError("data.held_out: keeps no picture to test on; raise it, or name a --test_split")
    batch = test.__getitems__(list(range(len(test))))
    images, labels = normalize(batch["image"], pictures.config.bit_depth), batch["label"]
    set_seed(wish.train.seed)
    shape = [pictures.config.channels, *pictures.config.size]
    model = Classifier(ClassifierConfig(shape=shape, class_names=pictures.class_names, blocks=wish.blocks))
    trainer = Trainer(
        wish.train,
        model,
        ClassificationLoss(),
        trained,
        Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision="no"),
        preview=lambda step, averaged: {"test_accuracy": accuracy_of(averaged, images, labels)},
        publish=lambda averaged: save_classifier(averaged, accuracy_of(averaged, images, labels), folder),
    )
    with Run(folder).alone():
        trainer.resume()
        with atomic_write(begun) as file:
            file.write_text(settings, encoding="utf-8")
        if ended_by := trainer.fit():
            return 128 + ended_by
    accuracy = accuracy_of(trainer.ema.model, images, labels)
    print(f"{folder}: names {100 * accuracy:.2f} % of {len(labels):,} pictures rightly that it was not trained on")
    return 0
