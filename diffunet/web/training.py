"""The training of a run as the page shows it: where it is, its health, curves and previews. Only reads."""

import io
import time
from dataclasses import dataclass
from pathlib import Path

from ..runs.figures import draw_curves
from ..runs.run import Run
from ..training.log import read_log
from .html import figure, progress, table

MAX_FILE = 20 * 2**20
"""Bytes; larger images of a run folder are not shown."""
MAX_ROWS = 12
HEALTH = {
    "val_loss": "validation loss",
    "train_eval_loss": "training images",
    "val_dice": "Dice coefficient",
    "kernel_distance": "kernel distance",
}
"""Numbers of a preview, and what the page calls them."""
PREVIEWS = {"strip.png": "The first row of each preview", "comparison.png": "Held-out examples"}


@dataclass(frozen=True)
class TrainingView:
    """What the page shows of a training, as HTML."""

    state: str
    health: str
    curves: str
    previews: str


def fingerprint_of(run: Run) -> tuple:
    """Return a value that changes when there is something new to show."""
    files = [run.folder / "log.jsonl", *sorted((run.folder / "samples").glob("*.png"))]
    return tuple((file.name, file.stat().st_mtime_ns) for file in files if file.exists())


def state_of(run: Run, steps: int) -> str:
    """Return where a training of some steps is, in one line with a bar."""
    log = run.folder / "log.jsonl"
    lines = read_log(log)
    if not lines:
        return progress("No line in log.jsonl yet.")
    last = lines[-1]
    step, ago = int(last["step"]), time.time() - log.stat().st_mtime
    parts = [f"step {step:,} of {steps:,}", f"loss {last['loss']:.4f}" if "loss" in last else ""]
    if step < steps:
        parts += [f"{last['images_per_second']:,.0f} images/s" if "images_per_second" in last else ""]
        parts += [f"{last['minutes_left']:.0f} min left" if "minutes_left" in last else "", f"last line {_ago(ago)}"]
    else:
        parts += ["finished"]
    return progress(" · ".join(filter(None, parts)), step / steps)


def view_of(run: Run, steps: int) -> TrainingView:
    """Return all of it. The curves are drawn anew, since curves.png is only as new as the last checkpoint."""
    lines = read_log(run.folder / "log.jsonl")
    curves = ""
    if lines:
        file = io.BytesIO()
        draw_curves(lines).savefig(file, format="png", dpi=100)
        curves = figure(file.getvalue(), "Curves of the training")
    checked = [line for line in lines if any(name in line for name in HEALTH)][-MAX_ROWS:]
    named = {name: label for name, label in HEALTH.items() if any(name in line for line in checked)}
    rows = [
        {"step": f"{line['step']:,.0f}", **{label: _number(line, name) for name, label in named.items()}}
        for line in reversed(checked)
    ]
    return TrainingView(state_of(run, steps), table(rows), curves, _previews(run.folder))


def _number(line: dict[str, float], name: str) -> str:
    """Return a number of a line with its error, if the line has that."""
    if name not in line:
        return "–"
    error = line.get(f"{name}_error")
    return f"{line[name]:.4f}" + (f" ± {error:.4f}" if error is not None else "")


def _previews(folder: Path) -> str:
    samples = folder / "samples"
    latest = [
        (file, f"Preview at step {int(file.stem[5:]):,}")
        for file in sorted(samples.glob("step_*.png"))[-1:]
        if file.stem[5:].isdigit()
    ]
    named = [(samples / name, caption) for name, caption in PREVIEWS.items()]
    shown = []
    for file, caption in [*latest, *named]:
        inside = file.is_file() and file.resolve().is_relative_to(folder.resolve())
        if inside and file.stat().st_size <= MAX_FILE:
            shown.append(figure(file.read_bytes(), caption))
    return f'<div class="previews">{"".join(shown)}</div>' if shown else ""


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(0, seconds):.0f} s ago"
