"""Where a solver should start, by image size: the exact law of its samples for a network without any error.

    python benchmarks/starts.py digits cifar10/test.parquet emoji/google:64

For Gaussian data with the mean and covariance of real images (PATH or PATH:PIXELS, digits, or cifar10 at 32 pixels), the
best network is known in closed form, and linear. A deterministic solver then maps noise to samples by a number for each
principal component, so the Fréchet distance of its samples to the data is exact, without a training or a sample. What is
left is the solver's: too few calls, or a start at which the image is not yet lost in the noise. Estimates are not clipped.
"""

import argparse
from pathlib import Path

import torch
from records import add_record_flag, append_rows
from records import table as markdown
from torch import Tensor

from diffunet.data.dataset import DataConfig, load_images
from diffunet.data.pixels import normalize
from diffunet.objectives.base import Objective
from diffunet.objectives.ddpm import DDPM, DDPMConfig
from diffunet.objectives.edm import EDM, EDMConfig
from diffunet.objectives.flow import Flow, FlowConfig
from diffunet.objectives.solvers import METHODS, Solver
from diffunet.sampling.loop import sample

OBJECTIVES: dict[str, Objective] = {
    "ddpm, cosine": DDPM(DDPMConfig(prediction_type="v_prediction", beta_schedule="cosine")),
    "ddpm, linear": DDPM(DDPMConfig()),
    "flow": Flow(FlowConfig()),
    "edm": EDM(EDMConfig()),
}
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


def law(objective: Objective, times: Tensor, mean: Tensor, deviations: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the samples of dpm++ in each component, from its images of 0 and 1."""
    probes = torch.stack([torch.zeros_like(mean), torch.ones_like(mean)])[..., None, None]
    solver = Solver(objective, times, METHODS["dpm++"], limit=None)
    # The loop passes predictions on in fp32: the rest of the solver is held to fp64 by the probes.
    zero, one = sample(exact(objective, mean, deviations), solver, probes)[..., 0, 0]
    return zero, (one - zero).abs()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="digits, or images as PATH or PATH:PIXELS")
    parser.add_argument("--objectives", nargs="+", default=["ddpm, cosine"], choices=OBJECTIVES, help="(%(default)s)")
    parser.add_argument("--steps", type=int, nargs="+", default=[6, 8, 10, 15, 25], help="network calls (%(default)s)")
    parser.add_argument("--starts", type=float, nargs="+", default=[-3, -4, -4.7, -5.4, -6], help="log(alpha / sigma)")
    parser.add_argument("--limit", type=int, default=LIMIT, help="images, at most (%(default)s)")
    add_record_flag(parser)
    args = parser.parse_args()
    rows, lines = [], []
    for data in args.data:
        mean, deviations = spectrum(data, args.limit)
        total = float((deviations**2).sum())
        for name in args.objectives:
            objective = OBJECTIVES[name]
            for start in args.starts:
                cells = []
                for steps in args.steps:
                    found = law(objective, objective.falling_times(steps, start), mean, deviations)
                    off, spread = (found[0] - mean).square().sum(), (found[1] - deviations).square().sum()
                    row = {"data": Path(data).name, "objective": name, "start": start, "steps": steps}
                    row |= {"frechet_share": float(off + spread) / total, "largest": float(found[1][0] / deviations[0])}
                    rows.append(row)
                    cells.append(f"{100 * row['frechet_share']:.2f} ({row['largest']:.3f})")
                lines.append([Path(data).name, f"{float(deviations[0]):.1f}", name, f"{start:g}", *cells])
    heads = ["data", "largest deviation", "objective", "start", *(f"{steps} calls" for steps in args.steps)]
    print(markdown(heads, lines))
    if args.record:
        append_rows("starts", rows)


if __name__ == "__main__":
    main()
