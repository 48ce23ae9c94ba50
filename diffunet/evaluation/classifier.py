"""A classifier of small pictures, trained here, to compare pictures by where no other network is at hand.

A ResNet-18 (He et al. 2016) whose stem keeps the resolution, as is usual for pictures of 32 pixels.
"""

from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, Strict
from torch import Tensor, nn

from ..core.settings import settings_from
from ..core.rng import BatchRNG
from ..core.settings import Settings
from ..core.storage import load_strictly, load_tensors, save_tensors, atomic_write


class ClassifierConfig(Settings):
    """What decides a classifier, and how good it came out."""

    shape: list[int]
    """[channels, height, width] of the pictures."""
    class_names: Annotated[tuple[str, ...], Strict(False)]
    """Names of the classes."""
    blocks: list[int] = Field([2, 2, 2, 2])
    """Residual blocks of each of the four stages."""
    accuracy: float = Field(0.0, ge=0, le=1)
    """Share of pictures it was not trained on that it names rightly."""


class Classifier(nn.Module):
    """Images (B, C, H, W) in [-1, 1] -> logits (B, classes)."""

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        from torchvision.models.resnet import BasicBlock, ResNet

        self.config = config
        self.network = ResNet(BasicBlock, config.blocks, num_classes=len(config.class_names))
        self.network.conv1 = nn.Conv2d(config.shape[0], 64, 3, padding=1, bias=False)
        self.network.maxpool = nn.Identity()
        self.head, self.network.fc = self.network.fc, nn.Identity()

    def features(self, image: Tensor) -> Tensor:
        """(B, 512), averaged over the picture."""
        return self.network(image)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image))


class ClassificationLoss:
    """Cross entropy with smoothed labels, of pictures shifted by up to an eighth: an objective for `Trainer`."""

    def loss(self, model: nn.Module, image: Tensor, label: Tensor, rng: BatchRNG) -> dict[str, Tensor]:
        """Losses and hits of a batch, each (B,)."""
        logits = model(shifted(image, rng)).float()
        loss = F.cross_entropy(logits, label, reduction="none", label_smoothing=0.1)
        return {"loss": loss, "accuracy": (logits.argmax(1) == label).float()}


def shifted(image: Tensor, rng: BatchRNG) -> Tensor:
    """Each image moved by a random number of whole pixels, up to an eighth of its side, mirrored at the border."""
    rows, columns = (
        torch.arange(side, device=image.device) + ((2 * rng.uniform_like(image) - 1) * (side // 8 + 1)).long()[:, None]
        for side in image.shape[-2:]
    )
    rows, columns = (_mirrored(place, side) for place, side in zip((rows, columns), image.shape[-2:], strict=True))
    batch = torch.arange(len(image), device=image.device)
    return image[batch[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _mirrored(place: Tensor, side: int) -> Tensor:
    return (side - 1 - (place.abs() - (side - 1)).abs()).clamp(min=0)


@torch.no_grad()
def accuracy_of(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images (N, C, H, W) in [-1, 1] named rightly."""
    device = next(model.parameters()).device
    named = [model(chunk.to(device)).argmax(1).cpu() for chunk in images.split(500)]
    return float((torch.cat(named) == labels).float().mean())


def save_classifier(model: Classifier, accuracy: float, folder: Path) -> None:
    """Writes classifier.json and classifier.safetensors."""
    config = model.config.model_copy(update={"accuracy": accuracy})
    with atomic_write(folder / "classifier.json") as file:
        file.write_text(config.model_dump_json(indent=2), encoding="utf-8")
    with atomic_write(folder / "classifier.safetensors") as file:
        save_tensors(file, model.state_dict())


def load_classifier(folder: Path) -> Classifier:
    """What `save_classifier` wrote, ready to name. UserError if its files do not fit."""
    model = Classifier(settings_from(folder / "classifier.json", ClassifierConfig))
    weights = folder / "classifier.safetensors"
    load_strictly(model, load_tensors(weights), weights)
    return model.eval().requires_grad_(False)
