"""What tests share: small networks, Gaussian data, and commands called in this process."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffunet.models.unet import LevelConfig, UNetConfig


def small_unet(**changes) -> UNetConfig:
    """Two levels, attention at the coarser one, told a vector."""
    levels = (LevelConfig(channels=8, blocks=1), LevelConfig(channels=16, blocks=1, attention=True))
    return UNetConfig(**({"levels": levels, "vector_dim": 32, "norm_groups": 8} | changes))


def thinned(config: UNetConfig, factor: int) -> UNetConfig:
    """The same network with a fraction of the channels, each width a multiple of four."""

    def fewer(channels: int) -> int:
        return max(4, channels // factor // 4 * 4)

    levels = [
        level.model_copy(
            update={
                "channels": fewer(level.channels),
                "from_coarser": level.from_coarser and fewer(level.from_coarser),
                "down": level.down and tuple(map(fewer, level.down)),
                "up": level.up and tuple(map(fewer, level.up)),
            }
        )
        for level in config.levels
    ]
    changes = {"levels": tuple(levels), "head_channels": config.head_channels and 4}
    return config.model_copy(update=changes | {"vector_dim": config.vector_dim and 16})


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """The module with its zero-xavier_ layers filled, so that every part has an effect."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return module.eval()


MEAN, SPREAD = 0.2, 0.3
"""Of the pixels of Gaussian data, whose exact denoiser has a closed form."""


def gaussian_posterior(
    x_t: torch.Tensor, scale: torch.Tensor, sigma: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The conditional means of x_0 and of the noise, given x_t = scale x_0 + sigma noise, in fp64."""
    away = (x_t.double() - scale * MEAN) / (scale**2 * SPREAD**2 + sigma**2)
    return MEAN + scale * SPREAD**2 * away, sigma * away


def gaussian_flow(x_t, t):
    """The conditional mean of noise - x_0, given x_t = (1 - s) x_0 + s noise, t = 1000 s."""
    s = (t.double() / 1000).reshape(-1, 1, 1, 1)
    x_0, noise = gaussian_posterior(x_t, 1 - s, s)
    return (noise - x_0).float()


def gaussian_noise(count: int = 40) -> torch.Tensor:
    """Noise to draw from whose own mean and spread are exact, (count, 1, 32, 32)."""
    noise = torch.randn(count, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    return (noise - noise.mean()) / noise.std()


def run(command, *argv):
    """Calls a command; its exit code."""
    with pytest.raises(SystemExit) as ended:
        command([str(word) for word in argv])
    return ended.value.code or 0


def mistake(capsys, command, *argv) -> str:
    """The one line with which a command refuses."""
    capsys.readouterr()
    assert run(command, *argv) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def train_small(*argv):
    """Trains SMALL_RUN, with flags laid over, in the folder that `small` made."""
    from diffunet.cli import main as commands  # here, so that tests of the floors below do not import the commands

    assert run(commands.train, "--config", "small.yaml", *argv) == 0


def checkpoint(folder: Path, step: int = 12) -> dict[str, bytes]:
    """The bytes of a checkpoint and of the published weights."""
    files = [*(folder / "checkpoints" / f"step_{step:08d}").iterdir(), *(folder / "model").iterdir()]
    return {path.name: path.read_bytes() for path in files}


def write_image(path: Path, mode: str = "RGB", size: tuple[int, int] = (12, 10), seed: int = 0, **options) -> Path:
    """A random picture of (width, height) in one of Pillow's modes, or "I;16"."""
    generator = np.random.default_rng(seed)
    width, height = size
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode == "I;16":
        Image.fromarray(generator.integers(0, 65536, (height, width), dtype=np.uint16)).save(path, **options)
    else:
        channels = {"L": (), "RGB": (3,), "RGBA": (4,), "P": (3,)}[mode]
        array = generator.integers(0, 256, (height, width, *channels), dtype=np.uint8)
        picture = Image.fromarray(array)
        (picture.quantize(16) if mode == "P" else picture).save(path, **options)
    return path
