"""Objectives from the literature that diffunet does not offer, on the built-in digits, beside those that it does.

    python benchmarks/objectives.py --seeds 0 1 2 --folder runs/objectives     half an hour; continues where it stopped
    python benchmarks/objectives.py --tiny --folder runs/rehearsal

Each row is configs/digits.yaml, for as many steps, with another objective:

- `logit-normal`: flow matching at times whose logit is normal (Esser et al. 2024), instead of uniform.
- `contrastive`: flow matching minus WEIGHT times the error of another example's velocity (Stoica et al. 2025). If that
  example is independent, the expected loss is (1 - WEIGHT) times that of flow matching for the target
  (v - WEIGHT E[v']) / (1 - WEIGHT), so its minimizer is off by a known line. `corrected` undoes it: what remains of
  flow matching is noise in the gradient.
- `dispersive`: repels the activations in the middle of the network for the examples of a batch (Wang & He 2025).
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from records import add_record_flag, append_rows, mean_std, table
from torch import Tensor, nn

from diffunet.core.runtime import default_device
from diffunet.core.settings import settings_from
from diffunet.evaluation.features import choose_features
from diffunet.objectives.base import NoisyBatch
from diffunet.objectives.ddpm import DDPM
from diffunet.objectives.flow import TIME_SCALE, Flow
from diffunet.runs.config import Config, config_file
from diffunet.runs.evaluate import evaluate_denoiser, real_images
from diffunet.runs.run import Run
from diffunet.tasks.fit import fit
from diffunet.tasks.generation import generation
from diffunet.tasks.start import begin

WEIGHT = 0.05
"""Of the contrast, as in the paper."""
DISPERSION, TEMPERATURE = 0.5, 0.5
"""Weight and temperature of the dispersion, as in the paper."""


class LogitNormalFlow(Flow):
    """Flow matching with most times in the middle."""

    def time_at(self, u: Tensor) -> Tensor:
        return TIME_SCALE * torch.sigmoid(torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6)))


class ContrastiveFlow(Flow):
    """Flow matching away from the velocity of the next example of the batch."""

    def error(self, model: Callable[..., Tensor], noisy: NoisyBatch, **conditions: Any) -> Tensor:
        prediction = model(noisy.x_t, noisy.t, **conditions).float()
        other = noisy.target.roll(1, 0)
        towards, away = ((prediction - target).square().flatten(1).mean(1) for target in (noisy.target, other))
        return towards - WEIGHT * away


class DispersiveDDPM(DDPM):
    """The error of v, plus the dispersion of the activations in the middle, for a whole batch."""

    def error(self, model: Callable[..., Tensor], noisy: NoisyBatch, **conditions: Any) -> Tensor:
        found = []
        assert isinstance(model, nn.Module)
        hook = model.unet.levels[-1].inner.register_forward_hook(lambda module, inputs, output: found.append(output))
        try:
            error = super().error(model, noisy, **conditions)
        finally:
            hook.remove()
        if not torch.is_grad_enabled():
            return error
        distances = torch.pdist(found[0].flatten(1).float()).square() / found[0][0].numel()
        return error + DISPERSION * torch.logsumexp(-distances / TEMPERATURE, 0)


class Corrected(nn.Module):
    """The velocity of flow matching, from a network that was trained by `ContrastiveFlow`."""

    def __init__(self, denoiser: nn.Module, mean: Tensor):
        """mean: of the images, (C, H, W)."""
        super().__init__()
        self.denoiser, self.unet, self.embeddings = denoiser, denoiser.unet, denoiser.embeddings
        self.register_buffer("mean", mean)

    def forward(self, x_t: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        return (1 - WEIGHT) * self.denoiser(x_t, t, **conditions) - WEIGHT * self.mean


FLOW = ["objective=flow", "objective.condition_dropout=0.05"]
ROWS = {
    "v, as digits.yaml": ([], None),
    "dispersive": ([], DispersiveDDPM),
    "flow": (FLOW, None),
    "flow, logit-normal": (FLOW, LogitNormalFlow),
    "flow, contrastive": (FLOW, ContrastiveFlow),
    "flow, contrastive, corrected": (FLOW, ContrastiveFlow),
}
"""Changes of the configuration, and the objective, if it is not that of the configuration."""


def measure(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate a row; those of `corrected` are the weights of another."""
    changes, objective = ROWS[name]
    run = Run(args.folder / f"{name.removesuffix(', corrected')}, seed {seed}")
    settings = dict(word.split("=", 1) for word in changes)
    quiet = {"output": str(run.folder), "seed": seed, "preview_every": 10**8, "checkpoint_every": 10**8, "snapshots": 0}
    config = settings_from(config_file("configs/digits.yaml"), Config, settings).replace(
        train=quiet | ({"steps": 20} if args.tiny else {})
    )
    if not (run.folder / "model" / "diffusion_pytorch_model.safetensors").exists():
        task = generation(config)
        if objective:
            built = task.objective
            task = replace(task, objective=objective(built.config, built.dropout))
        fit(task, begin(config, overwrite=True))
    denoiser, real = run.denoiser(), real_images(run.config(), run.config().data)
    if name.endswith("corrected"):
        denoiser = Corrected(denoiser, (real.images[list(range(len(real)))].float() / 127.5 - 1).mean(0)).eval()
    features = choose_features(None, None, real, default_device())
    sampling = config.sample.model_copy(update={"num_images": args.samples, "seed": 1000 * seed, "batch_size": 250})
    metrics = evaluate_denoiser(run, denoiser, sampling, real, features).record["metrics"]
    return {"row": name, "seed": seed, "scores": {key: score["value"] for key, score in metrics.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--folder", type=Path, default=Path("runs/objectives"))
    parser.add_argument("--tiny", action="store_true")
    add_record_flag(parser)
    args = parser.parse_args()
    if args.tiny:
        args.seeds, args.samples = args.seeds[:1], 40
    args.folder.mkdir(parents=True, exist_ok=True)
    file = args.folder / "rows.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done, new = {(row["row"], row["seed"]) for row in rows}, []
    for seed in args.seeds:
        for name in args.rows:
            if (name, seed) not in done:
                new.append(measure(name, seed, args))
                with open(file, "a", encoding="utf-8") as opened:
                    opened.write(json.dumps(new[-1]) + "\n")
    rows += new
    heads = list(rows[0]["scores"])
    lines = []
    for name in dict.fromkeys(row["row"] for row in rows):
        scores = [row["scores"] for row in rows if row["row"] == name]
        lines.append([name, *(mean_std([each[key] for each in scores]) for key in heads), str(len(scores))])
    print(table(["", *heads, "seeds"], lines))
    if args.record:
        append_rows("objectives", new)


if __name__ == "__main__":
    main()
