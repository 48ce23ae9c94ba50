"""What both peers share: the command line, pictures in memory, a budget of wall-clock time, drawing, peer.json.

Where the peers' own programs lose time with what teaches nothing (files decoded again and again, a loss read from
the GPU at every step, previews, checkpoints), time is saved here, in the peers' favour.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image
from tqdm import tqdm

DIGIT_SIDE = 8


def arguments(description: str, batch_size: int, steps_to_draw: int) -> argparse.Namespace:
    """What was asked for, with the peer's own defaults. The folder for the output exists then, and is empty."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", required=True, help="a parquet file, a folder of pictures, or digits: scikit-learn's 1,797 scans")
    add("--minutes", type=float, required=True, help="wall-clock time of the training loop, set-up not counted")
    add("--num_images", type=int, required=True, help="pictures to draw")
    add("--output", type=Path, required=True, help="an empty or new folder for 00000.png ... and peer.json")
    add("--resolution", type=int, default=32, help="pixels a side (%(default)s)")
    add("--batch_size", type=int, default=batch_size, help="pictures at once in training (%(default)s)")
    add("--steps_to_draw", type=int, default=steps_to_draw, help="network calls for a picture (%(default)s)")
    add("--batch_to_draw", type=int, default=500, help="pictures drawn at once (%(default)s)")
    add("--seed", type=int, default=0, help="(%(default)s)")
    add("--tiny", action="store_true", help="a tiny network instead, to rehearse in seconds")
    asked = parser.parse_args()
    for name in ("minutes", "num_images", "resolution", "batch_size", "steps_to_draw", "batch_to_draw"):
        if getattr(asked, name) <= 0:
            parser.error(f"--{name}: must be greater than 0")
    asked.output.mkdir(parents=True, exist_ok=True)
    if any(asked.output.iterdir()):
        parser.error(f"--output: {asked.output} is not empty; name another folder")
    return asked


# ── pictures ──────────────────────────────────────────────────────────────────────────────────────


def load_pictures(path: str, resolution: int) -> Tensor:
    """All of them, decoded once: uint8 (N, C, H, W), scaled to cover the square and cropped; C is 1 if all are grey."""
    if path == "digits":
        return _digits(resolution)
    import datasets

    if Path(path).is_file():
        rows = datasets.load_dataset("parquet", data_files=path, split="train")
    else:
        rows = datasets.load_dataset("imagefolder", data_dir=path, split="train")
    columns = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    if len(columns) != 1:
        sys.exit(f"--data: {path} has {len(columns)} columns of pictures; one is needed")
    images = []
    for row in tqdm(rows.select_columns(columns), desc="decode", leave=False):
        image = row[columns[0]]
        image = image.convert("L" if image.mode in ("1", "L") else "RGB")
        images.append(ImageOps.fit(image, (resolution, resolution), Image.Resampling.BILINEAR))
    mode = "L" if all(image.mode == "L" for image in images) else "RGB"
    pixels = np.stack([np.atleast_3d(np.asarray(image.convert(mode))) for image in images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _digits(resolution: int) -> Tensor:
    """Each pixel becomes a square of equal pixels, so that averaging the squares gives the scan again."""
    from sklearn.datasets import load_digits

    times, rest = divmod(resolution, DIGIT_SIDE)
    if rest or not times:
        sys.exit(f"--resolution: the digits have {DIGIT_SIDE} pixels a side; name a multiple, not {resolution}")
    scans = torch.from_numpy((load_digits().images * (255 / 16)).round()).to(torch.uint8)[:, None]
    return scans.repeat_interleave(times, dim=-2).repeat_interleave(times, dim=-1)


def batches(pictures: Tensor, size: int, flip: bool) -> Iterator[Tensor]:
    """Without end, in [0, 1]: round by round all pictures in a new order; a round's last batch may be smaller."""
    while True:
        for chosen in torch.randperm(len(pictures), device=pictures.device).split(size):
            batch = pictures[chosen].float() / 255
            if flip:
                mirrored = torch.rand(len(batch), 1, 1, 1, device=batch.device) < 0.5
                batch = torch.where(mirrored, batch.flip(-1), batch)
            yield batch


# ── training ──────────────────────────────────────────────────────────────────────────────────────


class Budget:
    """`for _ in budget:` goes round until the time is up, `count` at the end of each step; the bar shows seconds."""

    def __init__(self, minutes: float):
        self.seconds = 60 * minutes
        self.steps = self.images = 0
        self.minutes_taken = 0.0

    @property
    def used(self) -> float:
        """The part of the time that is over, 0 to 1."""
        return min(1.0, (perf_counter() - self._start) / self.seconds)

    def __iter__(self) -> Iterator[None]:
        self._start = perf_counter()
        shape = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f} of {total:.0f} s{postfix}"
        with tqdm(total=self.seconds, desc="train", bar_format=shape) as self._bar:
            while self.used < 1:
                yield
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # what was asked of the GPU counts too
        self.minutes_taken = (perf_counter() - self._start) / 60

    def count(self, images: int, loss: Tensor) -> None:
        """A step is done."""
        self.steps += 1
        self.images += images
        if self.steps % 50 == 1:  # reading a loss makes the processor wait for the GPU
            self._loss = loss.item()
        self._bar.set_postfix_str(f"{self.steps:,} steps, loss {self._loss:.4f}", refresh=False)
        self._bar.update(self.used * self.seconds - self._bar.n)


# ── drawing ───────────────────────────────────────────────────────────────────────────────────────


def draw(sample: Callable[[int], Tensor], asked: argparse.Namespace) -> float:
    """Writes what `sample(number)` gives, (number, C, H, W) in [0, 1]. The seconds it took, files not counted."""
    seconds = 0.0
    with tqdm(total=asked.num_images, desc="draw", unit="picture") as bar:
        for first in range(0, asked.num_images, asked.batch_to_draw):
            start = perf_counter()
            drawn = sample(min(asked.batch_to_draw, asked.num_images - first)).cpu()
            seconds += perf_counter() - start
            if not drawn.isfinite().all():
                sys.exit("the peer drew values that are not finite: its training diverged")
            for number, picture in enumerate((drawn.clamp(0, 1) * 255).round().to(torch.uint8), first):
                to_pil_image(picture).save(asked.output / f"{number:05d}.png")
            bar.update(len(drawn))
    return seconds


def report(
    peer: str,
    asked: argparse.Namespace,
    accelerator: Accelerator,
    network: nn.Module,
    budget: Budget,
    sampler: str,
    seconds: float,
) -> None:
    """Writes peer.json, last of all: a folder that has one is complete."""
    on_gpu = accelerator.device.type == "cuda"
    told = {
        "peer": peer,
        "version": version(peer),
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in network.parameters()),
        "tiny": asked.tiny,
        "resolution": asked.resolution,
        "batch_size": asked.batch_size,
        "steps": budget.steps,
        "images_seen": budget.images,
        "training_minutes": round(budget.minutes_taken, 3),
        "num_images": asked.num_images,
        "sampler": sampler,
        "sampler_steps": asked.steps_to_draw,
        "drawing_seconds": round(seconds, 1),
        "device": torch.cuda.get_device_name(accelerator.device) if on_gpu else accelerator.device.type,
        "precision": accelerator.mixed_precision.replace("no", "fp32"),
        "seed": asked.seed,
    }
    text = json.dumps(told, indent=2)
    (asked.output / "peer.json").write_text(text + "\n", encoding="utf-8")
    print(text)
