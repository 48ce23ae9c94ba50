"""Shared by both baselines: flags, images in memory, a budget of wall-clock time, sampling, baseline.json, resuming.

A run may be spread over any number of calls of the same command. Where the original programs spend time outside
training (decoding files again in every epoch, reading the loss from the GPU at every step, previews, checkpoints),
this saves it, in favor of the baselines.
"""

import argparse
import json
import math
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image
from tqdm import tqdm

DIGIT_SIDE = 8
SIZES = ("as_shipped", "small", "compact", "tiny")
"""Of the network: the original; about that of configs/digits.yaml; about that of diffunet for an hour of a processor;
one to rehearse with in seconds."""


def arguments(description: str, batch_size: int, sampling_steps: int) -> argparse.Namespace:
    """Parse the flags, with the baseline's own defaults; `args.piece` is the part of the run that this call does."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", required=True, help="a parquet file, a folder of images, or digits: scikit-learn's 1,797")
    add("--minutes", type=float, required=True, help="wall-clock time of the training loop, without set-up")
    add("--num_images", type=int, required=True, help="images to sample")
    add("--output", type=Path, required=True, help="a folder for 00000.png ... and baseline.json")
    add("--piece_minutes", type=float, default=math.inf, help="stop after them; the same command continues (never)")
    add("--resolution", type=int, default=32, help="pixels per side (%(default)s)")
    add("--batch_size", type=int, default=batch_size, help="in training (%(default)s)")
    add("--sampling_steps", type=int, default=sampling_steps, help="network calls per image (%(default)s)")
    add("--sampling_batch_size", type=int, default=500, help="images sampled at once (%(default)s)")
    add("--seed", type=int, default=0, help="(%(default)s)")
    add("--network", choices=SIZES, default="as_shipped", help="its size (%(default)s)")
    add("--tiny", dest="network", action="store_const", const="tiny", help="--network tiny")
    args = parser.parse_args()
    for name, value in vars(args).items():
        if name != "seed" and type(value) in (int, float) and not value > 0:
            parser.error(f"--{name}: must be greater than 0")
    same = {f"--{name}": value for name, value in vars(args).items() if name not in ("output", "piece_minutes")}
    same |= {"script": parser.prog, "device": "cuda" if torch.cuda.is_available() else "cpu"}
    args.output.mkdir(parents=True, exist_ok=True)
    args.piece = Piece(args.output, args.piece_minutes, same)
    return args


# ── pieces ────────────────────────────────────────────────────────────────────────────────────────


class Piece:
    """The part of a run that one call does: its end, and the state that earlier calls left in OUTPUT/state.

    Ctrl-C and SIGTERM end it, too: at once, or while `training` after its state is saved.
    """

    def __init__(self, output: Path, minutes: float, arguments: dict[str, Any]):
        self.output, self.arguments = output, arguments
        self.state = output / "state"
        self.end = perf_counter() + 60 * minutes
        self.training, self.exit_code = False, 0
        begun = None if (output / "baseline.json").exists() else self.load("arguments")
        if begun is None and any(output.iterdir()):
            sys.exit(f"--output: {output} is not empty; choose another folder")
        for name, value in (begun or {}).items():
            if value != arguments[name]:
                sys.exit(f"{name}: {output} was begun with {value}, not {arguments[name]}; choose another --output")
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._interrupted)

    def _interrupted(self, number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second signal ends the process at once
        self.end, self.exit_code = -math.inf, 128 + number
        if not self.training:
            self.leave()

    def over(self, seconds: float = 0.0) -> bool:
        """Return whether less than this time is left."""
        return perf_counter() + seconds > self.end

    def leave(self) -> None:
        tqdm.write(f"{self.output}: stopped; the same command continues")
        sys.exit(self.exit_code)

    def save(self, name: str, value: dict[str, Any]) -> None:
        """Write the value atomically."""
        self.state.mkdir(exist_ok=True)
        partial = self.state / f"{name}.part"
        torch.save(value, partial)
        os.replace(partial, self.state / f"{name}.pt")

    def load(self, name: str) -> dict[str, Any] | None:
        path = self.state / f"{name}.pt"
        return torch.load(path, weights_only=True) if path.exists() else None


# ── images ────────────────────────────────────────────────────────────────────────────────────────


def load_images(path: str, resolution: int) -> Tensor:
    """Return all images as uint8 (N, C, H, W), scaled to cover the square and cropped; C is 1 if all are gray."""
    if path == "digits":
        return _digits(resolution)
    import datasets

    if Path(path).is_file():
        rows = datasets.load_dataset("parquet", data_files=path, split="train")
    else:
        rows = datasets.load_dataset("imagefolder", data_dir=path, split="train")
    columns = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    if len(columns) != 1:
        sys.exit(f"--data: {path} has {len(columns)} columns of images; one is needed")
    images = []
    for row in tqdm(rows.select_columns(columns), desc="decode", leave=False):
        image = row[columns[0]]
        image = image.convert("L" if image.mode in ("1", "L") else "RGB")
        images.append(ImageOps.fit(image, (resolution, resolution), Image.Resampling.BILINEAR))
    mode = "L" if all(image.mode == "L" for image in images) else "RGB"
    pixels = np.stack([np.atleast_3d(np.asarray(image.convert(mode))) for image in images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _digits(resolution: int) -> Tensor:
    """Repeat each pixel in a square, so that averaging the squares gives the original."""
    from sklearn.datasets import load_digits

    times, rest = divmod(resolution, DIGIT_SIDE)
    if rest or not times:
        sys.exit(f"--resolution: the digits have {DIGIT_SIDE} pixels a side; use a multiple, not {resolution}")
    images = torch.from_numpy((load_digits().images * (255 / 16)).round()).to(torch.uint8)[:, None]
    return images.repeat_interleave(times, dim=-2).repeat_interleave(times, dim=-1)


class Batches:
    """An endless iterator of batches in [0, 1]; the last batch of an epoch may be smaller."""

    def __init__(self, images: Tensor, size: int, flip: bool):
        self.images, self.size, self.flip = images, size, flip
        self.left = torch.empty(0, dtype=torch.long, device=images.device)

    def __next__(self) -> Tensor:
        if not len(self.left):
            self.left = torch.randperm(len(self.images), device=self.images.device)
        chosen, self.left = self.left.tensor_split([self.size])
        batch = self.images[chosen].float() / 255
        if self.flip:
            mirrored = torch.rand(len(batch), 1, 1, 1, device=batch.device) < 0.5
            batch = torch.where(mirrored, batch.flip(-1), batch)
        return batch

    def state_dict(self) -> dict[str, Tensor]:
        return {"left": self.left}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.left = state["left"]


# ── training ──────────────────────────────────────────────────────────────────────────────────────


class Budget:
    """`for _ in budget.spend(...):` loops until the time is up; call `count` at the end of each step.

    The time of all pieces counts, without loading and saving.
    """

    def __init__(self, args: argparse.Namespace):
        self.piece = args.piece
        self.seconds = 60 * args.minutes
        self.taken, self.loss = 0.0, math.nan
        self.steps = self.images = 0

    @property
    def used(self) -> float:
        """The elapsed part of the time, 0 to 1."""
        return min(1.0, (perf_counter() - self._start) / self.seconds)

    def spend(self, **parts: Any) -> Iterator[None]:
        """Yield once per step. `parts`, the objects that training changes, are loaded first and saved at the end."""
        parts = {name: part for name, part in parts.items() if part is not None}
        if saved := self.piece.load("training"):
            for name, part in parts.items():
                part.load_state_dict(saved[name])
            self.taken, self.steps, self.images, self.loss = saved["counted"]
            torch.set_rng_state(saved["random"])
            torch.cuda.set_rng_state_all(saved["random_cuda"])
        del saved  # frees a second copy of everything
        if self.taken >= self.seconds:
            return
        self.piece.training = True
        self._start = perf_counter() - self.taken
        shape = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f} of {total:.0f} s{postfix}"
        with tqdm(total=self.seconds, initial=self.taken, desc="train", bar_format=shape) as self._bar:
            while self.used < 1:
                yield
                if self.piece.over():
                    break
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # queued work counts, too
        self.taken = perf_counter() - self._start
        saved = {name: part.state_dict() for name, part in parts.items()}
        saved["counted"] = self.taken, self.steps, self.images, self.loss
        saved |= {"random": torch.get_rng_state(), "random_cuda": torch.cuda.get_rng_state_all()}
        self.piece.save("arguments", self.piece.arguments)
        self.piece.save("training", saved)
        self.piece.training = False
        if self.piece.over():
            self.piece.leave()

    def count(self, images: int, loss: Tensor) -> None:
        """Count a step."""
        self.steps += 1
        self.images += images
        if self.steps % 50 == 1:  # reading the loss waits for the GPU
            self.loss = loss.item()
        self._bar.set_postfix_str(f"{self.steps:,} steps, loss {self.loss:.4f}", refresh=False)
        self._bar.update(self.used * self.seconds - self._bar.n)


# ── sampling ──────────────────────────────────────────────────────────────────────────────────────


def save_samples(sample: Callable[[int], Tensor], args: argparse.Namespace) -> float:
    """Write the images that `sample(number)` returns, (number, C, H, W) in [0, 1]; return the seconds, without writing.

    A batch's noise follows from the seed and the number of its first image, so pieces make no difference.
    """
    saved = args.piece.load("sampling") or {"images": 0, "seconds": 0.0}
    seconds = saved["seconds"]
    with tqdm(total=args.num_images, initial=saved["images"], desc="sample", unit="image") as bar:
        for first in range(saved["images"], args.num_images, args.sampling_batch_size):
            start = perf_counter()
            torch.manual_seed(Random(f"{args.seed} {first}").getrandbits(63))
            samples = sample(min(args.sampling_batch_size, args.num_images - first)).cpu()
            took = perf_counter() - start
            seconds += took
            if not samples.isfinite().all():
                sys.exit("sampled values that are not finite: the training diverged")
            for number, image in enumerate((samples.clamp(0, 1) * 255).round().to(torch.uint8), first):
                to_pil_image(image).save(args.output / f"{number:05d}.png")
            bar.update(len(samples))
            done = first + len(samples)
            args.piece.save("sampling", {"images": done, "seconds": seconds})
            if done < args.num_images and args.piece.over(took):
                args.piece.leave()
    return seconds


def report(
    package: str,
    args: argparse.Namespace,
    accelerator: Accelerator,
    network: nn.Module,
    budget: Budget,
    sampler: str,
    seconds: float,
) -> None:
    """Write baseline.json, which marks a folder as complete, and remove its state."""
    on_gpu = accelerator.device.type == "cuda"
    record = {
        "package": package,
        "version": version(package),
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in network.parameters()),
        "network": args.network,
        "resolution": args.resolution,
        "batch_size": args.batch_size,
        "steps": budget.steps,
        "images_seen": budget.images,
        "training_minutes": round(budget.taken / 60, 3),
        "num_images": args.num_images,
        "sampler": sampler,
        "sampler_steps": args.sampling_steps,
        "sampling_seconds": round(seconds, 1),
        "device": torch.cuda.get_device_name(accelerator.device) if on_gpu else accelerator.device.type,
        "precision": accelerator.mixed_precision.replace("no", "fp32"),
        "seed": args.seed,
    }
    text = json.dumps(record, indent=2)
    partial = args.piece.state / "baseline.json"
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, args.output / "baseline.json")
    shutil.rmtree(args.piece.state)
    print(text)
