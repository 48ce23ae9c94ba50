"""Latents instead of images: encoded once, kept in a file, and sampled anew at each step."""

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..core.progress import no_progress
from ..core.rng import BatchRNG
from ..core.shared_work import POLL, SharedWork
from ..core.storage import atomic_write, cache_folder
from .dataset import ImageDataset
from .decoding import file_of
from .pixels import normalize

BATCH = 32
"""Images encoded at once."""
PART = 1024
"""Images of a part: what a kill may cost, and what processes share."""
FORMAT = 1
"""Of the files; part of their names."""
Encode = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""Images (B, C, H, W) in [-1, 1] -> mean and log-variance of their latents, (B, C', h, w) each; without noise, None."""


@dataclass(frozen=True, kw_only=True)
class LatentDataset(ImageDataset):
    """A dataset whose batches have a sample of each image's latents as `image`, of mean 0 and spread 1 per channel."""

    moments: Tensor
    """(N, M, K, h, w) in 16 bits, of all images, in their order: M = 2 with the mirrored image's; K channels of the
    mean, followed by as many of the log-variance, if there is one."""
    shift: tuple[float, ...]
    """Of each channel, the mean of the latents."""
    scale: tuple[float, ...]
    """Of each channel, their standard deviation."""

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """Return a batch: `image`, moments (B, M, K, h, w), and each condition; `pixels` if one is an image, too."""
        chosen = torch.tensor(indices) if self.indices is None else self.indices[indices]
        image = self.moments[chosen.to(self.moments.device)]
        if not self._has_sources:
            return {"image": image, **{name: column[chosen] for name, column in self.columns.items()}}
        batch = super().__getitems__(indices)
        return {**batch, "pixels": batch["image"], "image": image}

    @property
    def _has_sources(self) -> bool:
        return any(condition.plane_channels for condition in self.conditions.values())

    def prepare(self, batch: dict[str, Tensor], rng: BatchRNG) -> dict[str, Tensor]:
        """Return the batch as the network takes it: latents (B, C', h, w), mirrored as configured, and conditions.

        Conditions that are images are mirrored with theirs.
        """
        moments = batch["image"].float()
        flip = rng.uniform_like(moments) < (0.5 if self.config.random_flip else 0)
        moments = torch.where(flip[:, None, None, None], moments[:, -1], moments[:, 0])
        mean, log_variance = moments.split(len(self.shift), dim=1) if self._has_noise else (moments, None)
        latent = mean
        if log_variance is not None:
            latent = mean + (0.5 * log_variance).exp() * rng.normal_like(mean)
        shift, scale = (latent.new_tensor(values).reshape(-1, 1, 1) for values in (self.shift, self.scale))
        image = (latent - shift) / scale
        prepared = {**batch, "image": image}
        pixels = prepared.pop("pixels", None)
        if pixels is not None:
            pixels = _mirrored(normalize(pixels, self.config.bit_depth or 8), flip)
        for name, column in self.columns.items():
            value = column.aligned(batch[name])
            value = batch[name] if value is None else _mirrored(value, flip)
            prepared[name] = column.prepare(value, image if pixels is None else pixels, rng)
        return prepared

    @property
    def _has_noise(self) -> bool:
        return self.moments.shape[2] == 2 * len(self.shift)

    def to(self, device: torch.device) -> "LatentDataset":
        """Return the dataset with its latents on a GPU if they leave three quarters of its free memory, else itself."""
        if device.type != "cuda" or self.moments.nbytes > torch.cuda.mem_get_info(device)[0] / 4:
            return self
        return replace(self, moments=self.moments.to(device))

    @property
    def workers(self) -> int:
        return self.config.workers if self._has_sources and not isinstance(self.images, Tensor) else 0


def _mirrored(images: Tensor, flip: Tensor) -> Tensor:
    return torch.where(flip[:, None, None, None], images.flip(-1), images)


# ── encoding ──────────────────────────────────────────────────────────────────────────────────────


def cache_file(images: ImageDataset, encoder: str) -> Path:
    """Return the file of the latents of images by an encoder, of which `encoder` is the checksum of the weights."""
    config = images.config
    decided_by = FORMAT, encoder, config.size, config.channels, config.bit_depth, config.value_range, len(images)
    digest = hashlib.sha256(repr((*decided_by, config.random_flip)).encode())
    for content in _contents(images):
        digest.update(content)
    return cache_folder("latents") / f"{digest.hexdigest()[:16]}.npy"


def _contents(images: ImageDataset) -> Iterator[bytes]:
    """Yield the pixels of all images, or the bytes of their files where they are decoded as needed."""
    if isinstance(images.images, Tensor):
        yield images.images.numpy().tobytes()
        return
    for row in images.images.files:
        source = file_of(row["image"])
        with suppress(OSError):  # reported when it is decoded
            yield Path(source).read_bytes() if isinstance(source, str) else row["image"]["bytes"]


def encode_images(images: ImageDataset, encode: Encode, encoder: str, progress: Callable = no_progress) -> Tensor:
    """Return the moments of all images, (N, M, K, h, w) in 16 bits, mapped into memory; see `LatentDataset.moments`.

    They are encoded once, by all processes that call this, and after a kill from where they stopped. `encoder`: the
    checksum of the weights. `progress` wraps the batches of a part.
    """
    file = cache_file(images, encoder)
    while not file.exists():
        _encode_missing(images, encode, file, progress)
        if not file.exists():
            time.sleep(POLL)
    return torch.from_numpy(np.load(file, mmap_mode="c"))


def _encode_missing(images: ImageDataset, encode: Encode, file: Path, progress: Callable) -> None:
    """Encode the parts that no other process encodes, and write the file if all are there."""
    firsts = range(0, len(images), PART)
    work = SharedWork(file.with_suffix(".unfinished"), file.name, [f"{first:09d}.npy" for first in firsts])
    for part in work.claim():
        if file.exists():  # finished between the caller's look and the beginning of this work
            shutil.rmtree(work.folder, ignore_errors=True)
            return
        first = int(part.stem)
        moments = _encoded(images, encode, range(first, min(first + PART, len(images))), progress)
        with atomic_write(part) as partial, partial.open("wb") as opened:
            np.save(opened, moments)
    with work.closing() as last:
        if last:
            shape = len(images), *np.load(work.parts[0], mmap_mode="r").shape[1:]
            with atomic_write(file) as partial:
                whole = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=shape)
                for first, part in zip(firsts, work.parts, strict=True):
                    whole[first : first + PART] = np.load(part)
                whole.flush()


@torch.no_grad()
def _encoded(images: ImageDataset, encode: Encode, indices: range, progress: Callable) -> np.ndarray:
    parts = []
    for first in progress(range(0, len(indices), BATCH)):
        pixels = images.__getitems__(list(indices[first : first + BATCH]))["image"]
        pixels = normalize(pixels, images.config.bit_depth or 8)
        views = [pixels, pixels.flip(-1)] if images.config.random_flip else [pixels]
        moments = [torch.cat([part for part in encode(view) if part is not None], dim=1) for view in views]
        parts.append(torch.stack(moments, dim=1).half().cpu().numpy())
    return np.concatenate(parts)


def statistics(moments: Tensor, channels: int, indices: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel over samples of the latents of some images."""
    sums, number = torch.zeros(2, channels, dtype=torch.float64), 0
    for chunk in indices.split(1024):
        parts = moments[chunk].double().transpose(1, 2)  # (B, K, M, h, w)
        values, log_variance = parts[:, :channels], parts[:, channels:]
        noise = log_variance.exp() if log_variance.shape[1] else torch.zeros_like(values)
        sums += torch.stack([values.sum((0, 2, 3, 4)), (values.square() + noise).sum((0, 2, 3, 4))])
        number += values[:, 0].numel()
    mean = sums[0] / number
    std = (sums[1] / number - mean.square()).clamp(min=1e-12).sqrt()
    return tuple(mean.tolist()), tuple(std.tolist())
