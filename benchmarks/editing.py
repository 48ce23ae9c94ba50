"""Hidden parts of held-out images filled by runs: Restore against RePaint, the method as published and diffusers' own.

    python benchmarks/editing.py runs/digits0 runs/digits1 runs/digits2 --folder runs/editing
    python benchmarks/editing.py runs/color --number 8 --samples 4 --hidden centre --folder runs/editing-color
    python benchmarks/editing.py runs/digits0 --tiny --folder runs/rehearsal                         a rehearsal

No condition is given. Of the hidden values, in [-1, 1], and of the samples of each image:

- error: root mean square of the mean of the samples against the original;
- coverage: how often the original lies between the least and the greatest sample, (k - 1) / (k + 1) of k if they are
  right: 7/9 of 8;
- named: share of samples that an SVM names as the original, for the digits;
- calls: forward passes and .87 for each backward pass to the input, which is what it took on two CPU cores.

Errors are standard errors over the images, of their means over the training seeds. Differences are paired by image with
RePaint. FOLDER gets rows.jsonl, with which the same command continues where it stopped, editing.md, and a strip of what
it measured of each run.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from records import add_record_flag, append_rows, machine
from records import table as markdown
from torch import Tensor

from diffunet.conditions.base import NONE
from diffunet.core.rng import fixed_subset
from diffunet.core.runtime import prepare_for
from diffunet.data.dataset import load_images
from diffunet.data.degradation import Degradation
from diffunet.data.pixels import denormalize, normalize
from diffunet.evaluation.features import choose_features
from diffunet.objectives.base import START
from diffunet.objectives.solvers import METHODS
from diffunet.runs.edit import MASKS
from diffunet.runs.figures import save_comparison
from diffunet.runs.run import Run
from diffunet.sampling.editing import Restore
from diffunet.sampling.generate import SampleBatch
from diffunet.sampling.observed import NOISE

BACKWARD = 0.87
"""Cost of a backward pass to the input, in forward passes."""
VISIBLE = 0.02
"""Standard deviation of samples below which a hidden value is as good as known, and not counted in the coverage."""
ROUNDING = 0.01
"""Half of a digit's level, by which the original may lie outside of the samples."""
TINY = {"number": 4, "samples": 2, "restore": ["3,2,1,0.02"]}
SHOWN = 12
BASELINE = "RePaint, 20 levels × 10"


class Filling:
    """The images of a run, each repeated, with a part hidden, and the run's network without conditions."""

    def __init__(self, run: Run, images: Tensor, hidden: Tensor, samples: int, seed: int):
        self.run, self.samples, self.seed, self.hidden = run, samples, seed, hidden
        self.objective = run.config().build_objective()
        self.images = images
        self.known = (images * (1 - hidden)).repeat_interleave(samples, 0)
        self.generator = torch.Generator().manual_seed(seed)
        self.calls = 0.0
        self.denoiser = run.denoiser()
        prepare_for(self.denoiser.unet, run.config().sample.runtime)

    def clean(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return self.objective.clean(self.denoiser(x, t), x, t)

    def noise(self) -> Tensor:
        """Return standard normal noise of all samples."""
        return torch.randn(self.known.shape, generator=self.generator)


def repaint(filling: Filling, levels: int = 20, times: int = 10) -> Tensor:
    """Return samples by RePaint (Lugmayr et al. 2022, algorithm 1): the known part is noised and pasted at each level.

    Jumps of one level, on the levels of our solvers, with the ancestral step.
    """
    objective = filling.objective
    ts = objective.falling_times(levels, START)
    alphas, sigmas = (x.double().tolist() for x in objective.levels(ts))
    x = filling.noise()
    for index, t in enumerate(ts):
        alpha, sigma = alphas[index], sigmas[index]
        if index == len(ts) - 1:
            pasted = filling.hidden * x + (1 - filling.hidden) * (alpha * filling.known + sigma * filling.noise())
            x = filling.clean(pasted, t).clamp(-1, 1)
            break
        next_alpha, next_sigma = alphas[index + 1], sigmas[index + 1]
        ratio = alpha / next_alpha
        added = (sigma**2 - (ratio * next_sigma) ** 2) ** 0.5
        drawn = next_sigma / sigma * added  # standard deviation of the posterior, Ho et al. 2020, equation 7
        for again in range(times):
            x = filling.hidden * x + (1 - filling.hidden) * (alpha * filling.known + sigma * filling.noise())
            clean = filling.clean(x, t).clamp(-1, 1)
            noise = (x - alpha * clean) / sigma
            x = next_alpha * clean + (next_sigma**2 - drawn**2) ** 0.5 * noise + drawn * filling.noise()
            if again < times - 1:
                x = ratio * x + added * filling.noise()
    return filling.hidden * x + (1 - filling.hidden) * filling.known


def diffusers_repaint(filling: Filling, eta: float, steps: int = 20, jump: int = 1, times: int = 10) -> Tensor:
    """Return samples by diffusers' RePaintScheduler, driven as its RePaintPipeline does.

    It knows noise predictions alone, so ours are converted. The pipeline's own eta is 0, the paper's is 1.
    """
    from diffusers import RePaintScheduler

    config: Any = filling.objective.config
    names = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
    scheduler = RePaintScheduler(config.num_train_timesteps, beta_schedule=names[config.beta_schedule], eta=eta)
    scheduler.set_timesteps(steps, jump, times)
    x, mask = filling.noise(), 1 - filling.hidden
    last = int(scheduler.timesteps[0]) + 1
    for t in scheduler.timesteps:
        if t < last:
            alpha, sigma = filling.objective.levels(t)
            noise = (x - alpha * filling.clean(x, t)) / sigma
            x = scheduler.step(noise, int(t), x, filling.known, mask, filling.generator).prev_sample
        else:
            x = scheduler.undo_step(x, last, filling.generator)
        last = int(t)
    return x.clamp(-1, 1)


@dataclass(frozen=True)
class Restoring:
    """`Restore` with these settings."""

    steps: int = int(Restore.defaults["steps"])
    rounds: int = Restore.rounds
    iterations: int = Restore.iterations
    noise: float = NOISE
    sampler: str = str(Restore.defaults["sampler"])

    @property
    def name(self) -> str:
        sampler = "" if self.sampler == Restoring.sampler else f", {self.sampler}"
        noise = f", noise {self.noise:g}" if self.iterations else ""
        return f"Restore {self.steps} × {self.rounds}, {self.iterations} iterations{noise}{sampler}"

    def __call__(self, filling: Filling) -> Tensor:
        run, config = filling.run, filling.run.config()
        images = filling.images
        degradation = Degradation((MASKS,), tuple(images.shape[1:]), config.data.bit_depth or 8)
        measurements = torch.cat([images * (1 - filling.hidden), filling.hidden.expand(len(images), -1, -1, -1)], 1)
        edit = Restore(degradation, measurements, filling.samples, self.rounds, self.iterations, self.noise)
        update = {"num_images": len(images) * filling.samples, "batch_size": 256, "seed": filling.seed}
        update |= {"sampler": self.sampler, "steps": self.steps, "guidance_scale": 1.0}
        update["conditions"] = dict.fromkeys(config.conditions, NONE)
        settings = config.sample.model_copy(update=update)
        samples = SampleBatch.concatenate(run.sampler(settings, filling.denoiser).sample(settings, edit=edit))
        backward = BACKWARD * (self.iterations + 1) if self.iterations else 0
        filling.calls = edit.calls(self.steps) * (1 + backward)
        return normalize(samples.pixels, config.data.bit_depth or 8)


FILLINGS: dict[str, Callable[[Filling], Tensor]] = {
    BASELINE: repaint,
    "diffusers' RePaint, 20 × 10, eta 0": lambda filling: diffusers_repaint(filling, 0.0),
    "diffusers' RePaint, 20 × 10, eta 1": lambda filling: diffusers_repaint(filling, 1.0),
}
RESTORINGS = [Restoring(), Restoring(steps=12, rounds=1), Restoring(rounds=10, iterations=0)]


def hidden_parts(height: int, width: int) -> dict[str, Tensor]:
    """Return the masks (1, H, W) by name, 1 is hidden."""
    lower, center = torch.zeros(2, 1, height, width).unbind()
    lower[:, height // 2 :] = 1
    center[:, height // 4 : -(height // 4), width // 4 : -(width // 4)] = 1
    return {"lower half": lower, "center": center}


def statistics(samples: Tensor, images: Tensor, hidden: Tensor, named: Tensor | None) -> dict[str, list[float]]:
    """Return the figures of each image: samples (N, k, C, H, W) and images (N, C, H, W) in [-1, 1]; named: (N, k)."""
    where = hidden.expand_as(images[0]).bool()
    drawn, truth = samples[..., where], images[:, where]  # (N, k, P), (N, P)
    seen = drawn.std(1) > VISIBLE
    inside = (truth >= drawn.amin(1) - ROUNDING) & (truth <= drawn.amax(1) + ROUNDING) & seen
    figures = {"squared_error": (drawn.mean(1) - truth).square().mean(1)}
    figures |= {"inside": inside.sum(1) / where.sum(), "seen": seen.sum(1) / where.sum()}
    if named is not None:
        figures["named"] = named.float().mean(1)
    return {name: [round(float(value), 5) for value in values] for name, values in figures.items()}


def ratio(numerator: Tensor, denominator: Tensor) -> tuple[float, float]:
    """Return the ratio of two means over images, and its standard error by the delta method."""
    value = numerator.mean() / denominator.mean()
    return float(value), float((numerator - value * denominator).std() / denominator.mean() / len(numerator) ** 0.5)


def mean(values: Tensor) -> tuple[float, float]:
    """Return the mean and its standard error."""
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


def cell(value: float, error: float) -> str:
    return f"{value:.3f} ± {error:.3f}"


def table(rows: list[dict]) -> str:
    """Return the figures of each method for each hidden part, pooled over training seeds and alone, in Markdown."""
    lines = []
    for hidden in dict.fromkeys(row["hidden"] for row in rows):
        groups: dict[str, dict[str, dict]] = {}
        for row in rows:
            if row["hidden"] == hidden:
                groups.setdefault(row["method"], {})[row["run"]] = row
        for method, found in groups.items():
            pooled = {name: pool(found, name) for name in found[next(iter(found))]["figures"]}
            squared, squared_error = mean(pooled["squared_error"])
            cells = [f"{next(iter(found.values()))['calls']:.0f}"]
            cells += [
                cell(squared**0.5, squared_error / 2 / squared**0.5),
                cell(*ratio(pooled["inside"], pooled["seen"])),
            ]
            cells.append(cell(*mean(pooled["named"])) if "named" in pooled else "")
            both = {run: row for run, row in found.items() if run in groups.get(BASELINE, {})}
            for name in ("squared_error", "named"):
                paired = method != BASELINE and both and name in pooled
                base = {run: groups[BASELINE][run] for run in both} if paired else {}
                cells.append(cell(*mean(pool(both, name) - pool(base, name))) if paired else "")
            lines.append([hidden, method, *cells, str(len(found))])
    heads = ["hidden", "method", "calls", "error", "coverage", "named", "squared error less RePaint's", "named less"]
    return markdown([*heads, "runs"], lines)


def pool(found: dict[str, dict], name: str) -> Tensor:
    """Return a figure of each image, (N,), its mean over runs."""
    return torch.tensor([row["figures"][name] for row in found.values()], dtype=torch.float64).mean(0)


def measured(
    run: Run, fillings: Mapping[str, Callable[[Filling], Tensor]], args: argparse.Namespace, done: set[tuple]
) -> Iterator[dict]:
    """Yield a row for each hidden part and method that is not done; write their strip."""
    config, strip = run.config(), []
    depth, name = config.data.bit_depth or 8, run.folder.name
    dataset = load_images(config.data, config.inputs, run.folder / "model", log=lambda text: None)
    features = choose_features(None, None, dataset, torch.device("cpu"))
    _, held_out = dataset.split_held_out()
    batch = held_out.__getitems__(sorted(fixed_subset(len(held_out), args.number).tolist()))
    images = normalize(batch["image"], depth)
    for part in args.hidden:
        hidden = hidden_parts(*images.shape[2:])[part]
        rows = []
        for method, fill in fillings.items():
            if (name, part, method) in done:
                continue
            filling, started = Filling(run, images, hidden, args.samples, args.seed), time.monotonic()
            with torch.no_grad():
                samples = fill(filling).unflatten(0, (len(images), args.samples))
            named = None
            if features.class_names:
                guessed = features.predict(denormalize(samples.flatten(0, 1), depth))
                named = guessed.unflatten(0, samples.shape[:2]) == batch["label"][:, None]
            rows += [
                (method.split(",")[0].replace("×", "x"), denormalize(x, depth), depth)
                for x in samples[:SHOWN, :4].unbind(1)
            ]
            yield {
                "run": name,
                "training_seed": config.train.seed,
                "hidden": part,
                "method": method,
                "samples": args.samples,
                "calls": round(filling.calls, 1),
                "seconds": round(time.monotonic() - started, 1),
                "figures": statistics(samples, images, hidden, named),
            }
        if rows:
            known = denormalize((images * (1 - hidden))[:SHOWN], depth)
            strip += [("known", known, depth), *rows, ("original", denormalize(images[:SHOWN], depth), depth)]
    if strip:
        save_comparison(args.folder / f"{name}.png", strip)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders of one data set")
    parser.add_argument("--samples", type=int, default=8, help="of each image (%(default)s)")
    parser.add_argument("--number", type=int, default=1000, help="held-out images, at most (%(default)s)")
    parser.add_argument("--hidden", nargs="+", default=["lower half", "center"], help="(%(default)s)")
    parser.add_argument("--methods", nargs="*", help="methods by name, of those in the table; default: all")
    parser.add_argument(
        "--restore", nargs="*", default=[], metavar="STEPS,ROUNDS,ITERATIONS,NOISE[,SAMPLER]", help="further settings"
    )
    parser.add_argument("--seed", type=int, default=0, help="of sampling (%(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("runs/editing"))
    parser.add_argument("--tiny", action="store_true", help="few images and samples, to rehearse")
    add_record_flag(parser)
    args = parser.parse_args()
    if args.tiny:
        vars(args).update(TINY)
    further = []
    for words in (text.split(",") for text in args.restore):
        numbers = [kind(word) for kind, word in zip((int, int, int, float), words, strict=False)]
        further.append(Restoring(*numbers, *words[4:]))
        assert further[-1].sampler in METHODS
    fillings = FILLINGS | {each.name: each for each in [*RESTORINGS, *further]}
    chosen = [each.name for each in further] if args.methods is None and args.restore else list(fillings)
    chosen = chosen if args.methods is None else [*args.methods, *(each.name for each in further)]
    args.folder.mkdir(parents=True, exist_ok=True)
    file = args.folder / "rows.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(row["run"], row["hidden"], row["method"]) for row in rows}
    for folder in args.runs:
        for row in measured(Run(folder), {name: fillings[name] for name in chosen}, args, done):
            print(table([row]), flush=True)
            rows.append(row)
            with open(file, "a", encoding="utf-8") as lines:
                lines.write(json.dumps(row) + "\n")
    text = f"{machine()}.\n\n{table(rows)}"
    (args.folder / "editing.md").write_text(text, encoding="utf-8")
    print(text)
    if args.record:
        append_rows("editing", rows)


if __name__ == "__main__":
    main()
