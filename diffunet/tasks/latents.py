"""The latents of a training set, by the autoencoder that a configuration names."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.storage import sha256_of_tensors, tensors_to_bytes
from ..data.dataset import ImageDataset
from ..data.latents import LatentDataset, encode_images, statistics
from ..models.autoencoder import load_autoencoder
from ..models.saving import WEIGHTS
from ..runs.autoencoding import check_divides
from ..runs.config import Config
from ..runs.run import CODEC


def encode_dataset(
    config: Config, images: ImageDataset, folder: Path, device: torch.device, progress: Callable
) -> tuple[Config, LatentDataset, Mapping[str, bytes]]:
    """Return the config with its codec complete, the latents of the images, and the autoencoder's files for the run.

    Where the config has the mean and the spread of the latents, the autoencoder is that in `folder`, the model/ folder
    of the run that this one resumes or begins from. Otherwise it is what `codec.from` names, and they are measured.
    Raise UserError if it does not suit the images.
    """
    if images.config.augmentation:
        raise UserError("data.augmentation: distorts images, and their latents are encoded once; use 0")
    is_kept = bool(config.codec.scale) and (folder / CODEC / WEIGHTS).exists()
    autoencoder = load_autoencoder(folder / CODEC if is_kept else str(config.codec.pretrained)).to(device)
    if autoencoder.image_channels != images.config.channels:
        raise UserError(
            f"codec.from: {config.codec.pretrained} takes images of {autoencoder.image_channels} channels "
            f"(got {images.config.channels}); use --data.channels {autoencoder.image_channels}"
        )
    check_divides(autoencoder.factor, images.config.size, "codec.from")
    tensors = {name: value.cpu() for name, value in autoencoder.network.state_dict().items()}
    checksum = sha256_of_tensors(tensors)

    def encode(pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        return autoencoder.encode(pixels.to(device))

    moments = encode_images(images, encode, checksum, progress)
    measured = {"shift": config.codec.shift, "scale": config.codec.scale}
    if not config.codec.scale:
        trained = images.split_held_out()[0].indices
        assert trained is not None
        measured = dict(zip(measured, statistics(moments, autoencoder.latent_channels, trained), strict=True))
    codec = config.codec.model_copy(update={**measured, "factor": autoencoder.factor})
    own = {name: getattr(images, name) for name in ImageDataset.__dataclass_fields__}
    own |= {"fingerprint": f"{images.fingerprint} {checksum}"}
    latents = LatentDataset(**own, moments=moments, **measured)
    files = {f"model/{CODEC}/config.json": autoencoder.config_json().encode()}
    files |= {f"model/{CODEC}/{WEIGHTS}": tensors_to_bytes(tensors)}
    return config.model_copy(update={"codec": codec}), latents, files
