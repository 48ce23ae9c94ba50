"""Quality against minutes on this machine, with the commands that everybody has.

    python benchmarks/curve.py --config configs/digits.yaml --minutes 1 2 5 --seeds 0 1 2 --folder runs/digits-curve

One training for each number of minutes and each seed, its schedule ending with them. --points 0.25 0.5 1
measures a training on its way, too, by the average of its weights up to there. Interrupted (Ctrl-C, SIGTERM),
the same command goes on where it was. FOLDER gets curve.jsonl with a line for each point, curve.md, curve.png
and, from each training, its log and its last preview.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import threading
import time
from collections import defaultdict
from pathlib import Path

import torch
from matplotlib.figure import Figure

from diffunet.cli import main as commands
from diffunet.runs.run import Run
from diffunet.data.dataset import load_images
from diffunet.cli.evaluate import choose_features, measure
from diffunet.core.progress import no_progress
from diffunet.training.trainer import list_checkpoints

WALL = "wall_minutes_with_start_and_previews"
ON_THE_WAY = 0.1
"""Length of the average by which a training is measured before its end."""


def machine() -> str:
    """What the minutes are minutes of."""
    if torch.cuda.is_available():
        where = torch.cuda.get_device_name()
    else:
        where = f"{os.cpu_count()} CPU cores ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})"
    return f"{where}, torch {torch.__version__}"


def train(folder: Path, config: str, minutes: float, seed: int, flags: list[str]) -> None:
    """A training to its end; where it was begun before, the rest of it. Its minutes so far are in pieces.json."""
    record = folder / "pieces.json"
    pieces = json.loads(record.read_text()) if record.exists() else []
    words = ["train", "--config", config, "--train.output", str(folder), "--train.seed", str(seed), *flags]
    words += ["--train.minutes", str(minutes)]
    if list_checkpoints(folder):
        words = ["train", "--resume", str(folder)]
    elif folder.exists():
        words.append("--overwrite")
    print("diffunet", *words, flush=True)
    started = time.monotonic()
    try:
        commands.main(words)
    except SystemExit as end:
        folder.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps([*pieces, (time.monotonic() - started) / 60]))
        if end.code:
            raise


def points_of(folder: Path, asked: argparse.Namespace, seed: int) -> list[dict]:
    """The training measured at each of the points."""
    run = Run(folder)
    config = run.config()
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    wish = config.sample.model_copy(
        update={"num_images": asked.num_images, "seed": 10_000 * seed, "batch_size": asked.batch_size}
    )
    pictures = load_images(config.data, labelled=config.conditions.classes != 0, say=no_progress)
    features = choose_features(asked.features, None, pictures)
    found = []
    for point in asked.points:
        denoiser = run.denoiser() if point == 1 else run.averaged(ON_THE_WAY, until=point)
        record, _ = measure(run, denoiser, config, wish, pictures, features)
        wall = sum(json.loads((folder / "pieces.json").read_text()))
        found.append(
            {
                "minutes": config.train.minutes,
                "seed": seed,
                "point": point,
                "machine": machine(),
                "steps": round(point * config.train.steps),
                "images": round(point * config.train.steps * config.train.batch_size),
                WALL: round(wall, 3),
                "preview_share": lines[-1]["preview_share"],
                **record,
            }
        )
    return found


def table(lines: list[dict]) -> str:
    """Mean ± standard deviation over the seeds."""
    groups = defaultdict(list)
    for line in lines:
        groups[line["minutes"] * line["point"], line["minutes"]].append(line)
    names = [*lines[0]["metrics"], *(["class_accuracy"] if "class_accuracy" in lines[0] else [])]
    heads = ["minutes", "of a training of", "took", "steps", *names, "too near to a training picture", "seeds"]
    rows = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for (minutes, whole), group in sorted(groups.items()):
        values = [[line["metrics"].get(name, line.get(name))["value"] for line in group] for name in names]
        values.append([line["memorization"]["features"]["value"] for line in group])
        took = shown([line["point"] * line[WALL] for line in group])
        steps = f"{statistics.mean(line['steps'] for line in group):,.0f}"
        cells = [f"{minutes:g}", f"{whole:g}", took, steps, *map(shown, values), str(len(group))]
        rows.append(f"| {' | '.join(cells)} |")
    last = lines[-1]
    about = (
        f"{last['machine']}. {last['drawn']['num_images']:,} pictures ({last['drawn']['sampler']}, "
        f"{last['drawn']['steps']} steps) against {last['real']['num_images']:,} of {last['real']['path']}; "
        f"features: {last['features']['name']}; diffunet {last['diffunet']['commit']}."
    )
    return f"{about}\n\n" + "\n".join(rows) + "\n"


def shown(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3g}{spread}"


def draw(lines: list[dict], path: Path) -> None:
    """The first metric against the minutes that it took, start and previews included; a dot for each training."""
    name = next(iter(lines[0]["metrics"]))
    asked = [line["minutes"] * line["point"] for line in lines]
    took = [line[WALL] * line["point"] for line in lines]
    values = [line["metrics"][name]["value"] for line in lines]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(took, values, "o", alpha=0.6)

    def mean(numbers: list[float], place: float) -> float:
        return statistics.mean(number for m, number in zip(asked, numbers, strict=True) if m == place)

    places = sorted(set(asked))
    axes.plot([mean(took, place) for place in places], [mean(values, place) for place in places], "-")
    axes.axhline(lines[-1]["metrics"][name]["floor"], linestyle=":", color="grey", label="real pictures, as many")
    axes.set(xlabel="minutes", ylabel=name.replace("_", " "))
    axes.set_title(lines[-1]["machine"], fontsize="small")
    axes.set(xlim=(0, None), ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--minutes", type=float, nargs="+", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--points", type=float, nargs="+", default=[1.0], help="shares of a training to measure at")
    parser.add_argument("--num_images", type=int, default=1000)
    parser.add_argument("--batch_size", type=int, default=250, help="pictures drawn together")
    parser.add_argument("--features", help="as for diffunet evaluate")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--stop_after", type=float, help="minutes after which to save and end")
    asked, flags = parser.parse_known_args()
    if asked.stop_after:
        alarm = threading.Timer(60 * asked.stop_after, os.kill, (os.getpid(), signal.SIGTERM))
        alarm.daemon = True
        alarm.start()
    lines = []
    for minutes in asked.minutes:
        for seed in asked.seeds:
            folder = asked.folder / f"{minutes:g}-minutes-seed-{seed}"
            measured = folder / "points.json"
            if not measured.exists():
                train(folder, asked.config, minutes, seed, flags)
                measured.write_text(json.dumps(points_of(folder, asked, seed)))
            lines += json.loads(measured.read_text())
            for name in ("log.jsonl", "curves.png"):
                shutil.copy(folder / name, asked.folder / f"{folder.name}-{name}")
            shutil.copy(sorted((folder / "samples").glob("step_*"))[-1], asked.folder / f"{folder.name}-samples.png")
    (asked.folder / "curve.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (asked.folder / "curve.md").write_text(table(lines), encoding="utf-8")
    draw(lines, asked.folder / "curve.png")
    print(table(lines))


if __name__ == "__main__":
    main()
