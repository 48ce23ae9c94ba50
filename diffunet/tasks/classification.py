"""Training a classifier of small images, whose features `diffunet evaluate` can use."""

from functools import partial
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from ..conditions.label import LabelConfig
from ..core.errors import UserError
from ..core.runtime import RuntimeConfig
from ..data.config import DataConfig
from ..data.dataset import load_images
from ..data.pixels import normalize
from ..evaluation.classifier import (
    Blocks,
    ClassificationLoss,
    Classifier,
    ClassifierConfig,
    accuracy_of,
    save_classifier,
)
from ..runs.config import RunConfig
from ..training.config import TrainConfig
from .fit import make_accelerator
from .task import Task


class ClassificationConfig(RunConfig):
    """How to train a classifier of images."""

    task: ClassVar[str] = "classification"

    data: DataConfig = DataConfig(random_flip=True)
    """The images."""
    label_column: str | None = None
    """Column of the classes; null: the one called label. Class folders make one."""
    test_split: str | None = None
    """Split on which the accuracy is measured; null: the images that data.held_out keeps from training."""
    blocks: Blocks = Field([2, 2, 2, 2])
    """Residual blocks of each of the four stages."""
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
        runtime=RuntimeConfig(mixed_precision="no"),
    )
    """How to train."""


def classification(config: ClassificationConfig) -> Task:
    """Return the task of training a classifier. Raise UserError if the data have no classes, or none to test on."""
    accelerator = make_accelerator(config.train)
    if config.train.batch_size != "auto":
        size = config.train.batch_size // (accelerator.num_processes * config.train.gradient_accumulation_steps)
        if size < 2:
            needed = "batch norm needs at least 2 images per micro-batch"
            raise UserError(f"train.batch_size: {needed} (got {size}); raise it")
    labels = {"label": LabelConfig(column=config.label_column)}
    images = load_images(config.data, labels, log=accelerator.print)
    if "label" not in images.columns:
        raise UserError(f"label_column: {config.data.path} has no classes to learn")
    training, test = images.split_held_out()
    config = config.model_copy(update={"data": images.config})
    if config.test_split:
        resolved = images.config.model_copy(update={"split": config.test_split})
        training, test = images, load_images(resolved, labels, log=accelerator.print)
    if not len(test):
        raise UserError("data.held_out: no image is held out to test on; raise it, or set --test_split")
    batch = test.__getitems__(list(range(len(test))))
    pixels = normalize(batch["image"], images.config.bit_depth)
    accuracy = partial(accuracy_of, images=pixels, labels=batch["label"])
    shape, class_names = [images.config.channels, *images.config.size], images.conditions["label"].class_names
    network = ClassifierConfig(shape=shape, class_names=class_names, blocks=config.blocks)
    folder = Path(config.train.output)
    return Task(
        config=config,
        accelerator=accelerator,
        build_model=lambda train: Classifier(network),
        objective=ClassificationLoss(),
        data=training.to(accelerator.device),
        preview=lambda step, ema: {"test_accuracy": accuracy(ema)},
        publish=lambda ema: save_classifier(ema, accuracy(ema), folder),
        summary=f"{len(training):,} images to train on, {len(test):,} to test on, {len(class_names)} classes",
        report=lambda ema: f"{folder}: accuracy {100 * accuracy(ema):.2f} % on {len(test):,} images not trained on",
    )
