"""What both peers share: the command line, pictures in memory, a budget of wall-clock time, drawing, peer.json,
and stopping and going on: a run may take as many calls of the same command as it needs.

Where the peers' own programs lose time with what teaches nothing (files decoded again and again, a loss read from
the GPU at every step, previews, checkpoints), time is saved here, in the peers' favour.
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
SIZES = ("as_shipped", "small", "tiny")
"""Of a peer's network: its own; about that of configs/digits.yaml; one to measure_step_time in seconds."""


def arguments(description: str, batch_size: int, steps_to_draw: int) -> argparse.Namespace:
    """What was asked for, with the peer's own defaults; `asked.piece` is this call's piece of the run."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", required=True, help="a parquet file, a folder of pictures, or digits: scikit-learn's 1,797 scans")
    add("--minutes", type=float, required=True, help="wall-clock time of the training loop, set-up not counted")
    add("--num_images", type=int, required=True, help="pictures to draw")
    add("--output", type=Path, required=True, help="a folder, new or begun so, for 00000.png ... and peer.json")
    add("--piece_minutes", type=float, default=math.inf, help="stop after so long; the same command goes on (never)")
    add("--resolution", type=int, default=32, help="pixels a side (%(default)s)")
    add("--batch_size", type=int, default=batch_size, help="pictures at once in training (%(default)s)")
    add("--steps_to_draw", type=int, default=steps_to_draw, help="network calls for a picture (%(default)s)")
    add("--batch_to_draw", type=int, default=500, help="pictures drawn at once (%(default)s)")
    add("--seed", type=int, default=0, help="(%(default)s)")
    add("--network", choices=SIZES, default="as_shipped", help="its size (%(default)s)")
    add("--tiny", dest="network", action="store_const", const="tiny", help="--network tiny")
    asked = parser.parse_args()
    for name, value in vars(asked).items():
        if name != "seed" and type(value) in (int, float) and not value > 0:
            parser.error(f"--{name}: must be greater than 0")
    same = {f"--{name}": value for name, value in vars(asked).items() if name not in ("output", "piece_minutes")}
    same |= {"script": parser.prog, "device": "cuda" if torch.cuda.is_available() else "cpu"}
    asked.output.mkdir(parents=True, exist_ok=True)
    asked.piece = Piece(asked.output, asked.piece_minutes, same)
    return asked


# ── pieces ────────────────────────────────────────────────────────────────────────────────────────


class Piece:
    """What one call does of a run: when it is to end, and what the calls before it left in OUTPUT/state.

    Ctrl-C and SIGTERM end it as well. What has to last is on the disk then, except while `training`, which saves first.
    """

    def __init__(self, output: Path, minutes: float, arguments: dict[str, Any]):
        self.output, self.arguments = output, arguments
        self.state = output / "state"
        self.end = perf_counter() + 60 * minutes
        self.training, self.exit_code = False, 0
        begun = None if (output / "peer.json").exists() else self.load("arguments")
        if begun is None and any(output.iterdir()):
            sys.exit(f"--output: {output} is not empty; name another folder")
        for name, value in (begun or {}).items():
            if value != arguments[name]:
                sys.exit(f"{name}: {output} was begun with {value}, not {arguments[name]}; name another --output")
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._interrupted)

    def _interrupted(self, number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process whatever it does
        self.end, self.exit_code = -math.inf, 128 + number
        if not self.training:
            self.leave()

    def over(self, seconds: float = 0.0) -> bool:
        """Whether it is to end before something that takes so long."""
        return perf_counter() + seconds > self.end

    def leave(self) -> None:
        tqdm.write(f"{self.output}: stopped in good order; the same command goes on")
        sys.exit(self.exit_code)

    def save(self, name: str, value: dict[str, Any]) -> None:
        """Complete or not at all, whatever happens meanwhile."""
        self.state.mkdir(exist_ok=True)
        beside = self.state / f"{name}.part"
        torch.save(value, beside)
        os.replace(beside, self.state / f"{name}.pt")

    def load(self, name: str) -> dict[str, Any] | None:
        path = self.state / f"{name}.pt"
        return torch.load(path, weights_only=True) if path.exists() else None


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


class Batches:
    """Without end, in [0, 1]: round by round all pictures in a new order; a round's last batch may be smaller."""

    def __init__(self, pictures: Tensor, size: int, flip: bool):
        self.pictures, self.size, self.flip = pictures, size, flip
        self.left = torch.empty(0, dtype=torch.long, device=pictures.device)

    def __next__(self) -> Tensor:
        if not len(self.left):
            self.left = torch.randperm(len(self.pictures), device=self.pictures.device)
        chosen, self.left = self.left.tensor_split([self.size])
        batch = self.pictures[chosen].float() / 255
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
    """`for _ in budget.spend(...):` goes round until the time is up, `count` at the end of each step.

    The bar shows seconds. Those of all pieces count; loading and saving do not.
    """

    def __init__(self, asked: argparse.Namespace):
        self.piece = asked.piece
        self.seconds = 60 * asked.minutes
        self.taken, self.loss = 0.0, math.nan
        self.steps = self.images = 0

    @property
    def used(self) -> float:
        """The part of the time that is over, 0 to 1."""
        return min(1.0, (perf_counter() - self._start) / self.seconds)

    def spend(self, **parts: Any) -> Iterator[None]:
        """`parts` are what training changes: loaded from the piece before, saved when this one or the time is over."""
        parts = {name: part for name, part in parts.items() if part is not None}
        if saved := self.piece.load("training"):
            for name, part in parts.items():
                part.load_state_dict(saved[name])
            self.taken, self.steps, self.images, self.loss = saved["counted"]
            torch.set_rng_state(saved["random"])
            torch.cuda.set_rng_state_all(saved["random_cuda"])
        del saved  # a second copy of everything
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
                torch.cuda.synchronize()  # what was asked of the GPU counts too
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
        """A step is done."""
        self.steps += 1
        self.images += images
        if self.steps % 50 == 1:  # reading a loss makes the processor wait for the GPU
            self.loss = loss.item()
        self._bar.set_postfix_str(f"{self.steps:,} steps, loss {self.loss:.4f}", refresh=False)
        self._bar.update(self.used * self.seconds - self._bar.n)


# ── drawing ───────────────────────────────────────────────────────────────────────────────────────


def draw(sample: Callable[[int], Tensor], asked: argparse.Namespace) -> float:
    """Writes what `sample(number)` gives, (number, C, H, W) in [0, 1]. The seconds it took, files not counted.

    A batch's noise follows from the seed and its first picture's number, so that pieces make no difference.
    """
    saved = asked.piece.load("drawing") or {"pictures": 0, "seconds": 0.0}
    seconds = saved["seconds"]
    with tqdm(total=asked.num_images, initial=saved["pictures"], desc="draw", unit="picture") as bar:
        for first in range(saved["pictures"], asked.num_images, asked.batch_to_draw):
            start = perf_counter()
            torch.manual_seed(Random(f"{asked.seed} {first}").getrandbits(63))
            drawn = sample(min(asked.batch_to_draw, asked.num_images - first)).cpu()
            took = perf_counter() - start
            seconds += took
            if not drawn.isfinite().all():
                sys.exit("the peer drew values that are not finite: its training diverged")
            for number, picture in enumerate((drawn.clamp(0, 1) * 255).round().to(torch.uint8), first):
                to_pil_image(picture).save(asked.output / f"{number:05d}.png")
            bar.update(len(drawn))
            done = first + len(drawn)
            asked.piece.save("drawing", {"pictures": done, "seconds": seconds})
            if done < asked.num_images and asked.piece.over(took):
                asked.piece.leave()
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
    """Writes peer.json, last of all: a folder that has one is complete, and needs its state no more."""
    on_gpu = accelerator.device.type == "cuda"
    told = {
        "peer": peer,
        "version": version(peer),
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in network.parameters()),
        "network": asked.network,
        "resolution": asked.resolution,
        "batch_size": asked.batch_size,
        "steps": budget.steps,
        "images_seen": budget.images,
        "training_minutes": round(budget.taken / 60, 3),
        "num_images": asked.num_images,
        "sampler": sampler,
        "sampler_steps": asked.steps_to_draw,
        "drawing_seconds": round(seconds, 1),
        "device": torch.cuda.get_device_name(accelerator.device) if on_gpu else accelerator.device.type,
        "precision": accelerator.mixed_precision.replace("no", "fp32"),
        "seed": asked.seed,
    }
    text = json.dumps(told, indent=2)
    beside = asked.piece.state / "peer.json"
    beside.write_text(text + "\n", encoding="utf-8")
    os.replace(beside, asked.output / "peer.json")
    shutil.rmtree(asked.piece.state)
    print(text)
