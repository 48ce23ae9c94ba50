"""Features of images: pixels, or the activations of a trained network.

A feature extractor maps integers (N, C, H, W) to features (N, D). Its name, how it resizes, and the SHA-256 of its
weights go into the record of an evaluation, which makes the figures reproducible.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..conditions.label import LabelConfig
from ..core.errors import UserError, did_you_mean
from ..core.progress import no_progress
from ..core.storage import sha256_of_file
from ..data.dataset import ImageDataset, load_images
from ..data.pixels import normalize, to_unit
from .classifier import load_classifier

KNOWN = ("pixels", "inception", "dinov2")
"""Features by name; the folder of a trained classifier is accepted as well."""
INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
INCEPTION_SHA = "6726825d"
"""Prefix of the SHA-256 of the weights that define FID; with other weights it is not FID."""
DINO = "facebook/dinov2-base"
BATCH = 256
CHUNK = 1024


class FeatureExtractor(ABC):
    """Features of images, and with some extractors their classes."""

    name: str
    resize: str
    weights: str | None = None
    """SHA-256 of the weights; None without any."""
    class_names: tuple[str, ...] = ()
    """Classes that `predict` distinguishes; empty without a classifier."""

    @abstractmethod
    def __call__(self, pixels: Tensor) -> Tensor:
        """Return fp32 features (N, D) of integers (N, C, H, W)."""

    def predict(self, pixels: Tensor) -> Tensor:
        """Return the class of each image, (N,) int64. Raise TypeError without `class_names`."""
        raise TypeError(f"{self.name}: distinguishes no classes")


class PixelFeatures(FeatureExtractor):
    """The pixels from 0 to 1, averaged down to at most 16 a side."""

    name = "pixels, 0 to 1"
    resize = "averaged down to at most 16 pixels a side"

    def __init__(self, bit_depth: int):
        self.bit_depth = bit_depth

    def __call__(self, pixels: Tensor) -> Tensor:
        size = [min(side, 16) for side in pixels.shape[-2:]]
        chunks = pixels.split(CHUNK)
        return torch.cat([F.adaptive_avg_pool2d(to_unit(c, self.bit_depth), size).flatten(1) for c in chunks])


class DigitFeatures(FeatureExtractor):
    """The 64 pixels of 8×8 digits on scikit-learn's scale, 0 to 16, and a support vector machine trained on them."""

    name, resize = "64 pixels, 0 to 16", "none"
    class_names = tuple(map(str, range(10)))

    def __init__(self, pixels: Tensor, labels: Tensor):
        """Train the classifier on digits (N, 1, 8, 8) with labels (N,)."""
        from sklearn.svm import SVC

        self.classifier = SVC(gamma=0.001, C=10).fit(self(pixels).numpy(), labels.numpy())

    def __call__(self, pixels: Tensor) -> Tensor:
        return (pixels.flatten(1).float() * (16 / 255)).round()

    def predict(self, pixels: Tensor) -> Tensor:
        return torch.from_numpy(self.classifier.predict(self(pixels).numpy()))


class NetworkFeatures(FeatureExtractor):
    """Activations of a pretrained network for 8-bit color images."""

    def __init__(
        self, name: str, resize: str, weights: Path, network: Callable[[Tensor], Tensor], device: torch.device
    ):
        """`network` maps uint8 (B, 3, H, W) to (B, D)."""
        self.name, self.resize, self.weights = name, resize, sha256_of_file(weights)
        self.network, self.device = network, device

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        return torch.cat([self.network(_to_rgb(chunk).to(self.device)).float().cpu() for chunk in pixels.split(BATCH)])


class ClassifierFeatures(FeatureExtractor):
    """The penultimate layer of a classifier that `diffunet classifier` trained, and its classes."""

    resize = "none"

    def __init__(self, folder: Path, device: torch.device):
        self.classifier = load_classifier(folder).to(device)
        config = self.classifier.config
        self.name = f"classifier {folder.name}, accuracy {config.accuracy:.4f}"
        self.weights = sha256_of_file(folder / "classifier.safetensors")
        self.class_names = config.class_names
        self.device = device

    @torch.no_grad()
    def _apply(self, function: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
        if list(pixels.shape[1:]) != self.classifier.config.shape:
            expected, found = ("×".join(map(str, s)) for s in (self.classifier.config.shape, pixels.shape[1:]))
            raise UserError(f"--features: the classifier was trained on {expected} images (got {found}); use another")
        images = (normalize(chunk.to(self.device), 8) for chunk in pixels.split(BATCH))
        return torch.cat([function(image).cpu() for image in images])

    def __call__(self, pixels: Tensor) -> Tensor:
        return self._apply(self.classifier.features, pixels)

    def predict(self, pixels: Tensor) -> Tensor:
        return self._apply(self.classifier, pixels).argmax(1)


def choose_features(
    name: str | None, weights: str | None, dataset: ImageDataset, device: torch.device
) -> FeatureExtractor:
    """Return the features of that name, by default the pixels, and for the built-in digits their own.

    Raise UserError like `load_features`.
    """
    if name is None and dataset.config.path == "digits" and dataset.config.size == (8, 8):
        trained, _ = load_images(dataset.config, {"label": LabelConfig()}).split_held_out()
        batch = trained.__getitems__(list(range(len(trained))))
        return DigitFeatures(batch["image"], batch["label"])
    return load_features(name or "pixels", weights, dataset.config.bit_depth, device)


def load_features(name: str, weights: str | None, bit_depth: int, device: torch.device) -> FeatureExtractor:
    """Return the features of that name, with weights from a file or folder; None: the default ones.

    Raise UserError with the files to download, and where to put them, if they are missing.
    """
    if name == "pixels":
        return PixelFeatures(bit_depth)
    if bit_depth != 8:
        raise UserError(f"--features {name}: needs 8-bit images (got {bit_depth} bits); use --features pixels")
    if name == "inception":
        return _inception(weights, device)
    if name == "dinov2":
        return _dinov2(weights or DINO, device)
    if (Path(name) / "classifier.json").is_file():
        return ClassifierFeatures(Path(name), device)
    raise UserError(
        f"--features: {name} is neither one of {', '.join(KNOWN)} nor a folder written by diffunet classifier"
        f"{did_you_mean(name, KNOWN)}"
    )


def _inception(weights: str | None, device: torch.device) -> NetworkFeatures:
    """Return the network that defines FID (Heusel et al. 2017), as converted by torch-fidelity."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise UserError('--features inception: needs torch-fidelity; run pip install "diffunet[evaluate]"') from None
    file = Path(weights or Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_URL.rpartition("/")[2])
    if not weights and not file.exists():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(INCEPTION_URL, str(file), hash_prefix=INCEPTION_SHA)
        except (OSError, RuntimeError):
            raise UserError(
                f"--features inception: cannot download the weights; download {INCEPTION_URL} and put it at {file}, "
                "or pass its path with --weights"
            ) from None
    if not file.is_file():
        raise UserError(f"--weights: {file} does not exist; download {INCEPTION_URL}")
    try:
        torch.load(file, weights_only=True)  # torch-fidelity would execute the pickle of a hostile file
        network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(file))
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file}: not the Inception weights ({reason}); download {INCEPTION_URL}") from None
    network = network.to(device)
    resize = "bilinear as in TensorFlow 1, to 299×299"
    return NetworkFeatures("inception 2048", resize, file, lambda pixels: network(pixels)[0], device)


def _dinov2(folder: str, device: torch.device) -> NetworkFeatures:
    """Return the class token of DINOv2 (Oquab et al. 2023), or of another model of transformers in that folder."""
    try:
        from transformers import AutoModel
    except ImportError:
        raise UserError('--features dinov2: needs transformers; run pip install "diffunet[evaluate]"') from None
    from huggingface_hub import snapshot_download

    try:
        if not Path(folder).is_dir():
            folder = snapshot_download(folder, allow_patterns=["config.json", "model.safetensors"])
        network: nn.Module = AutoModel.from_pretrained(folder, use_safetensors=True).to(device).eval()
    except Exception as error:
        raise UserError(
            f"--features dinov2: cannot load {folder} ({type(error).__name__}); download config.json and "
            f"model.safetensors from https://huggingface.co/{DINO} into a folder and pass it with --weights"
        ) from None
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))

    def class_token(pixels: Tensor) -> Tensor:
        image = F.interpolate(to_unit(pixels, 8), (224, 224), mode="bicubic", antialias=True).clamp(0, 1)
        return network(pixel_values=(image - mean) / std).last_hidden_state[:, 0]

    file = Path(folder) / "model.safetensors"
    return NetworkFeatures(f"{network.config.model_type} class token", "bicubic to 224×224", file, class_token, device)


def _to_rgb(pixels: Tensor) -> Tensor:
    """Return uint8 (N, 3, H, W) of gray, color or transparent images, without the transparency."""
    return pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels[:, :3]


def extract(features: FeatureExtractor, images: Any, indices: list[int], progress: Callable = no_progress) -> Tensor:
    """Return features (N, D) of the images at `indices`, CHUNK at a time; `images` is indexed by lists of indices."""
    if not indices:
        return features(images[[0]])[:0]
    chunks = [indices[first : first + CHUNK] for first in range(0, len(indices), CHUNK)]
    return torch.cat([features(images[chunk]) for chunk in progress(chunks)])
