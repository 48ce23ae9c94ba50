"""Training a classifier of small images, whose features `diffunet evaluate` can use."""

from typing import ClassVar

from pydantic import Field
from torch import nn

from ..core.errors import UserError
from ..core.runtime import RuntimeConfig
from ..data.dataset import DataConfig, load_images
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
from ..runs.run import Run
from ..training.config import TrainConfig
from .fit import make_accelerator
from .task import Task

LABEL = "label"


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
        parts = accelerator.num_processes * config.train.gradient_accumulation_steps
        if (size := config.train.batch_size // parts) < 2:
            needed = "batch norm needs at least 2 images per micro-batch"
            raise UserError(f"train.batch_size: {needed} (got {size}); raise it")
    labels = {LABEL: config.label_column}
    images = load_images(config.data, labels, log=accelerator.print)
    if LABEL not in images.labels:
        raise UserError(f"label_column: {config.data.path} has no classes to learn")
    training, test = images.split_held_out()
    config = config.model_copy(update={"data": images.config})
    if config.test_split:
        resolved = images.config.model_copy(update={"split": config.test_split})
        training, test = images, load_images(resolved, labels, log=accelerator.print)
    if not len(test):
        raise UserError("data.held_out: no image is held out to test on; raise it, or set --test_split")
    batch = test.__getitems__(list(range(len(test))))
    pixels, classes = normalize(batch["image"], images.config.bit_depth), batch[LABEL]
    shape = [images.config.channels, *images.config.size]
    network = ClassifierConfig(shape=shape, class_names=images.class_names[LABEL], blocks=config.blocks)
    run = Run(config.train.output)

    def build(train: TrainConfig) -> nn.Module:
        from accelerate.utils import set_seed

        set_seed(train.seed)
        return Classifier(network)

    def report(ema: nn.Module) -> str:
        accuracy = accuracy_of(ema, pixels, classes)
        return f"{run.folder}: accuracy {100 * accuracy:.2f} % on {len(classes):,} images not trained on"

    return Task(
        config=config,
        accelerator=accelerator,
        build_model=build,
        objective=ClassificationLoss(),
        data=training.to(accelerator.device),
        preview=lambda step, ema: {"test_accuracy": accuracy_of(ema, pixels, classes)},
        publish=lambda ema: save_classifier(ema, accuracy_of(ema, pixels, classes), run.folder),
        summary=f"{len(training):,} images to train on, {len(test):,} to test on, {len(network.class_names)} classes",
        report=report,
    )
