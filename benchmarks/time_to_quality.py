"""How long a training takes until its digits are good enough, ours and two peers' on this machine.

    python benchmarks/time_to_quality.py --seeds 0 1 2 --target 25 --cap_minutes 6 --folder runs/time-to-quality
    python benchmarks/time_to_quality.py --contenders "diffusers, small" --seeds 0 1 --folder runs/time-to-quality
    python benchmarks/time_to_quality.py --measure_step_time                                        two minutes

Good enough is a Fréchet distance of the pixels (0 to 16) of at most --target between 1,000 pictures and all real
digits, as `diffunet evaluate` has it. The seconds are those of training, the clock stands still while it is measured:

- Ours is `diffunet train` with configs/digits.yaml and a time. Its rate falls to zero with the end of that time, so
  each of --budgets is a training of its own, from the shortest to the first that is good enough. The measuring of
  its speed at the start counts as training.
- A peer (benchmarks/peers) is measured on its way, at times that grow by a quarter, by the better of its weights and
  their average, until --cap_minutes or the end of its own recipe. `small` is the peer's network at the size of ours.

Between two measurements the time is taken from the line between them, both axes logarithmic.

Everybody's pictures are drawn with the contender's own noise schedule by DPM-Solver++ 2M in 25 steps: ours as the
command does, even in log-SNR, the peers' even in time, which suits their schedules better. Fifty are looked at first:
while those are further off than any good ones could be, the others are not drawn.

Each contender and seed has a process of its own, all contenders with one seed before the next; interrupted, the same
command goes on with the first that was not completed. FOLDER gets a .jsonl with a line for each measurement, a table
in .md and a .png, from all that was measured there so far.
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

if TYPE_CHECKING:
    from torch import Tensor

    from diffunet.runs.run import Run
    from diffunet.models.denoiser import Denoiser
    from diffunet.sampling.loop.generate import SampleConfig

STARTED = perf_counter()
"""Of this process; importing torch is a part of the time."""
HERE = Path(__file__).parent
CONFIG = HERE.parent / "configs" / "digits.yaml"
LOOK = 50
"""ImageDataset in a first look."""
GROWTH = 1.25
"""From one measurement of a peer to the next."""
BATCH = 250
"""ImageDataset drawn together."""
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
class Ours:
    """Trainings by our own command, each measured as its config draws and without guidance."""

    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Peer:
    """A training by the recipe of a module in peers/."""

    module: str
    size: str
    resolution: int = 8


CONTENDERS = {
    "diffunet": Ours(),
    "diffunet, no classes": Ours(("--conditions.classes", "0")),
    "diffusers, small": Peer("diffusers_recipe", "small"),
    "denoising-diffusion-pytorch, small": Peer("denoising_diffusion", "small"),
    "denoising-diffusion-pytorch, as shipped": Peer("denoising_diffusion", "as_shipped"),
    "diffusers, as shipped": Peer("diffusers_recipe", "as_shipped", resolution=32),
}
"""The peers know no classes. As shipped, diffusers' network halves five times: a pixel is a square of 4×4 for it."""
PLAIN = "without guidance"


# ── measuring ─────────────────────────────────────────────────────────────────────────────────────


class Yardstick:
    """The Fréchet distance from all real digits, and the time that finding it took."""

    def __init__(self, asked: argparse.Namespace):
        from diffunet.data.dataset import DataConfig, load_images
        from diffunet.evaluation.metrics import real_vs_real, frechet_distance
        from diffunet.cli.evaluate import choose_features
        from diffunet.core.progress import no_progress

        self.distance = frechet_distance
        self.num_images, self.look = asked.num_images, min(LOOK, asked.num_images)
        pictures = load_images(DataConfig(path="digits"), labelled=True, say=no_progress)
        self.features = choose_features(None, None, pictures)
        self.real = self.features(pictures.images[list(range(len(pictures)))])
        # Few pictures are always further off: by so much if they are real.
        self.hopeless = asked.target + 2 * real_vs_real(frechet_distance, self.real, self.look)
        self.seconds = 0.0

    def __call__(self, draw: Callable) -> dict[str, float]:
        """Of the integers (number, 1, 8, 8) that `draw(number)` gives."""
        started = perf_counter()
        for number in sorted({self.look, self.num_images}):
            found = self.distance(self.features(draw(number)), self.real)
            if found > self.hopeless:
                break
        self.seconds += perf_counter() - started
        return {"frechet": round(found, 2), "num_images": number}


def measure_ours(name: str, contender: Ours, seed: int, asked: argparse.Namespace) -> Iterator[dict]:
    """A training for each budget, until one is good enough in both ways to draw."""
    from diffunet.runs.run import Run
    from diffunet.cli.console import default_device
    from diffunet.tasks.fit import REHEARSED

    yardstick = Yardstick(asked)
    guidance = {name: {}, f"{name}, {PLAIN}": {"guidance_scale": 1.0, "guide": None}}
    same = {"steps": asked.steps, "seed": 10_000 * seed, "batch_size": BATCH}
    for minutes in asked.budgets:
        folder = asked.folder / "trainings" / f"{name}, {minutes:g} minutes, seed {seed}"
        words = ["train", "--config", CONFIG, "--train.output", folder, "--train.seed", seed, "--overwrite"]
        words += ["--train.minutes", minutes, *contender.flags]
        started = perf_counter()
        command = [sys.executable, "-c", "from diffunet.cli.main import main; main()", *map(str, words)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            sys.exit(ended.stderr)
        took = perf_counter() - started
        run = Run(folder)
        config, denoiser = run.config(), run.denoiser().to(default_device())
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        steps = [0, *(line["step"] for line in log)]
        trained = sum(
            (line["step"] - before) * config.train.batch_size / line["images_per_second"]
            for before, line in zip(steps, log, strict=False)
        )
        point = {
            "seconds": round(trained + REHEARSED * 60 * minutes, 2),
            "command_seconds": round(took, 2),
            "steps": steps[-1],
            "images": steps[-1] * config.train.batch_size,
            "parameters": sum(p.numel() for p in denoiser.parameters()),
            "weights": "average",
        }
        good = []
        for drawn, how in guidance.items():
            found = yardstick(drawer(run, denoiser, config.sample.model_copy(update=same | how)))
            good.append(found["frechet"] <= asked.target)
            yield {"contender": drawn, "seed": seed, **point, **found}
        if all(good):
            return


def drawer(run: "Run", denoiser: "Denoiser", wish: "SampleConfig") -> Callable[[int], "Tensor"]:
    """Draws as many pictures as it is told, as `diffunet sample` would."""
    import torch

    from diffunet.cli.sample import draw

    def pictures(number: int) -> torch.Tensor:
        these = wish.model_copy(update={"num_images": number})
        return torch.cat([batch.pixels for batch in draw(run, denoiser, run.config(), these)])

    return pictures


def measure_peer(name: str, contender: Peer, seed: int, asked: argparse.Namespace) -> Iterator[dict]:
    """One training, measured at growing times until it is good enough."""
    import torch
    import torch.nn.functional as F
    from accelerate import Accelerator
    from diffusers import DPMSolverMultistepScheduler

    from diffunet.data.dataset import denormalize
    from diffunet.objectives.base import CLIP_TO_DATA_RANGE
    from diffunet.sampling.loop import sample

    sys.path.insert(0, str(HERE / "peers"))
    peer, common = import_module(contender.module), import_module("common")
    torch.manual_seed(seed)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    scans = common.load_pictures("digits", contender.resolution).to(accelerator.device)
    batches = common.Batches(scans, peer.BATCH_SIZE, flip=False)
    network = peer.build(contender.resolution, 1, "tiny" if asked.measure_step_time else contender.size)
    recipe = peer.Recipe(network, batches, accelerator)
    noise = recipe.noise_scheduler
    noise_levels = {"trained_betas": noise.betas.tolist(), "prediction_type": noise.config.prediction_type}
    spacing = {"timestep_spacing": "trailing", "final_sigmas_type": "zero"}

    def sampler() -> DPMSolverMultistepScheduler:
        made = DPMSolverMultistepScheduler(**noise_levels, **spacing, **CLIP_TO_DATA_RANGE)
        made.set_timesteps(asked.steps)
        return made

    def pictures(number: int, predict: Callable) -> torch.Tensor:
        generator = torch.Generator().manual_seed(10_000 * seed)
        start = torch.randn(number, *scans.shape[1:], generator=generator).to(accelerator.device)
        drawn = [sample(predict, sampler(), part) for part in start.split(BATCH)]
        return denormalize(F.adaptive_avg_pool2d(torch.cat(drawn), 8), bit_depth=8).cpu()

    begun = perf_counter()
    yardstick = Yardstick(asked)
    yardstick.seconds = perf_counter() - begun
    trained, steps, images, until, cap = 0.0, 0, 0, asked.first_seconds, 60 * asked.cap_minutes
    while True:
        started = perf_counter()
        while steps < recipe.total_steps and trained + perf_counter() - started < until:
            images += recipe.step()[0]
            steps += 1
        trained += perf_counter() - started
        took = perf_counter() - STARTED - yardstick.seconds
        before = yardstick.seconds
        found = {
            weights: yardstick(lambda number, predict=predict: pictures(number, predict))
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
        if found[best]["frechet"] <= asked.target or steps == recipe.total_steps or trained >= cap:
            return
        # Where measuring takes long, training gets as long in between.
        until = min(cap, max(GROWTH * trained, trained + yardstick.seconds - before))


# ── reporting ─────────────────────────────────────────────────────────────────────────────────────


def table(points: list[dict], asked: argparse.Namespace) -> str:
    """Medians over the seeds; who did not get there took longer than the longest that was tried."""
    groups: dict[str, dict[int, list[dict]]] = {}
    for point in points:
        groups.setdefault(point["contender"], {}).setdefault(point["seed"], []).append(point)
    ours = next(iter(groups))
    first = median([reached(way, asked, "seconds") for way in groups[ours].values()])
    heads = ["", "parameters", f"seconds to {asked.target:g}", "of ours", "whole command", "each seed", "least"]
    rows = [f"| {' | '.join(heads)} |", f"| {'--- | ' * len(heads)}".rstrip()]
    for name, ways in groups.items():
        seconds, whole = ([reached(way, asked, key) for way in ways.values()] for key in ("seconds", "command_seconds"))
        longest = min(max(point["seconds"] for point in way) for way in ways.values())
        times, whole_time = median(seconds), median(whole)
        ratio = f"{times / first:.2g} ×" if times < math.inf else f"> {longest / first:.2g} ×"
        cells = [
            name,
            f"{next(iter(ways.values()))[0]['parameters']:,}",
            shown(times, longest),
            ratio if first < math.inf else "",
            f"{whole_time:.0f}" if whole_time < math.inf else "",
            ", ".join(shown(each, longest) for each in seconds),
            ", ".join(f"{min(point['frechet'] for point in way):.3g}" for way in ways.values()),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    from curve import machine

    peers = ", ".join(f"{name} {version(name)}" for name in ("diffusers", "denoising-diffusion-pytorch"))
    return f"{machine()}, {peers}; {asked.num_images:,} pictures, {asked.steps} steps.\n\n" + "\n".join(rows) + "\n"


def reached(way: list[dict], asked: argparse.Namespace, key: str) -> float:
    """Where the line between the first that is good enough and the one before, both logarithmic, is at the target."""
    before = None
    for point in way:
        if point["frechet"] <= asked.target:
            if before is None:
                return point[key]
            fallen = math.log(before["frechet"] / asked.target) / math.log(before["frechet"] / point["frechet"])
            return before[key] * (point[key] / before[key]) ** fallen
        before = point
    return math.inf


def median(times: list[float]) -> float:
    """The higher one of an even number: between one that got there and one that did not there is no mean."""
    return statistics.median_high(times)


def shown(seconds: float, longest: float) -> str:
    return f"{seconds:.0f}" if seconds < math.inf else f"> {longest:.0f}"


def draw_lines(points: list[dict], asked: argparse.Namespace) -> None:
    """Fréchet distance against seconds, a colour for each contender and a line for each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(point["contender"] for point in points))
    for colour, name in enumerate(names):
        for number, seed in enumerate(sorted({point["seed"] for point in points if point["contender"] == name})):
            way = [point for point in points if (point["contender"], point["seed"]) == (name, seed)]
            places, values = [point["seconds"] for point in way], [point["frechet"] for point in way]
            label = "_" if number else name
            axes.plot(places, values, ".-", color=f"C{colour}", alpha=0.8, label=label)
    axes.axhline(asked.target, linestyle=":", color="grey")
    axes.set(xscale="log", yscale="log", xlabel="seconds of training", ylabel="Fréchet distance")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(asked.folder / "time-to-quality.png", dpi=100)


def report(asked: argparse.Namespace) -> None:
    """The lines, the table and the picture of all that is in the folder."""
    files = [file for name in CONTENDERS for file in sorted((asked.folder / "points").glob(f"{name}, seed *.jsonl"))]
    points = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    (asked.folder / "time-to-quality.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    (asked.folder / "time-to-quality.md").write_text(table(points, asked), encoding="utf-8")
    draw_lines(points, asked)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME", help="(all)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--target", type=float, default=25.0, help="Fréchet distance (%(default)s)")
    add("--cap_minutes", type=float, default=6.0, help="of a peer's training (%(default)s)")
    add("--budgets", type=float, nargs="+", default=[0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0], help="minutes, of ours")
    add("--first_seconds", type=float, default=10.0, help="of a peer's training before it is measured (%(default)s)")
    add("--num_images", type=int, default=1000, help="pictures to measure (%(default)s)")
    add("--steps", type=int, default=25, help="network calls for a picture (%(default)s)")
    add("--folder", type=Path, default=Path("runs/time-to-quality"))
    add("--measure_step_time", action="store_true", help="all of it with tiny budgets and networks")
    if parser.parse_args().measure_step_time:
        parser.set_defaults(**REHEARSAL)
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    (asked.folder / "points").mkdir(parents=True, exist_ok=True)
    runs = [(seed, name) for seed in asked.seeds for name in asked.contenders]
    for seed, name in runs:
        file = asked.folder / "points" / f"{name}, seed {seed}.jsonl"
        if file.exists():
            continue
        if len(runs) > 1:
            command = [sys.executable, __file__, *sys.argv[1:], "--contenders", name, "--seeds", str(seed)]
            subprocess.run(command, check=True)
            continue
        measure = measure_ours if isinstance(CONTENDERS[name], Ours) else measure_peer
        lines = []
        for point in measure(name, CONTENDERS[name], seed, asked):
            lines.append(json.dumps(point) + "\n")
            print(lines[-1], end="", flush=True)
        file.write_text("".join(lines))
    report(asked)
    if len(runs) > 1:
        print((asked.folder / "time-to-quality.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
