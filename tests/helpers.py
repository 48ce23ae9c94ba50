"""Shared by tests: small networks, Gaussian data, and commands called in this process."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffunet.cli.main import main
from diffunet.models.config import LevelConfig, UNetConfig


def small_unet(**changes) -> UNetConfig:
    """Return a config of two levels with attention at the coarser one, conditioned on a vector of 32."""
    levels = (LevelConfig(channels=8, blocks=1), LevelConfig(channels=16, blocks=1, attention=True))
    return UNetConfig(**({"levels": levels, "vector_dim": 32, "norm_groups": 8} | changes))


def thinned(config: UNetConfig, factor: int) -> UNetConfig:
    """Return the same network with a fraction of the channels, each width a multiple of four."""

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


def randomized(module: torch.nn.Module) -> torch.nn.Module:
    """Return the module with random weights, also in its zero-initialized layers, so that every part has an effect."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return module.eval()


MEAN, SPREAD = 0.2, 0.3
"""Mean and standard deviation of the pixels of Gaussian data, whose exact denoiser has a closed form."""
STDS = (0.12, 0.25, 0.5)
"""Other standard deviations at which samplers are judged, from dark scans to photographs in [-1, 1]."""

SOLVER_ERRORS = {
    "dpm++": {8: 0.04, 10: 0.045, 15: 0.032, 25: 0.015, 50: 0.006},
    "sde-dpm++": {10: 0.06, 15: 0.065, 25: 0.04, 50: 0.025},
}
"""Largest relative error of the spread by number of network calls, for every objective."""


def gaussian_posterior(
    x_t: torch.Tensor, scale: torch.Tensor, sigma: torch.Tensor, std: torch.Tensor | float = SPREAD
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the conditional means of x_0 and of the noise, given x_t = scale x_0 + sigma noise, in fp64."""
    residual = (x_t.double() - scale * MEAN) / (scale**2 * std**2 + sigma**2)
    return MEAN + scale * std**2 * residual, sigma * residual


def gaussian_flow(x_t, t, std: torch.Tensor | float = SPREAD):
    """Return the conditional mean of noise - x_0, given x_t = (1 - s) x_0 + s noise, t = 1000 s."""
    s = (t.double() / 1000).reshape(-1, 1, 1, 1)
    x_0, noise = gaussian_posterior(x_t, 1 - s, s, std)
    return (noise - x_0).float()


def gaussian_noise(count: int = 40, size: int = 32) -> torch.Tensor:
    """Return noise (count, 1, size, size) in which the mean and the spread of each image are exact."""
    noise = torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(0))
    std, mean = torch.std_mean(noise, (1, 2, 3), keepdim=True)
    return (noise - mean) / std


def sampled_spread(exact: Callable, sampler, size: int = 96) -> list[float]:
    """Return the standard deviation of samples over that of the data, for data of each of STDS.

    exact(x_t, t, std): the exact network. All samplers are affine maps of Gaussian noise without clipping, so two
    pixels determine a deterministic one. Fail if the mean of the samples is off.
    """
    from diffunet.objectives.solvers import Solver
    from diffunet.sampling.loop import sample

    stds = torch.tensor(STDS, dtype=torch.float64).reshape(-1, 1, 1, 1)
    if isinstance(sampler, Solver):
        sampler.limit = None
        stochastic = sampler.method.eta > 0
    else:
        if "thresholding" in sampler.config:
            sampler.register_to_config(thresholding=False)
        stochastic = type(sampler).__name__.startswith(("DDPM", "EulerA"))
    noise = gaussian_noise(len(STDS), size) if stochastic else torch.tensor([-1.0, 1.0]).expand(len(STDS), 1, 1, 2)
    x = sample(lambda x_t, t: exact(x_t, t, stds), sampler, noise, torch.Generator().manual_seed(1)).double()
    assert (x.mean((1, 2, 3)) - MEAN).abs().max() < (0.02 if stochastic else 0.003)
    return (x.std((1, 2, 3), correction=0) / stds.flatten()).tolist()


PEAK_MEMORY = """
def peak_memory():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

"""
"""For programs: their peak in bytes. `getrusage` would count the process that started them as well."""

SMALL_PREDICTOR = """
objective: {type: segmentation}
unet: {levels: [{channels: 4, blocks: 1}, {channels: 8, blocks: 1}], norm_groups: 4, middle_attention: false}
data: {path: pairs, patch: 16}
augment: {rotate: 180, elastic: 2, elastic_grid: 3}
train: {output: run, steps: 6, batch_size: 4, gradient_accumulation_steps: 2, optimizer: sgd, momentum: 0.9,
        learning_rate: 1e-2, lr_schedule: poly, ema_decay: 0.9, log_every: 2, checkpoint_every: 2, preview_every: 6,
        snapshots: 0, runtime: {mixed_precision: no, compile: false}}
"""
"""A predictor that is trained in a second, on the images of `write_pairs`."""


def write_pairs(folder: Path, values: Sequence[int] = (0, 255), count: int = 8, size: tuple[int, int] = (24, 20)):
    """Write images a0.png, ... of noisy blocks (height, width), and targets that have one value for each brightness."""
    generator = np.random.default_rng(0)
    height, width = size
    for index in range(count):
        classes = generator.integers(0, len(values), (-(-height // 8), -(-width // 8)))
        classes = classes.repeat(8, 0).repeat(8, 1)[:height, :width]
        noise = generator.integers(0, 30, size)
        for kind, array in (("images", classes * 60 + noise), ("labels", np.asarray(values)[classes])):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(folder / kind / f"a{index}.png")


def run(*words) -> int:
    """Call `diffunet` with words of a command line in this process, and return its exit code."""
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return ended.value.code or 0


def mistake(capsys, *words) -> str:
    """Call a command that must exit with code 2, and return the one line of its error message."""
    capsys.readouterr()
    assert run(*words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def train_small(*argv):
    """Train SMALL_RUN with additional flags, in the folder of the fixture `small`."""

    assert run("train", "--config", "small.yaml", *argv) == 0


def checkpoint(folder: Path, step: int = 12) -> dict[str, bytes]:
    """Return the bytes of a checkpoint and of the published weights by file name."""
    files = [*(folder / "checkpoints" / f"step_{step:08d}").iterdir(), *(folder / "model").iterdir()]
    return {path.name: path.read_bytes() for path in files if path.is_file()}


def write_image(path: Path, mode: str = "RGB", size: tuple[int, int] = (12, 10), seed: int = 0, **options) -> Path:
    """Write a random image of (width, height) in one of Pillow's modes, or "I;16"."""
    generator = np.random.default_rng(seed)
    width, height = size
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode == "I;16":
        Image.fromarray(generator.integers(0, 65536, (height, width), dtype=np.uint16)).save(path, **options)
    else:
        channels = {"L": (), "RGB": (3,), "RGBA": (4,), "P": (3,)}[mode]
        array = generator.integers(0, 256, (height, width, *channels), dtype=np.uint8)
        image = Image.fromarray(array)
        (image.quantize(16) if mode == "P" else image).save(path, **options)
    return path


@dataclass(frozen=True)
class GaussianPairs:
    """Images x, and targets slope x + noise of the standard deviation `spread` in each pixel.

    In the units of x_0, which is half of the target.
    """

    slope: float
    spread: float

    def target(self, image: torch.Tensor) -> torch.Tensor:
        return self.slope * image + self.spread * torch.randn_like(image)

    def denoiser(self, process) -> Callable:
        """Return the exact network of a noise process, for targets of mean 0 and standard deviation 1."""

        def model(x_t, t, image):
            alpha, sigma = (level.double().reshape(-1, 1, 1, 1) for level in process.levels(t))
            mean, variance = image.double() * self.slope / 2, (self.spread / 2) ** 2
            clean = mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x_t - alpha * mean)
            return process.prediction(clean, x_t.double(), t).float()

        return model


def copy_with_first_checkpoint(source: str, target: str) -> None:
    """Copy a run, without its previews and without the checkpoints after the first, as if it had been stopped there."""
    shutil.copytree(source, target)
    for later in sorted(Path(target, "checkpoints").iterdir())[1:]:
        shutil.rmtree(later)
    for preview in Path(target, "samples").iterdir():
        preview.unlink()
