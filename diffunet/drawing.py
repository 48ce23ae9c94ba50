"""What people would rather look at: picture files, sample grids, training curves."""

import json
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .storage import whole_file

SMALLEST_TILE = 32
"""Pixels; smaller pictures are enlarged in a grid."""


def to_picture(pixels: Tensor, bit_depth: int) -> Image.Image:
    """A picture of (C, H, W) integers. Pillow keeps 16 bits for one channel; more are brought to 8."""
    if bit_depth == 16 and len(pixels) == 1:
        return Image.fromarray(pixels[0].numpy().astype(np.uint16))
    if bit_depth == 16:
        pixels = (pixels / 257).round()
    channels_last = pixels.to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(channels_last.squeeze(2) if channels_last.shape[2] == 1 else channels_last)


def draw_grid(pixels: Tensor, bit_depth: int, path: Path, columns: int | None = None) -> None:
    """(N, C, H, W) integers side by side in one PNG, tiny pictures enlarged."""
    from torchvision.utils import make_grid

    if bit_depth == 16:
        pixels = (pixels / 257).round().to(torch.uint8)
    enlarge = max(1, SMALLEST_TILE // min(pixels.shape[-2:]))
    pixels = pixels.repeat_interleave(enlarge, dim=-1).repeat_interleave(enlarge, dim=-2)
    grid = make_grid(pixels, nrow=columns or math.isqrt(len(pixels) - 1) + 1, padding=2)
    with whole_file(path) as file:
        to_picture(grid, 8).save(file, format="PNG")


def draw_curves(folder: Path) -> None:
    """curves.png from log.jsonl: the loss over the steps, and by noise level. Nothing if there is no log."""
    from matplotlib.figure import Figure

    if not (folder / "log.jsonl").exists():
        return
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=(11, 4), layout="constrained")
    whole, bands = figure.subplots(1, 2)
    names = sorted({name for line in lines for name in line if name.startswith("loss_t")}, key=_lowest_t)
    for axes, drawn in ((whole, ["loss"]), (bands, names)):
        for name in drawn:
            points = [(line["step"], line[name]) for line in lines if name in line]
            axes.plot([step for step, _ in points], [loss for _, loss in points], label=name.replace("loss_t", "t = "))
        axes.set(xlabel="step", ylabel="loss", yscale="log")
        axes.grid(alpha=0.3)
    whole.set_title("loss")
    bands.set_title("loss by noise level")
    if names:
        bands.legend()
    with whole_file(folder / "curves.png") as file:
        figure.savefig(file, format="png", dpi=100)


def _lowest_t(name: str) -> int:
    return int(name.removeprefix("loss_t").split("-")[0])
