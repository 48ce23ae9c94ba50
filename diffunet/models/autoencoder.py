"""Autoencoders of images by diffusers, whose latents are smaller images of other channels (Rombach et al. 2022).

autoencoder = load_autoencoder("stabilityai/sd-vae-ft-mse")       # or a folder of diffusers, or a run of ours
mean, log_variance = autoencoder.encode(image)                    # (B, 3, H, W) -> (B, 4, H / 8, W / 8)
image = autoencoder.decode(mean)
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, Strict, model_validator
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.settings import Settings
from ..core.storage import check_state_dict, load_json, load_tensors
from .config import MAX_CHANNELS, Channels
from .meta import on_meta
from .saving import WEIGHTS

CLASSES = ("AutoencoderKL", "AutoencoderTiny", "AutoencoderDC")
"""Classes of diffusers that are read."""


class AutoencoderConfig(Settings):
    """An `AutoencoderKL` of diffusers: residual blocks, and attention in the middle."""

    channels: Annotated[tuple[Channels, ...], Field(min_length=1, max_length=8), Strict(False)] = (32, 64, 64)
    """Channels at each resolution, the finest first; each further one halves the sides, so 3 of them make latents of a
    quarter of the side."""
    latent_channels: int = Field(4, ge=1, le=MAX_CHANNELS)
    """Channels of a latent."""
    blocks: int = Field(1, ge=1, le=100)
    """Residual blocks at each resolution of the encoder; the decoder has one more."""
    attention: bool = False
    """Self-attention at the coarsest resolution."""
    norm_groups: int = Field(16, ge=1, le=MAX_CHANNELS)
    """Groups of each group norm; it has to divide all channels."""

    @model_validator(mode="after")
    def _groups_divide_the_channels(self):
        for width in self.channels:
            if width % self.norm_groups:
                raise ValueError(f"norm_groups: {self.norm_groups} does not divide {width} channels; use a divisor")
        return self

    @property
    def factor(self) -> int:
        """Side of the pixels of one position of a latent."""
        return 2 ** (len(self.channels) - 1)

    def build(self, image_channels: int) -> "Autoencoder":
        """Return the autoencoder for images of this many channels, with fresh weights."""
        number = len(self.channels)
        options = {
            "in_channels": image_channels,
            "out_channels": image_channels,
            "down_block_types": ("DownEncoderBlock2D",) * number,
            "up_block_types": ("UpDecoderBlock2D",) * number,
            "block_out_channels": self.channels,
            "layers_per_block": self.blocks,
            "latent_channels": self.latent_channels,
            "norm_num_groups": self.norm_groups,
            "mid_block_add_attention": self.attention,
            "scaling_factor": 1.0,
        }
        return Autoencoder(_network("AutoencoderKL", options))


class Autoencoder(nn.Module):
    """One of the CLASSES of diffusers, with the same signature for all."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network: Any = network

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the mean and the log-variance of the latents, (B, C', H / f, W / f) each, of images in [-1, 1].

        (B, C, H, W); H and W are multiples of `factor`. The log-variance is None for latents without noise.
        """
        found = self.network.encode(image)
        if "latent_dist" not in found:
            return found[0], None
        return found.latent_dist.mean, found.latent_dist.logvar

    def decode(self, latent: Tensor) -> Tensor:
        """Return images (B, C, H, W), in about [-1, 1], of latents."""
        return self.network.decode(latent).sample

    def forward(
        self, image: Tensor, sample: Callable[[Tensor, Tensor | None], Sequence[Tensor]]
    ) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """Return mean and log-variance, and the images of the latents that `sample` makes of these.

        A training calls this, and not the other two, since processes exchange gradients of calls of the model alone.
        """
        mean, log_variance = self.encode(image)
        return mean, log_variance, [self.decode(latent) for latent in sample(mean, log_variance)]

    @property
    def factor(self) -> int:
        """Side of the pixels of one position of a latent."""
        config = self.network.config
        widths = config.get("block_out_channels") or config["encoder_block_out_channels"]
        return 2 ** (len(widths) - 1)

    @property
    def image_channels(self) -> int:
        """Channels of an image."""
        return self.network.config["in_channels"]

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return self.network.config["latent_channels"]

    def config_json(self) -> str:
        """Return config.json of a folder that diffusers loads; `WEIGHTS` of it are those of `network`."""
        return self.network.to_json_string()


def load_autoencoder(name: str | Path) -> Autoencoder:
    """Return a trained autoencoder: of a folder of diffusers or of a run of ours, or by its id on the hub.

    A folder has config.json with one of the CLASSES and WEIGHTS, or its model/ or vae/ folder has. It is frozen, in
    evaluation mode. Raise UserError where nothing is found, or if files do not fit.
    """
    folder = _folder_of(name)
    config = load_json(folder / "config.json")
    kind = config.get("_class_name")
    if kind not in CLASSES:
        raise UserError(f"{folder / 'config.json'}: not an autoencoder of diffusers (got {kind}; use {CLASSES[0]})")
    options = {key: _tupled(value) for key, value in config.items() if not key.startswith("_")}
    if kind == "AutoencoderTiny":
        options.pop("block_out_channels", None)  # which it writes, and does not take
    tensors = load_tensors(folder / WEIGHTS)
    try:
        with on_meta():  # refuses an absurd size before it is allocated
            check_state_dict(_network(kind, options).state_dict(), tensors, folder / WEIGHTS)
        network = _network(kind, options)
    except (TypeError, ValueError) as impossible:
        raise UserError(f"{folder / 'config.json'}: {str(impossible).splitlines()[0]}") from None
    network.load_state_dict(tensors)
    return Autoencoder(network).eval().requires_grad_(False)


def _network(kind: str, options: dict[str, Any]) -> nn.Module:
    import diffusers

    return getattr(diffusers, kind)(**options)


def _tupled(value: Any) -> Any:
    return tuple(map(_tupled, value)) if isinstance(value, list) else value


def _folder_of(name: str | Path) -> Path:
    """Return the folder that has config.json and WEIGHTS. Raise UserError if there is none."""
    folder = Path(name).expanduser()
    for place in (folder, folder / "model", folder / "vae"):
        if (place / "config.json").is_file() and (place / WEIGHTS).is_file():
            return place
    if folder.exists() or folder.is_absolute() or str(name).count("/") != 1 or str(name).startswith("."):
        raise UserError(f"{name}: no autoencoder here (config.json and {WEIGHTS}, also in model/ or vae/)")
    import huggingface_hub

    wanted = [f"{place}{file}" for place in ("", "vae/") for file in ("config.json", WEIGHTS)]
    try:
        found = Path(huggingface_hub.snapshot_download(str(name), allow_patterns=wanted))
    except (OSError, ValueError) as error:
        problem = str(error).splitlines()[0]
        raise UserError(f"{name}: no such folder, and on the hub: {problem}") from None
    return _folder_of(found)
