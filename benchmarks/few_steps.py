"""Quality against network calls: a run, the same run tuned by consistency, and one trained for the time of both.

    python benchmarks/few_steps.py --seeds 1 2 --folder runs/few-steps       half an hour a seed on two CPU cores
    python benchmarks/few_steps.py --tiny --folder runs/rehearsal            a rehearsal

Interrupted, the same command continues. FOLDER gets few-steps.jsonl with a line for each number of calls, few-steps.md,
and few-steps.png: the Fréchet distance against calls, and samples of the first seed.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from matplotlib.figure import Figure
from records import add_record_flag, append_rows, machine, mean_std, run_command
from records import table as markdown

from diffunet.core.runtime import default_device
from diffunet.evaluation.features import FeatureExtractor, choose_features
from diffunet.evaluation.metrics import frechet_distance
from diffunet.runs.evaluate import real_images
from diffunet.runs.run import Run
from diffunet.training.log import read_log

BASE, TUNED, LONGER = "base", "tuned by consistency", "trained longer"
CALLS = {BASE: (2, 4, 6, 8, 10, 15, 25), TUNED: (1, 2, 3, 4), LONGER: (4, 6, 8, 10, 15, 25)}
QUIET = ["--train.preview_every", "1000000", "--train.snapshots", "0", "--train.checkpoint_every", "1000000"]


def train(folder: Path, *flags: str) -> Run:
    """Train a run, unless it exists."""
    if not (folder / "model" / "diffusion_pytorch_model.safetensors").exists():
        words = ["train", "--train.output", str(folder), "--overwrite", *QUIET, *flags]
        run_command(words)
    return Run(folder)


def seconds(run: Run) -> float:
    """Return the time of the steps of a training, by its log."""
    batch, last, spent = run.config().train.batch_size, 0, 0.0
    for line in read_log(run.folder / "log.jsonl"):
        spent += (line["step"] - last) * batch / line["images_per_second"]
        last = line["step"]
    return spent


def runs_of(folder: Path, seed: int, config: str, tuning: str, short: list[str]) -> dict[str, Run]:
    """Return the three runs of a training seed."""
    flags = ["--train.seed", str(seed), *short]
    base = train(folder / f"base-{seed}", "--config", config, *flags)
    tuned = train(folder / f"tuned-{seed}", "--config", tuning, "--finetune.from", str(base.folder), *flags)
    steps = round(base.config().train.steps * (1 + seconds(tuned) / seconds(base)))
    longer = train(folder / f"longer-{seed}", "--config", config, *flags, "--train.steps", str(steps))
    return {BASE: base, TUNED: tuned, LONGER: longer}


def rows_of(
    name: str, run: Run, seed: int, num_images: int, features: FeatureExtractor, real: torch.Tensor
) -> Iterator:
    """Yield the Fréchet distance at each number of calls and sampling seed."""
    steps, spent = run.config().train.steps, round(seconds(run) / 60, 2)
    for calls in CALLS[name]:
        sampler = "consistency" if name == TUNED else "dpm++"
        for start in (0, 10_000, 20_000):
            settings = {"num_images": num_images, "steps": calls, "sampler": sampler, "batch_size": 250, "seed": start}
            pixels = run.sample(**settings).pixels
            row = {"run": name, "train_seed": seed, "train_steps": steps, "minutes": spent, "calls": calls}
            yield row | {"sampling_seed": start, "frechet_distance": frechet_distance(features(pixels), real)}


def table(rows: list[dict]) -> str:
    """Return the mean over sampling seeds ± standard deviation over training seeds, in Markdown."""
    seeds = sorted({row["train_seed"] for row in rows})
    calls = sorted({row["calls"] for row in rows})
    values = defaultdict(list)
    for row in rows:
        values[row["run"], row["calls"], row["train_seed"]].append(row["frechet_distance"])
    lines = []
    for name in (BASE, TUNED, LONGER):
        own = [row for row in rows if row["run"] == name]
        minutes = mean_std(sorted({row["minutes"] for row in own}))
        means = {n: [sum(v) / len(v) for s in seeds if (v := values[name, n, s])] for n in calls}
        lines.append([name, minutes, *(mean_std(means[n]) if means[n] else "" for n in calls)])
    return f"{machine()}, training seeds {', '.join(map(str, seeds))}.\n\n" + markdown(
        ["", "minutes", *(f"{n} calls" if n > 1 else "1 call" for n in calls)], lines
    )


def plot(rows: list[dict], runs: dict[str, Run], path: Path) -> None:
    """Plot the Fréchet distance against calls, beside samples of all classes with the same noise."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.15])
    for name, marker in zip((BASE, LONGER, TUNED), "os^", strict=True):
        points = [(row["calls"], row["frechet_distance"]) for row in rows if row["run"] == name]
        if not points:
            continue
        calls = sorted({n for n, _ in points})
        means = [sum(v for n, v in points if n == c) / sum(n == c for n, _ in points) for c in calls]
        left.plot(calls, means, marker=marker, label=name)
    left.set(xscale="log", yscale="log", xlabel="network calls", ylabel="Fréchet distance")
    ticks = sorted({row["calls"] for row in rows})
    left.set_xticks(ticks, [str(n) for n in ticks], minor=False)
    left.set_yticks([15, 20, 30, 50, 100, 200, 400], ["15", "20", "30", "50", "100", "200", "400"])
    left.minorticks_off()
    left.grid(alpha=0.3)
    left.legend()
    strips = [(TUNED, 1), (TUNED, 2), (TUNED, 4), (BASE, 4), (BASE, 8), (BASE, 25)]
    images = []
    for name, calls in strips:
        sampler = "consistency" if name == TUNED else "dpm++"
        pixels = runs[name].sample(num_images=10, steps=calls, sampler=sampler, seed=7).pixels
        images.append(torch.nn.functional.pad(pixels[:, 0], (1, 1, 1, 1)).transpose(0, 1).flatten(1))
    right.imshow(torch.cat(images), cmap="gray", interpolation="nearest")
    names = {TUNED: "consistency", BASE: "dpm++"}
    height = len(images[0])
    right.set_yticks(
        [height * (index + 0.5) - 0.5 for index in range(len(strips))],
        [f"{names[name]}, {calls}" for name, calls in strips],
    )
    right.set_xticks([])
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/digits.yaml", help="of the base (%(default)s)")
    parser.add_argument("--tuning", default="configs/digits-consistency.yaml", help="of the tuning (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="of training (1 2; tuned on 0)")
    parser.add_argument("--num_images", type=int, default=1000)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="20 steps and 100 images, to rehearse")
    add_record_flag(parser)
    args = parser.parse_args()
    short = ["--train.steps", "20", "--train.warmup_steps", "2"] if args.tiny else []
    args.num_images = 100 if args.tiny else args.num_images
    rows, first = [], {}
    for seed in args.seeds:
        runs = runs_of(args.folder, seed, args.config, args.tuning, short)
        first = first or runs
        config = runs[BASE].config()
        images = real_images(config, config.data)
        features = choose_features(None, None, images, default_device())
        real = features(images.images[list(range(len(images)))])
        for name, run in runs.items():
            measured = args.folder / f"{run.folder.name}.json"
            if not measured.exists():
                measured.write_text(json.dumps(list(rows_of(name, run, seed, args.num_images, features, real))))
            rows += json.loads(measured.read_text())
    (args.folder / "few-steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (args.folder / "few-steps.md").write_text(table(rows), encoding="utf-8")
    plot(rows, first, args.folder / "few-steps.png")
    print(table(rows))
    if args.record:
        append_rows("few-steps", rows)


if __name__ == "__main__":
    main()
