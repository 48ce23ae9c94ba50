"""Figures: image files, sample grids, the timeline of previews, training curves."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..core.storage import atomic_write
from ..data.pixels import to_8bit
from ..training.log import read_log

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAP = 2
"""Pixels between the images of a grid."""
MIN_TILE = 32
"""Pixels; smaller images are enlarged in a grid."""
MAX_TIMELINE_ROWS = 12
FILM_SIZE, FRAME_MILLISECONDS = 128, 80
"""Pixels to which smaller frames of a film are enlarged, and the time of each."""
MARGIN_GAP = 6
"""Pixels beside the labels of a comparison."""
TITLE_HEIGHT = 16
"""Pixels of the line of titles above a comparison."""
Lines = Sequence[Mapping[str, float]]
"""Of a log."""


def to_pil(pixels: Tensor, bit_depth: int) -> Image.Image:
    """Return an image of (C, H, W) pixels, C of 1, 3 or 4. Pillow has 16 bits only for gray; other depths become 8."""
    if bit_depth == 16 and len(pixels) == 1:
        return Image.fromarray(pixels[0].numpy().astype(np.uint16))
    channels_last = to_8bit(pixels, bit_depth).permute(1, 2, 0).numpy()
    return Image.fromarray(channels_last.squeeze(2) if channels_last.shape[2] == 1 else channels_last)


def displayable(pixels: Tensor, bit_depth: int) -> Tensor:
    """Return (N, C, H, W) pixels as uint8 with 1, 3 or 4 channels: the mean of 2, the first 3 of more than 4."""
    pixels = to_8bit(pixels, bit_depth)
    if pixels.shape[1] == 2:
        return pixels.float().mean(1, keepdim=True).to(torch.uint8)
    return pixels if pixels.shape[1] <= 4 else pixels[:, :3]


def save_grid(pixels: Tensor, bit_depth: int, path: Path, columns: int | None = None) -> None:
    """Write pixels (N, C, H, W) as a grid in one PNG, small images enlarged; by default it is about square."""
    pixels = displayable(pixels, bit_depth)
    scale = max(1, MIN_TILE // min(pixels.shape[-2:]))
    pixels = pixels.repeat_interleave(scale, dim=-1).repeat_interleave(scale, dim=-2)
    columns = min(columns or math.isqrt(len(pixels) - 1) + 1, len(pixels))
    tiles = F.pad(pixels, (GAP, 0, GAP, 0))  # each with its left and upper gap
    empty = tiles.new_zeros(-len(tiles) % columns, *tiles.shape[1:])
    grid = rearrange(torch.cat([tiles, empty]), "(row column) c h w -> c (row h) (column w)", column=columns)
    grid = F.pad(grid, (0, GAP, 0, GAP))
    with atomic_write(path) as file:
        to_pil(grid, 8).save(file, format="PNG")


def save_comparison(path: Path, rows: Sequence[tuple[str, Tensor, int]], titles: Sequence[str] = ()) -> None:
    """Write one PNG with a row of images per label, such as source, samples and truth; column i is example i.

    A row is (label, pixels (N, C, H, W), bit depth), and a title, if any, stands above each column. A row's images are
    enlarged, by a whole factor, to at most the size of the largest, and that one to MIN_TILE; transparent images are
    composited on white.
    """
    height, width = (max(pixels.shape[axis] for _, pixels, _ in rows) for axis in (2, 3))
    scale = max(1, MIN_TILE // min(height, width))
    tile = height * scale, width * scale
    font = ImageFont.load_default()
    margin = 2 * MARGIN_GAP + max(math.ceil(font.getlength(label)) for label, _, _ in rows)
    columns = max(len(pixels) for _, pixels, _ in rows)
    widest = max((math.ceil(font.getlength(title)) for title in titles), default=0)
    column_width, header = max(tile[1], widest + bool(titles) * MARGIN_GAP), TITLE_HEIGHT if titles else 0
    size = margin + columns * (column_width + GAP), header + len(rows) * (tile[0] + GAP) + GAP
    figure = Image.new("RGB", size, "white")
    for column, title in enumerate(titles):
        center = margin + column * (column_width + GAP) + column_width // 2
        ImageDraw.Draw(figure).text((center, header // 2), title, fill="black", font=font, anchor="mm")
    for number, (label, pixels, bit_depth) in enumerate(rows):
        top = header + GAP + number * (tile[0] + GAP)
        position = MARGIN_GAP, top + tile[0] // 2
        ImageDraw.Draw(figure).text(position, label, fill="black", font=font, anchor="lm")
        factor = min(tile[0] // pixels.shape[2], tile[1] // pixels.shape[3])
        for column, image in enumerate(displayable(pixels, bit_depth)):
            drawn = to_pil(image, 8).convert("RGBA")
            drawn = drawn.resize((drawn.width * factor, drawn.height * factor), Image.Resampling.NEAREST)
            left = margin + column * (column_width + GAP) + (column_width - drawn.width) // 2
            figure.paste(drawn, (left, top + (tile[0] - drawn.height) // 2), drawn)
    with atomic_write(path) as file:
        figure.save(file, format="PNG")


def save_film(folder: Path, pixels: Tensor, bit_depth: int) -> None:
    """Write frames (N, C, H, W) as film.gif, for every viewer, and film.png, animated without loss; there and back."""
    pixels = displayable(pixels, bit_depth)
    scale = max(1, FILM_SIZE // min(pixels.shape[-2:]))
    frames = [to_pil(frame, 8).convert("RGB") for frame in [*pixels, *pixels.flip(0)[1:-1]]]
    frames = [frame.resize((frame.width * scale, frame.height * scale), Image.Resampling.NEAREST) for frame in frames]
    for name in ("film.gif", "film.png"):
        with atomic_write(folder / name) as file:
            options = {"format": name[-3:], "save_all": True, "append_images": frames[1:], "loop": 0}
            frames[0].save(file, duration=FRAME_MILLISECONDS, **options)


def save_timeline(folder: Path, size: tuple[int, int]) -> None:
    """Write strip.png: the first row of each preview step_*.png in a folder, oldest first, of images of (H, W)."""
    grids = sorted(folder.glob("step_*.png"))
    chosen = [grids[round(i)] for i in np.linspace(0, len(grids) - 1, min(len(grids), MAX_TIMELINE_ROWS))]
    row_height = size[0] * max(1, MIN_TILE // min(size)) + GAP
    rows = []
    for path in chosen:
        with suppress(OSError, SyntaxError, ValueError), Image.open(path) as grid:  # one may be damaged
            first_row = grid.convert("RGB").crop((0, 0, grid.width, row_height))
            rows.append((path.stem.removeprefix("step_").lstrip("0"), first_row))
    if not rows:
        return
    margin = 64
    strip = Image.new("RGB", (margin + max(row.width for _, row in rows), row_height * len(rows)), "white")
    for number, (step, row) in enumerate(rows):
        strip.paste(row, (margin, number * row_height))
        ImageDraw.Draw(strip).text((6, (number + 0.5) * row_height), step, fill="black", anchor="lm")
    with atomic_write(folder / "strip.png") as file:
        strip.save(file, format="PNG")


def plot_curves(folder: Path) -> None:
    """Write curves.png from log.jsonl. No-op without a log."""
    if lines := read_log(folder / "log.jsonl"):
        with atomic_write(folder / "curves.png") as file:
            draw_curves(lines).savefig(file, format="png", dpi=100)


def draw_curves(lines: Lines) -> "Figure":
    """Return a figure of the lines of a log: losses, and the Dice coefficient if there is one.

    Of a run that samples also the losses by noise, the kernel distance, and the colors.
    """
    from matplotlib.figure import Figure

    names = dict.fromkeys(name for line in lines for name in line)
    bins = [found for name in names if (found := re.fullmatch(r"loss_noise((\d+)-\d+)", name))]
    rows, columns = (2, 2) if bins else (1, 1 + ("val_dice" in names))
    figure = Figure(figsize=(12, 4 * rows))
    figure.subplots_adjust(left=0.06, right=0.98, bottom=0.14 / rows, top=1 - 0.1 / rows, wspace=0.16, hspace=0.28)
    losses, *others = panels = figure.subplots(rows, columns, squeeze=False).flatten()
    _plot(losses, lines, "loss", "training", linewidth=1)
    _plot(losses, lines, "train_eval_loss", "EMA, training images", marker=".")
    _plot(losses, lines, "val_loss", "EMA, held-out images", marker=".")
    losses.set(title="loss", yscale="log")
    if bins:
        by_noise, distance, colors = others
        _plot_by_noise(by_noise, lines, bins)
        _plot_distance(distance, lines)
        _plot_colors(colors, lines, names)
    elif others:
        _plot(others[0], lines, "val_dice", "EMA, held-out images", marker=".")
        others[0].set(title="Dice coefficient, 1 is best")
    for axes in panels:
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    return figure


def _plot(axes, lines: Lines, name: str, label: str | None, offset: float = 0, **style) -> None:
    if points := [(line["step"], line[name] + offset) for line in lines if name in line]:
        axes.plot(*zip(*points, strict=True), label=label, **style)


def _plot_by_noise(axes, lines: Lines, bins: list[re.Match]) -> None:
    for number, found in enumerate(sorted(bins, key=lambda found: int(found[2]))):
        _plot(axes, lines, found[0], f"{found[1]} %", color=f"C{number}", linewidth=1)
        _plot(axes, lines, f"val_{found[0]}", None, color=f"C{number}", linestyle=":", marker=".")
    axes.set(title="loss by noise level, 0 % is clean; dotted: held-out images", yscale="log")


def _plot_distance(axes, lines: Lines) -> None:
    keys = "step", "kernel_distance", "kernel_distance_error", "sampled_images"
    previews = [[line[key] for key in keys] for line in lines if set(keys) <= line.keys()]
    steps, values, errors, numbers = zip(*previews, strict=True) if previews else 4 * [[]]
    label = f"{numbers[-1]} samples" if previews else None
    axes.errorbar(steps, values, errors, marker=".", label=label)
    axes.set(title="kernel distance of pixels, 0 is best")


def _plot_colors(axes, lines: Lines, names: Iterable[str]) -> None:
    for name in names:
        kind, _, channel = name.partition("/")
        if kind == "mean_shift":
            _plot(axes, lines, name, f"mean shift, channel {channel}", marker=".")
        elif kind == "std_ratio":
            _plot(axes, lines, name, f"std ratio - 1, channel {channel}", offset=-1, marker=".", linestyle=":")
    axes.set(title="color statistics, samples vs. data, 0 is best")
