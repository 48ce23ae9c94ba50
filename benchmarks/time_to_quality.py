"""Training time until generated digits are good enough, for diffunet and two baselines on this machine.

    python benchmarks/time_to_quality.py --seeds 0 1 2 --target 25 --cap_minutes 6 --folder runs/time-to-quality
    python benchmarks/time_to_quality.py --contenders "diffusers, small" --seeds 0 1 --folder runs/time-to-quality
    python benchmarks/time_to_quality.py --rehearse                                                 two minutes

What is compared is recipes, not networks or training loops: with diffunet's recipe, diffusers' network of the same size
is as good after the same time (README.md beside this file).

Good enough is a Fréchet distance of the pixels (0 to 16) of at most --target between 1,000 samples and all real
digits, as `diffunet evaluate` computes it. Only training is timed, not evaluating:

- diffunet is `diffunet train` with configs/digits.yaml and --train.minutes. Its learning rate decays to zero at the end
  of that time, so each of --budgets is a training of its own, from the shortest to the first that is good enough. The
  speed measurement at its start counts as training.
- A baseline (benchmarks/baselines) is evaluated during its training, at times that grow by a quarter, with the better
  of its weights and their EMA, until --cap_minutes or the end of its own recipe. `small` is its network at the size of
  diffunet's.

Between two evaluations the time is interpolated, both axes logarithmic.

All images are sampled with the contender's own noise schedule by DPM-Solver++ 2M in 25 steps: diffunet's evenly spaced
in log-SNR, as its command does; the baselines' evenly in time, which suits their schedules better. Fifty are evaluated
first; the others are not sampled if those are farther off than good ones could be.

Each contender and seed has a process of its own, all contenders with one seed before the next. Interrupted, the same
command continues with the first that is incomplete. FOLDER gets a .jsonl with a line for each evaluation, a table in
.md and a .png, from everything evaluated there so far.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from records import add_record_flag, append_rows, machine
from records import table as markdown

if TYPE_CHECKING:
    from torch import Tensor

STARTED = perf_counter()
"""Start of this process; importing torch counts."""
HERE = Path(__file__).parent
CONFIG = HERE.parent / "configs" / "digits.yaml"
FIRST_IMAGES = 50
"""Images evaluated first."""
GROWTH = 1.25
"""Ratio of the training times at successive evaluations of a baseline."""
BATCH = 250
"""Images sampled at once."""
REHEARSAL = {
    "num_images": 60,
    "steps": 3,
    "target": 2400.0,
    "budgets": [0.01],
    "cap_minutes": 0.02,
    "first_seconds": 0.5,
    "seeds": [0],
    "folder": Path("runs/time-to-quality-rehearsal"),
}


@dataclass(frozen=True)
class Diffunet:
    """Trainings by `diffunet train`."""

    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Baseline:
    """A training by the recipe of a module in baselines/."""

    module: str
    size: str
    resolution: int = 8


CONTENDERS = {
    "diffunet": Diffunet(),
    "diffunet, no classes": Diffunet(("--conditions", "{}")),
    "diffusers, small": Baseline("diffusers_recipe", "small"),
    "denoising-diffusion-pytorch, small": Baseline("denoising_diffusion", "small"),
    "denoising-diffusion-pytorch, as shipped": Baseline("denoising_diffusion", "as_shipped"),
    "diffusers, as shipped": Baseline("diffusers_recipe", "as_shipped", resolution=32),
}
"""The baselines are unconditional. As shipped, diffusers' network halves five times, so each pixel becomes 4×4."""


# ── training and evaluating ───────────────────────────────────────────────────────────────────────


class Evaluator:
    """The Fréchet distance from all real digits. `seconds` is the time spent on it."""

    def __init__(self, args: argparse.Namespace):
        from diffunet.core.runtime import default_device
        from diffunet.data.config import DataConfig
        from diffunet.data.dataset import load_images
        from diffunet.evaluation.features import choose_features
        from diffunet.evaluation.metrics import frechet_distance, real_vs_real

        self.distance = frechet_distance
        self.num_images, self.first = args.num_images, min(FIRST_IMAGES, args.num_images)
        real = load_images(DataConfig(path="digits"), log=lambda text: None)
        self.features = choose_features(None, None, real, default_device())
        self.real = self.features(real.images)
        # Few images always have a larger distance: this much, if they are real.
        self.hopeless = args.target + 2 * real_vs_real(frechet_distance, self.real, self.first)
        self.seconds = 0.0

    def __call__(self, sample: Callable[[int], "Tensor"]) -> dict[str, float]:
        """Evaluate the images that `sample(number)` returns, integers (number, 1, 8, 8)."""
        started = perf_counter()
        for number in sorted({self.first, self.num_images}):
            distance = self.distance(self.features(sample(number)), self.real)
            if distance > self.hopeless:
                break
        self.seconds += perf_counter() - started
        return {"frechet": round(distance, 2), "num_images": number}


def measure_diffunet(name: str, contender: Diffunet, seed: int, args: argparse.Namespace) -> Iterator[dict]:
    """Yield the result of a training for each budget, until one is good enough."""
    from diffunet.runs.run import Run
    from diffunet.tasks.estimate import REHEARSAL as MEASURED_SHARE

    evaluator = Evaluator(args)
    for minutes in args.budgets:
        folder = args.folder / "trainings" / f"{name}, {minutes:g} minutes, seed {seed}"
        words = ["train", "--config", CONFIG, "--train.output", folder, "--train.seed", seed, "--overwrite"]
        words += ["--train.minutes", minutes, *contender.flags]
        started = perf_counter()
        command = [sys.executable, "-c", "from diffunet.cli.main import main; main()", *map(str, words)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            sys.exit(ended.stderr)
        took = perf_counter() - started
        run = Run(folder)
        config = run.config()
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        steps = [0, *(line["step"] for line in log)]
        trained = sum(
            (line["step"] - before) * config.train.batch_size / line["images_per_second"]
            for before, line in zip(steps, log, strict=False)
        )
        settings = {"steps": args.steps, "seed": 10_000 * seed, "batch_size": BATCH}
        found = evaluator(lambda number, run=run, settings=settings: run.sample(num_images=number, **settings).pixels)
        yield {
            "contender": name,
            "seed": seed,
            "seconds": round(trained + MEASURED_SHARE * 60 * minutes, 2),
            "command_seconds": round(took, 2),
            "steps": steps[-1],
            "images": steps[-1] * config.train.batch_size,
            "parameters": sum(p.numel() for p in run.denoiser().parameters()),
            "weights": "EMA",
            **found,
        }
        if found["frechet"] <= args.target:
            return


def measure_baseline(name: str, contender: Baseline, seed: int, args: argparse.Namespace) -> Iterator[dict]:
    """Yield the results of one training, evaluated at growing times until it is good enough."""
    import torch
    import torch.nn.functional as F
    from accelerate import Accelerator
    from diffusers import DPMSolverMultistepScheduler

    from diffunet.data.pixels import denormalize
    from diffunet.objectives.base import CLIP_TO_DATA_RANGE
    from diffunet.sampling.loop import sample

    sys.path.insert(0, str(HERE / "baselines"))
    baseline, common = import_module(contender.module), import_module("common")
    torch.manual_seed(seed)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    digits = common.load_images("digits", contender.resolution).to(accelerator.device)
    batches = common.Batches(digits, baseline.BATCH_SIZE, flip=False)
    network = baseline.build(contender.resolution, 1, "tiny" if args.rehearse else contender.size)
    recipe = baseline.Recipe(network, batches, accelerator)
    schedule = recipe.noise_scheduler
    noise_levels = {"trained_betas": schedule.betas.tolist(), "prediction_type": schedule.config.prediction_type}
    spacing = {"timestep_spacing": "trailing", "final_sigmas_type": "zero"}

    def sampler() -> DPMSolverMultistepScheduler:
        scheduler = DPMSolverMultistepScheduler(**noise_levels, **spacing, **CLIP_TO_DATA_RANGE)
        scheduler.set_timesteps(args.steps)
        return scheduler

    def images_of(number: int, predict: Callable) -> torch.Tensor:
        generator = torch.Generator().manual_seed(10_000 * seed)
        noise = torch.randn(number, *digits.shape[1:], generator=generator).to(accelerator.device)
        samples = [sample(predict, sampler(), part) for part in noise.split(BATCH)]
        return denormalize(F.adaptive_avg_pool2d(torch.cat(samples), 8), bit_depth=8).cpu()

    started = perf_counter()
    evaluator = Evaluator(args)
    evaluator.seconds = perf_counter() - started
    trained, steps, images, until, cap = 0.0, 0, 0, args.first_seconds, 60 * args.cap_minutes
    while True:
        started = perf_counter()
        while steps < recipe.total_steps and trained + perf_counter() - started < until:
            images += recipe.step()[0]
            steps += 1
        trained += perf_counter() - started
        took = perf_counter() - STARTED - evaluator.seconds
        before = evaluator.seconds
        found = {
            weights: evaluator(lambda number, predict=predict: images_of(number, predict))
            for weights, predict in recipe.predictors().items()
        }
        best = min(found, key=lambda weights: found[weights]["frechet"])
        yield {
            "contender": name,
            "seed": seed,
            "seconds": round(trained, 2),
            "command_seconds": round(took, 2),
            "steps": steps,
            "images": images,
            "parameters": sum(p.numel() for p in network.parameters()),
            "weights": best,
            **found[best],
            "of_each": found,
        }
        if found[best]["frechet"] <= args.target or steps == recipe.total_steps or trained >= cap:
            return
        # At least as much training as evaluating.
        until = min(cap, max(GROWTH * trained, trained + evaluator.seconds - before))


# ── reporting ─────────────────────────────────────────────────────────────────────────────────────


def table(points: list[dict], args: argparse.Namespace) -> str:
    """Return medians over the seeds; a contender that did not reach the target took longer than the longest try."""
    groups: dict[str, dict[int, list[dict]]] = {}
    for point in points:
        groups.setdefault(point["contender"], {}).setdefault(point["seed"], []).append(point)
    first = median([time_to_target(way, args, "seconds") for way in next(iter(groups.values())).values()])
    heads = ["", "parameters", f"seconds to {args.target:g}", "relative", "whole command", "each seed", "best distance"]
    rows = []
    for name, ways in groups.items():
        columns = "seconds", "command_seconds"
        seconds, whole = ([time_to_target(way, args, key) for way in ways.values()] for key in columns)
        longest = min(max(point["seconds"] for point in way) for way in ways.values())
        times, whole_time = median(seconds), median(whole)
        ratio = f"{times / first:.2g} ×" if times < math.inf else f"> {longest / first:.2g} ×"
        rows.append(
            [
                name,
                f"{next(iter(ways.values()))[0]['parameters']:,}",
                format_seconds(times, longest),
                ratio if first < math.inf else "",
                f"{whole_time:.0f}" if whole_time < math.inf else "",
                ", ".join(format_seconds(each, longest) for each in seconds),
                ", ".join(f"{min(point['frechet'] for point in way):.3g}" for way in ways.values()),
            ]
        )
    versions = ", ".join(f"{name} {version(name)}" for name in ("diffusers", "denoising-diffusion-pytorch"))
    about = f"{machine()}, {versions}; {args.num_images:,} samples, {args.steps} steps."
    return f"{about}\n\n{markdown(heads, rows)}"


def time_to_target(way: list[dict], args: argparse.Namespace, key: str) -> float:
    """Return when the target is reached, interpolated on logarithmic axes; infinity if it is not."""
    before = None
    for point in way:
        if point["frechet"] <= args.target:
            if before is None:
                return point[key]
            fallen = math.log(before["frechet"] / args.target) / math.log(before["frechet"] / point["frechet"])
            return before[key] * (point[key] / before[key]) ** fallen
        before = point
    return math.inf


def median(times: list[float]) -> float:
    """Return the median, the higher one of an even number, as a mean with infinity is none."""
    return statistics.median_high(times)


def format_seconds(seconds: float, longest: float) -> str:
    return f"{seconds:.0f}" if seconds < math.inf else f"> {longest:.0f}"


def plot(points: list[dict], args: argparse.Namespace) -> None:
    """Plot the Fréchet distance against seconds, a color for each contender and a line for each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(point["contender"] for point in points))
    for color, name in enumerate(names):
        for number, seed in enumerate(sorted({point["seed"] for point in points if point["contender"] == name})):
            way = [point for point in points if (point["contender"], point["seed"]) == (name, seed)]
            seconds, values = [point["seconds"] for point in way], [point["frechet"] for point in way]
            label = "_" if number else name
            axes.plot(seconds, values, ".-", color=f"C{color}", alpha=0.8, label=label)
    axes.axhline(args.target, linestyle=":", color="gray")
    axes.set(xscale="log", yscale="log", xlabel="seconds of training", ylabel="Fréchet distance")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(args.folder / "time-to-quality.png", dpi=100)


def report(args: argparse.Namespace) -> list[dict]:
    """Write the lines, the table and the plot of everything in the folder; return the lines."""
    files = [file for name in CONTENDERS for file in sorted((args.folder / "points").glob(f"{name}, seed *.jsonl"))]
    points = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    (args.folder / "time-to-quality.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    (args.folder / "time-to-quality.md").write_text(table(points, args), encoding="utf-8")
    plot(points, args)
    return points


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME", help="(all)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--target", type=float, default=25.0, help="Fréchet distance (%(default)s)")
    add("--cap_minutes", type=float, default=6.0, help="of a baseline's training (%(default)s)")
    add("--budgets", type=float, nargs="+", default=[0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0], help="minutes, of diffunet")
    add("--first_seconds", type=float, default=10.0, help="of a baseline before its first evaluation (%(default)s)")
    add("--num_images", type=int, default=1000, help="samples to evaluate (%(default)s)")
    add("--steps", type=int, default=25, help="network calls per image (%(default)s)")
    add("--folder", type=Path, default=Path("runs/time-to-quality"))
    add("--rehearse", action="store_true", help="tiny budgets and networks")
    add_record_flag(parser)
    if parser.parse_args().rehearse:
        parser.set_defaults(**REHEARSAL)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    (args.folder / "points").mkdir(parents=True, exist_ok=True)
    words = [word for word in sys.argv[1:] if word != "--record"]
    runs = [(seed, name) for seed in args.seeds for name in args.contenders]
    for seed, name in runs:
        file = args.folder / "points" / f"{name}, seed {seed}.jsonl"
        if file.exists():
            continue
        if len(runs) > 1:
            command = [sys.executable, __file__, *words, "--contenders", name, "--seeds", str(seed)]
            subprocess.run(command, check=True)
            continue
        measure = measure_diffunet if isinstance(CONTENDERS[name], Diffunet) else measure_baseline
        lines = []
        for point in measure(name, CONTENDERS[name], seed, args):
            lines.append(json.dumps(point) + "\n")
            print(lines[-1], end="", flush=True)
        file.write_text("".join(lines))
    points = report(args)
    if len(runs) > 1:
        print((args.folder / "time-to-quality.md").read_text(encoding="utf-8"))
    if args.record:
        append_rows("time-to-quality", points)


if __name__ == "__main__":
    main()
