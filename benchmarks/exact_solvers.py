"""Where a solver should start, by image size: the exact law of its samples for a network without any error.

    python benchmarks/exact_solvers.py digits cifar10/test.parquet emoji/google:64
    python benchmarks/exact_solvers.py digits --objectives "ddpm, cosine" "ddpm, linear" flow edm --starts -4 --before

For Gaussian data with the mean and covariance of real images (digits, PATH at 32 pixels, or PATH:PIXELS), the best
network is known in closed form, and linear. A deterministic solver then maps noise to samples by a number for each
principal component, so the Fréchet distance of its samples to the data is exact, without a training or a sample. What
is left is the solver's: too few calls, or a start at which the image is not yet lost in the noise. Estimates are not
clipped. A cell is that distance in percent of the data's variance, and in brackets the spread along the first component
against the true one. `--before` adds the schedulers of diffusers that dpm++ was until 893e2e6.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from records import add_record_flag, append_rows
from records import table as markdown
from torch import Tensor

from diffunet.data.config import DataConfig
from diffunet.data.dataset import load_images
from diffunet.data.pixels import normalize
from diffunet.objectives.base import Objective
from diffunet.objectives.ddpm import DDPM, DDPMConfig
from diffunet.objectives.edm import EDM, EDMConfig
from diffunet.objectives.flow import Flow, FlowConfig
from diffunet.objectives.schedulers import from_diffusers
from diffunet.objectives.solvers import METHODS, Solver
from diffunet.sampling.loop import sample

OBJECTIVES: dict[str, Objective] = {
    "ddpm, cosine": DDPM(DDPMConfig(prediction_type="v_prediction", beta_schedule="cosine")),
    "ddpm, linear": DDPM(DDPMConfig()),
    "flow": Flow(FlowConfig()),
    "edm": EDM(EDMConfig()),
}
MULTISTEP, FINAL = "DPMSolverMultistepScheduler", {"final_sigmas_type": "zero"}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "num_train_timesteps": 1000, "flow_shift": 0.4}
LIMIT = 2000
"""Images, at most, whose covariance is taken."""


def spectrum(path: str, limit: int) -> tuple[Tensor, Tensor]:
    """Return the mean in the principal components, and their standard deviations, (K,) each, of images in [-1, 1]."""
    path, _, side = path.partition(":")
    data = DataConfig(path=path) if path == "digits" else DataConfig(path=path, resolution=int(side or 32), channels=3)
    dataset = load_images(data, {}, log=lambda text: None)
    index = torch.linspace(0, len(dataset) - 1, min(limit, len(dataset))).long().tolist()
    images = normalize(dataset.__getitems__(index)["image"], 8).flatten(1).double()
    mean = images.mean(0)
    _, deviations, components = torch.linalg.svd((images - mean) / len(images) ** 0.5, full_matrices=False)
    return components @ mean, deviations


def exact(objective: Objective, mean: Tensor, deviations: Tensor):
    """Return the model of x_t (B, K, 1, 1) with the least error for independent N(mean, deviations²)."""
    mean, variance = (x[None, :, None, None] for x in (mean, deviations**2))

    def model(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (level.double() for level in objective.levels(t))
        clean = mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * mean)
        return objective.prediction(clean, x, t)

    return model


def from_start(objective: Objective, steps: int, start: float) -> Solver:
    """Return dpm++ from this log(alpha / sigma)."""
    return Solver(objective, objective.falling_times(steps, start), METHODS["dpm++"], limit=None)


def before(objective: Objective, steps: int) -> Any:
    """Return what dpm++ was until 893e2e6, without its clipping."""
    match objective.config:
        case DDPMConfig() as config:
            scheduler = config.scheduler(MULTISTEP, **FINAL, use_lu_lambdas=True)
        case EDMConfig() as config:
            levels = {key: getattr(config, key) for key in ("sigma_data", "sigma_min", "sigma_max")}
            scheduler = from_diffusers(f"EDM{MULTISTEP}")(**levels, **FINAL, sigma_schedule="exponential")
        case _:
            scheduler = from_diffusers(MULTISTEP)(**FLOW, **FINAL)
    scheduler.set_timesteps(steps)
    return scheduler


def law(objective: Objective, solver: Any, mean: Tensor, deviations: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the samples in each component, from the solver's images of 0 and 1."""
    probes = torch.stack([torch.zeros_like(mean), torch.ones_like(mean)])[..., None, None]
    zero, one = sample(exact(objective, mean, deviations), solver, probes)[..., 0, 0]
    return zero, (one - zero).abs()


def table(rows: list[dict]) -> str:
    """Return the distances and spreads in Markdown."""
    lines = []
    for row in rows:
        pairs = zip(row["frechet_percent"].values(), row["spread"].values(), strict=True)
        cells = [f"{distance:.2f} ({spread:.3f})" for distance, spread in pairs]
        lines.append([row["data"], f"{row['largest_deviation']:.1f}", row["objective"], str(row["start"]), *cells])
    steps = rows[0]["spread"]
    return markdown(["data", "largest deviation", "objective", "start", *(f"{n} calls" for n in steps)], lines)


def plot(rows: list[dict], path: Path) -> None:
    """Plot distance against calls, a panel for each objective, a line for each start."""
    from matplotlib.figure import Figure

    objectives = list(dict.fromkeys(row["objective"] for row in rows))
    figure = Figure(figsize=(3.2 * len(objectives), 3.6), layout="constrained")
    panels = figure.subplots(1, len(objectives), sharey=True, squeeze=False)[0]
    for axes, objective in zip(panels, objectives, strict=True):
        for index, row in enumerate(row for row in rows if row["objective"] == objective):
            points = row["frechet_percent"]
            style = {"color": "k", "linestyle": "--"} if row["start"] == "before" else {"color": f"C{index}"}
            axes.plot(list(points), list(points.values()), marker=".", label=str(row["start"]), **style)
        axes.set(title=objective, xscale="log", yscale="log", xlabel="network calls")
        axes.set_xticks(ticks := list(rows[0]["spread"]), map(str, ticks), minor=False)
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("Fréchet distance, % of the variance")
    panels[-1].legend(title="start", fontsize="small")
    figure.savefig(path, dpi=800 / (3.2 * len(objectives)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="digits, or images as PATH or PATH:PIXELS")
    parser.add_argument("--objectives", nargs="+", default=["ddpm, cosine"], choices=OBJECTIVES, help="(%(default)s)")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[4, 6, 8, 10, 15, 25], help="network calls (%(default)s)"
    )
    parser.add_argument("--starts", type=float, nargs="+", default=[-3, -4, -4.7, -5.4, -6], help="log(alpha / sigma)")
    parser.add_argument("--limit", type=int, default=LIMIT, help="images, at most (%(default)s)")
    parser.add_argument("--before", action="store_true", help="add the former schedulers of diffusers")
    parser.add_argument("--figure", type=Path, help="plot the last of the data to this file")
    add_record_flag(parser)
    args = parser.parse_args()
    rows = []
    for data in args.data:
        mean, deviations = spectrum(data, args.limit)
        total = float((deviations**2).sum())
        for name in args.objectives:
            objective = OBJECTIVES[name]
            for start in [*(["before"] if args.before else []), *args.starts]:
                row = {"data": Path(data).name, "largest_deviation": round(float(deviations[0]), 3), "objective": name}
                row |= {"start": start, "frechet_percent": {}, "spread": {}}
                for steps in args.steps:
                    solver = before(objective, steps) if start == "before" else from_start(objective, steps, start)
                    found = law(objective, solver, mean, deviations)
                    off = (found[0] - mean).square().sum() + (found[1] - deviations).square().sum()
                    row["frechet_percent"][steps] = round(100 * float(off) / total, 3)
                    row["spread"][steps] = round(float(found[1][0] / deviations[0]), 4)
                rows.append(row)
    print(table(rows))
    if args.figure:
        plot([row for row in rows if row["data"] == Path(args.data[-1]).name], args.figure)
    if args.record:
        append_rows("exact-solvers", rows)


if __name__ == "__main__":
    main()
