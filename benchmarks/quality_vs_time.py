"""Quality against training time on this machine.

    python benchmarks/quality_vs_time.py --config configs/digits.yaml --minutes 1 2 5 --seeds 0 1 2 \\
        --folder runs/quality-vs-time
    python benchmarks/quality_vs_time.py --tiny --folder runs/rehearsal                a rehearsal

One training for each number of minutes and each seed, whose learning rate schedule ends with the minutes.
--points 0.25 0.5 1 also evaluates each training on its way, with an EMA of its weights up to there. Interrupted
(Ctrl-C, SIGTERM), the same command continues. FOLDER gets quality-vs-time.jsonl with a line for each point,
quality-vs-time.md and .png, and the log and the last preview of each training. Other flags are passed on to train.py.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import threading
import time
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure
from records import add_record_flag, append_rows, machine, mean_std, run_command
from records import table as markdown

from diffunet.core.runtime import default_device
from diffunet.evaluation.features import choose_features
from diffunet.runs.evaluate import evaluate_denoiser, real_images
from diffunet.runs.run import Run
from diffunet.training.checkpoint import list_checkpoints

WALL = "wall_minutes_with_start_and_previews"
EMA_LENGTH = 0.1
"""Of the weights with which a training is evaluated before its end."""
TINY = {"minutes": [0.05], "num_images": 20, "config": "configs/digits.yaml"}


def train(folder: Path, config: str, minutes: float, seed: int, flags: list[str]) -> None:
    """Train to the end, resuming if possible. pieces.json holds the minutes of each call."""
    record = folder / "pieces.json"
    pieces = json.loads(record.read_text()) if record.exists() else []
    words = ["train", "--config", config, "--train.output", str(folder), "--train.seed", str(seed), *flags]
    words += ["--train.minutes", str(minutes)]
    if list_checkpoints(folder):
        words = ["train", "--resume", str(folder)]
    elif folder.exists():
        words.append("--overwrite")
    started = time.monotonic()
    try:
        run_command(words)
    finally:
        folder.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps([*pieces, (time.monotonic() - started) / 60]))


def points_of(folder: Path, args: argparse.Namespace, seed: int) -> list[dict]:
    """Evaluate a training at each of the points."""
    run = Run(folder)
    config = run.config()
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    update = {"num_images": args.num_images, "seed": 10_000 * seed, "batch_size": args.batch_size}
    sampling = config.sample.model_copy(update=update)
    real = real_images(config, config.data)
    features = choose_features(args.features, None, real, default_device())
    found = []
    for point in args.points:
        denoiser = run.denoiser() if point == 1 else run.posthoc_ema(EMA_LENGTH, until=point)
        record = evaluate_denoiser(run, denoiser, sampling, real, features).record
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
    """Return mean ± standard deviation over the seeds, in Markdown."""
    groups = defaultdict(list)
    for line in lines:
        groups[line["minutes"] * line["point"], line["minutes"]].append(line)
    names = [*lines[0]["metrics"], *(["class_accuracy"] if "class_accuracy" in lines[0] else [])]
    columns = [name.replace("_", " ").replace("frechet", "Fréchet") for name in names]
    heads = ["minutes", "of a training of", "took", "steps", *columns, "memorization", "seeds"]
    rows = []
    for (minutes, whole), group in sorted(groups.items()):
        values = [[line["metrics"].get(name, line.get(name))["value"] for line in group] for name in names]
        values.append([line["memorization"]["features"]["value"] for line in group])
        took = mean_std([line["point"] * line[WALL] for line in group])
        steps = f"{statistics.mean(line['steps'] for line in group):,.0f}"
        rows.append([f"{minutes:g}", f"{whole:g}", took, steps, *map(mean_std, values), str(len(group))])
    last = lines[-1]
    about = (
        f"{last['machine']}. {last['samples']['num_images']:,} samples ({last['samples']['sampler']}, "
        f"{last['samples']['steps']} steps) against {last['real']['num_images']:,} images of {last['real']['path']}; "
        f"features: {last['features']['name']}; diffunet {last['diffunet']['commit']}."
    )
    return f"{about}\n\n{markdown(heads, rows)}"


def plot(lines: list[dict], path: Path) -> None:
    """Plot the first metric against minutes, start-up and previews included; a dot for each training."""
    name = next(iter(lines[0]["metrics"]))
    budgets = [line["minutes"] * line["point"] for line in lines]
    took = [line[WALL] * line["point"] for line in lines]
    values = [line["metrics"][name]["value"] for line in lines]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(took, values, "o", alpha=0.6)

    def mean(numbers: list[float], place: float) -> float:
        return statistics.mean(number for m, number in zip(budgets, numbers, strict=True) if m == place)

    places = sorted(set(budgets))
    axes.plot([mean(took, place) for place in places], [mean(values, place) for place in places], "-")
    axes.axhline(lines[-1]["metrics"][name]["floor"], linestyle=":", color="gray", label="as many real images")
    axes.set(xlabel="minutes", ylabel=name.replace("_", " "))
    axes.set_title(lines[-1]["machine"], fontsize="small")
    axes.set(xlim=(0, None), ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/digits.yaml", help="(%(default)s)")
    parser.add_argument("--minutes", type=float, nargs="+", default=[1.0, 2.0, 5.0], help="(1 2 5)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--points", type=float, nargs="+", default=[1.0], help="where in a training to evaluate (1)")
    parser.add_argument("--num_images", type=int, default=1000)
    parser.add_argument("--batch_size", type=int, default=250, help="images sampled at once")
    parser.add_argument("--features", help="as for diffunet evaluate")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--stop_after", type=float, help="minutes after which to save and stop")
    parser.add_argument("--tiny", action="store_true", help="three seconds and 20 images, to rehearse")
    add_record_flag(parser)
    args, flags = parser.parse_known_args()
    if args.tiny:
        vars(args).update(TINY)
    if args.stop_after:
        alarm = threading.Timer(60 * args.stop_after, os.kill, (os.getpid(), signal.SIGTERM))
        alarm.daemon = True
        alarm.start()
    lines = []
    for minutes in args.minutes:
        for seed in args.seeds:
            folder = args.folder / f"{minutes:g}-minutes-seed-{seed}"
            measured = folder / "points.json"
            if not measured.exists():
                train(folder, args.config, minutes, seed, flags)
                measured.write_text(json.dumps(points_of(folder, args, seed)))
            lines += json.loads(measured.read_text())
            for name in ("log.jsonl", "curves.png"):
                shutil.copy(folder / name, args.folder / f"{folder.name}-{name}")
            shutil.copy(sorted((folder / "samples").glob("step_*"))[-1], args.folder / f"{folder.name}-samples.png")
    (args.folder / "quality-vs-time.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (args.folder / "quality-vs-time.md").write_text(table(lines), encoding="utf-8")
    plot(lines, args.folder / "quality-vs-time.png")
    print(table(lines))
    if args.record:
        append_rows("quality-vs-time", lines)


if __name__ == "__main__":
    main()
