"""A small image classifier, trained on one's own data: features and class accuracy without a pretrained network.

A ResNet-18 (He et al. 2016) whose stem keeps the resolution, as is usual for images of 32 pixels.
"""

from pathlib import Path
from typing import Annotated, Self

import torch
import torch.nn.functional as F
from pydantic import Field, Strict
from torch import Tensor, nn

from ..core.rng import BatchRNG
from ..core.settings import Settings, settings_from
from ..core.storage import atomic_write, load_strictly, load_tensors, save_tensors

Positive = Annotated[int, Field(ge=1, le=65_536)]
Blocks = Annotated[list[Annotated[int, Field(ge=1, le=100)]], Field(min_length=4, max_length=4)]


class ClassifierConfig(Settings):
    """Architecture, classes and accuracy of a classifier."""

    shape: Annotated[list[Positive], Field(min_length=3, max_length=3)]
    """[channels, height, width] of the images."""
    class_names: Annotated[tuple[str, ...], Strict(False)]
    """Names of the classes."""
    blocks: Blocks = Field([2, 2, 2, 2])
    """Residual blocks of each of the four stages."""
    accuracy: float = Field(0.0, ge=0, le=1)
    """Accuracy on held-out images."""


class Classifier(nn.Module):
    """Images (B, C, H, W) in [-1, 1] -> logits (B, num_classes)."""

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        from torchvision.models.resnet import BasicBlock, ResNet

        self.config = config
        self.network = ResNet(BasicBlock, config.blocks, num_classes=len(config.class_names))
        self.network.conv1 = nn.Conv2d(config.shape[0], 64, 3, padding=1, bias=False)
        self.network.maxpool = nn.Identity()
        self.head, self.network.fc = self.network.fc, nn.Identity()

    def features(self, image: Tensor) -> Tensor:
        """Return the penultimate layer, averaged over the image, (B, 512)."""
        return self.network(image)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image))


class ClassificationLoss:
    """Cross entropy with label smoothing, of images shifted by up to an eighth: an objective for `Trainer`."""

    def at(self, progress: float) -> Self:
        """Return the same loss at any progress of the training."""
        return self

    def loss(
        self, model: nn.Module, image: Tensor, label: Tensor, rng: BatchRNG, augmentation: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return `loss` and `accuracy` of a batch, (B,) each. Augment labels are ignored."""
        logits = model(random_shift(image, rng)).float()
        loss = F.cross_entropy(logits, label, reduction="none", label_smoothing=0.1)
        return {"loss": loss, "accuracy": (logits.argmax(1) == label).float()}


def random_shift(image: Tensor, rng: BatchRNG) -> Tensor:
    """Return each image shifted by whole pixels, at random up to an eighth of its side, reflected at the border."""

    def shifted(side: int) -> Tensor:
        shift = ((2 * rng.uniform_like(image) - 1) * (side // 8 + 1)).long()
        index = torch.arange(side, device=image.device) + shift[:, None]
        return (side - 1 - (index.abs() - (side - 1)).abs()).clamp(min=0)  # reflected, (B, side)

    rows, columns = map(shifted, image.shape[-2:])
    batch = torch.arange(len(image), device=image.device)
    return image[batch[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@torch.no_grad()
def accuracy_of(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the accuracy on images (N, C, H, W) in [-1, 1] with labels (N,)."""
    device = next(model.parameters()).device
    predicted = [model(chunk.to(device)).argmax(1).cpu() for chunk in images.split(500)]
    return float((torch.cat(predicted) == labels).float().mean())


def save_classifier(model: Classifier, accuracy: float, folder: Path) -> None:
    """Write classifier.json and classifier.safetensors."""
    config = model.config.model_copy(update={"accuracy": accuracy})
    with atomic_write(folder / "classifier.json") as file:
        file.write_text(config.model_dump_json(indent=2), encoding="utf-8")
    with atomic_write(folder / "classifier.safetensors") as file:
        save_tensors(file, model.state_dict())


def load_classifier(folder: Path) -> Classifier:
    """Return the classifier that `save_classifier` wrote, in eval mode. Raise UserError if its files do not match."""
    model = Classifier(settings_from(folder / "classifier.json", ClassifierConfig))
    weights = folder / "classifier.safetensors"
    load_strictly(model, load_tensors(weights), weights)
    return model.eval().requires_grad_(False)
