"""What people would rather look at: picture files, sample grids, training curves."""

import math
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image, ImageDraw
from torch import Tensor

from ..training.log import read_log
from ..core.storage import atomic_write

GAP = 2
"""Pixels between the pictures of a grid."""
SMALLEST_TILE = 32
"""Pixels; smaller pictures are enlarged in a grid."""
ROWS_OF_STRIP = 12
"""Previews, at most, that are printable one below the other."""


def to_pil(pixels: Tensor, bit_depth: int) -> Image.Image:
    """A picture of (C, H, W) integers. Pillow keeps 16 bits for one channel; more are brought to 8."""
    if bit_depth == 16 and len(pixels) == 1:
        return Image.fromarray(pixels[0].numpy().astype(np.uint16))
    if bit_depth == 16:
        pixels = (pixels / 257).round()
    channels_last = pixels.to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(channels_last.squeeze(2) if channels_last.shape[2] == 1 else channels_last)


def save_grid(pixels: Tensor, bit_depth: int, path: Path, columns: int | None = None) -> None:
    """(N, C, H, W) integers side by side in one PNG, tiny pictures enlarged."""
    if bit_depth == 16:
        pixels = (pixels / 257).round().to(torch.uint8)
    enlarge = max(1, SMALLEST_TILE // min(pixels.shape[-2:]))
    pixels = pixels.repeat_interleave(enlarge, dim=-1).repeat_interleave(enlarge, dim=-2)
    columns = min(columns or math.isqrt(len(pixels) - 1) + 1, len(pixels))
    tiles = F.pad(pixels, (GAP, 0, GAP, 0))                                       # each brings its left and upper gap
    empty = tiles.new_zeros(-len(tiles) % columns, *tiles.shape[1:])
    grid = rearrange(torch.cat([tiles, empty]), "(row column) c h w -> c (row h) (column w)", column=columns)
    grid = F.pad(grid, (0, GAP, 0, GAP))
    with atomic_write(path) as file:
        to_pil(grid, 8).save(file, format="PNG")


def save_timeline(folder: Path, size: tuple[int, int]) -> None:
    """strip.png: the first row of each of a folder's previews step_*.png, one below the other, oldest first."""
    grids = sorted(folder.glob("step_*.png"))
    chosen = [grids[round(place)] for place in np.linspace(0, len(grids) - 1, min(len(grids), ROWS_OF_STRIP))]
    row_height = size[0] * max(1, SMALLEST_TILE // min(size)) + 2
    rows = []
    for path in chosen:
        with suppress(OSError, SyntaxError, ValueError), Image.open(path) as grid:             # one may be damaged
            first_row = grid.convert("RGB").crop((0, 0, grid.width, row_height))
            rows.append((path.stem.removeprefix("step_").lstrip("0"), first_row))
    if not rows:
        return
    margin = 64
    strip = Image.new("RGB", (margin + max(row.width for _, row in rows), row_height * len(rows)), "white")
    for place, (step, row) in enumerate(rows):
        strip.paste(row, (margin, place * row_height))
        ImageDraw.Draw(strip).text((6, (place + 0.5) * row_height), step, fill="black", anchor="lm")
    with atomic_write(folder / "strip.png") as file:
        strip.save(file, format="PNG")


def plot_curves(folder: Path) -> None:
    """curves.png from log.jsonl: the losses, and the signs of health. Nothing if there is no log."""
    from matplotlib.figure import Figure

    if not (lines := read_log(folder / "log.jsonl")):
        return
    names = dict.fromkeys(name for line in lines for name in line)
    bands = sorted((name for name in names if re.fullmatch(r"loss_noise\d+-\d+", name)), key=_lowest)
    figure = Figure(figsize=(12, 8))
    figure.subplots_adjust(left=0.06, right=0.98, bottom=0.07, top=0.95, wspace=0.16, hspace=0.28)
    (whole, by_noise), (distance, colours) = figure.subplots(2, 2)

    def draw(axes, name: str, label: str | None, **style) -> None:
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)

    draw(whole, "loss", "training", linewidth=1)
    draw(whole, "train_eval_loss", "averaged weights, pictures trained on", marker=".")
    draw(whole, "val_loss", "averaged weights, pictures held out", marker=".")
    whole.set(title="loss", yscale="log")
    for number, name in enumerate(bands):
        share = name.removeprefix("loss_noise")
        draw(by_noise, name, f"{share} %", color=f"C{number}", linewidth=1)
        draw(by_noise, f"held_out_{name}", None, color=f"C{number}", linestyle=":", marker=".")
    by_noise.set(title="loss by noise, 0 % the cleanest; dotted: held out", yscale="log")
    seen = [line for line in lines if {"kernel_distance", "kernel_distance_error", "drawn_images"} <= line.keys()]
    distance.errorbar(
        [line["step"] for line in seen],
        [line["kernel_distance"] for line in seen],
        [line["kernel_distance_error"] for line in seen],
        marker=".",
        label=f"{seen[-1]['drawn_images']} drawn pictures" if seen else None,
    )
    distance.set(title="kernel distance of the pixels, 0 is best")
    for name in (name for name in names if name.startswith("tint_")):
        draw(colours, name, name.replace("_", " of channel "), marker=".")
    for name in (name for name in names if name.startswith("contrast_")):
        points = [(line["step"], line[name] - 1) for line in lines if name in line]
        label = name.replace("_", " of channel ") + ", less 1"
        colours.plot(*zip(*points, strict=True), label=label, marker=".", linestyle=":")
    colours.set(title="colours, 0 is the data's")
    for axes in (whole, by_noise, distance, colours):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    with atomic_write(folder / "curves.png") as file:
        figure.savefig(file, format="png", dpi=100)


def _lowest(name: str) -> int:
    return int(name.removeprefix("loss_noise").split("-")[0])
