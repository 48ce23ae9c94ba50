"""What pictures are compared by: pixels, or what a network that was trained elsewhere sees in them.

Each answers to integers (N, C, H, W) with features (N, D), and says what it is, how it resizes, and the
SHA-256 of its weights, so that a figure can be made again.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .classifier import load_classifier
from ..core.errors import UserError, did_you_mean
from ..core.progress import no_progress
from ..core.storage import sha256_of_file

KNOWN = ("pixels", "inception", "dinov2")
"""Features by name; a folder that `diffunet classifier` wrote is taken as well."""
INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
INCEPTION_SHA = "6726825d"
"""How the SHA-256 of the weights begins that FID is defined by; with others it is not FID."""
DINO = "facebook/dinov2-base"
BATCH = 256


class FeatureExtractor(Protocol):
    """A way to compare pictures."""

    name: str
    resize: str
    weights: str | None
    """SHA-256 of the weights; None where there are none."""
    class_names: tuple[str, ...]
    """The classes that it can name; none for most."""

    def __call__(self, pixels: Tensor) -> Tensor:
        """fp32 (N, D) of integers (N, C, H, W)."""

    def named(self, pixels: Tensor) -> Tensor:
        """The class of each picture, (N,) int64, where it knows classes."""


class PixelFeatures:
    """The pixels, averaged down to at most 16 a side."""

    weights, class_names = None, ()
    resize = "averaged down to at most 16 pixels a side"

    def __init__(self, bit_depth: int):
        self.name = "pixels, 0 to 1"
        self.brightest = 2**bit_depth - 1

    def __call__(self, pixels: Tensor) -> Tensor:
        size = [min(side, 16) for side in pixels.shape[-2:]]
        chunks = pixels.split(1024)
        return torch.cat([F.adaptive_avg_pool2d(c.float() / self.brightest, size).flatten(1) for c in chunks])


class DigitFeatures:
    """scikit-learn's 64 pixels from 0 to 16; a support vector machine trained on such digits names them."""

    weights, resize, name = None, "none", "64 pixels, 0 to 16"
    class_names = tuple(map(str, range(10)))

    def __init__(self, pixels: Tensor, labels: Tensor):
        """The digits, (N, 1, 8, 8) and (N,), from which to learn the names."""
        from sklearn.svm import SVC

        self.machine = SVC(gamma=0.001, C=10).fit(self(pixels).numpy(), labels.numpy())

    def __call__(self, pixels: Tensor) -> Tensor:
        return (pixels.flatten(1).float() * (16 / 255)).round()

    def named(self, pixels: Tensor) -> Tensor:
        return torch.from_numpy(self.machine.predict(self(pixels).numpy()))


class NetworkFeatures:
    """What a network makes of 8-bit colour pictures."""

    class_names: tuple[str, ...] = ()

    def __init__(self, name: str, resize: str, weights: Path, network: Callable, device: torch.device):
        """`network` answers to uint8 (B, 3, H, W) with (B, D)."""
        self.name, self.resize, self.weights = name, resize, sha256_of_file(weights)
        self.network, self.device = network, device

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        return torch.cat([self.network(_colour(chunk).to(self.device)).float().cpu() for chunk in pixels.split(BATCH)])


class ClassifierFeatures:
    """The last but one layer of a classifier that `diffunet classifier` trained; it names its classes, too."""

    resize = "none"

    def __init__(self, folder: Path, device: torch.device):
        self.classifier = load_classifier(folder).to(device)
        config = self.classifier.config
        self.name = f"classifier {folder.name}, accuracy {config.accuracy:.4f}"
        self.weights = sha256_of_file(folder / "classifier.safetensors")
        self.class_names = config.class_names
        self.device = device

    @torch.no_grad()
    def _answers(self, pixels: Tensor, answer: Callable) -> Tensor:
        if list(pixels.shape[1:]) != self.classifier.config.shape:
            wanted, found = ("×".join(map(str, s)) for s in (self.classifier.config.shape, pixels.shape[1:]))
            raise UserError(f"--features: this classifier was trained on pictures of {wanted}, not {found}")
        images = (chunk.to(self.device).float() * (2 / 255) - 1 for chunk in pixels.split(BATCH))
        return torch.cat([answer(image).cpu() for image in images])

    def __call__(self, pixels: Tensor) -> Tensor:
        return self._answers(pixels, self.classifier.features)

    def named(self, pixels: Tensor) -> Tensor:
        return self._answers(pixels, self.classifier).argmax(1)


def load_features(name: str, weights: str | None, bit_depth: int, device: torch.device) -> FeatureExtractor:
    """The features of that name, with weights from a file or folder of one's own if not from their usual place.

    UserError that says what to fetch and where to put it.
    """
    if name == "pixels":
        return PixelFeatures(bit_depth)
    if bit_depth != 8:
        raise UserError(f"--features {name}: sees 8-bit pictures only, these have {bit_depth} bits; use pixels")
    if name == "inception":
        return _inception(weights, device)
    if name == "dinov2":
        return _dinov2(weights or DINO, device)
    if (Path(name) / "classifier.json").is_file():
        return ClassifierFeatures(Path(name), device)
    raise UserError(
        f"--features: {name} is neither a folder that diffunet classifier wrote nor one of "
        f"{', '.join(KNOWN)}{did_you_mean(name, KNOWN)}"
    )


def _inception(weights: str | None, device: torch.device) -> NetworkFeatures:
    """The network of FID (Heusel et al. 2017), as torch-fidelity converted it."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise UserError('--features inception: needs torch-fidelity; pip install "diffunet[evaluate]"') from None
    file = Path(weights or Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_URL.rpartition("/")[2])
    if not weights and not file.exists():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(INCEPTION_URL, str(file), hash_prefix=INCEPTION_SHA)
        except (OSError, RuntimeError):
            raise UserError(
                f"--features inception: cannot fetch its weights; download {INCEPTION_URL} and put it at {file}, "
                "or name it with --weights"
            ) from None
    if not file.is_file():
        raise UserError(f"--weights: {file} does not exist; it is to be a copy of {INCEPTION_URL}")
    try:
        torch.load(file, weights_only=True)                # torch-fidelity would run whatever a hostile file says
        network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(file))
    except Exception as error:
        raise UserError(f"{file}: not the weights of {INCEPTION_URL} ({str(error).splitlines()[0]})") from None
    network = network.to(device)
    resize = "bilinear as in TensorFlow 1, to 299×299"
    return NetworkFeatures("inception 2048", resize, file, lambda pixels: network(pixels)[0], device)


def _dinov2(folder: str, device: torch.device) -> NetworkFeatures:
    """The class token of DINOv2 (Oquab et al. 2023) or of what else `transformers` loads from there."""
    try:
        from transformers import AutoModel
    except ImportError:
        raise UserError('--features dinov2: needs transformers; pip install "diffunet[evaluate]"') from None
    from huggingface_hub import snapshot_download

    try:
        if not Path(folder).is_dir():
            folder = snapshot_download(folder, allow_patterns=["config.json", "model.safetensors"])
        network: nn.Module = AutoModel.from_pretrained(folder, use_safetensors=True).to(device).eval()
    except Exception as error:
        raise UserError(
            f"--features dinov2: {folder} cannot be loaded ({type(error).__name__}); download the files config.json "
            f"and model.safetensors of https://huggingface.co/{DINO} into a folder and name it with --weights"
        ) from None
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))

    def answer(pixels: Tensor) -> Tensor:
        image = F.interpolate(pixels.float() / 255, (224, 224), mode="bicubic", antialias=True).clamp(0, 1)
        return network(pixel_values=(image - mean) / std).last_hidden_state[:, 0]

    weights = Path(folder) / "model.safetensors"
    return NetworkFeatures(f"{network.config.model_type} class token", "bicubic to 224×224", weights, answer, device)


def _colour(pixels: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) of grey, coloured or transparent pictures; transparency is left out."""
    return pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels[:, :3]


def features_of(features: FeatureExtractor, pixels: Any, indices: list[int], progress: Callable = no_progress) -> Tensor:
    """(N, D) of some pictures of a set that answers to lists of indices, as many at a time as fit in memory."""
    if not indices:
        return features(pixels[[0]])[:0]
    parts = [indices[first : first + 1024] for first in range(0, len(indices), 1024)]
    return torch.cat([features(pixels[part]) for part in progress(parts)])
