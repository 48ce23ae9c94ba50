"""What diffunet and other trainers reach on images of a folder in the same minutes of a processor.

    python benchmarks/same_minutes.py DATA --minutes 60 --seeds 0 1 2 --folder runs/same-minutes
    python benchmarks/same_minutes.py DATA --rows diffunet "diffusers, rate 1e-3" --folder runs/same-minutes
    python benchmarks/same_minutes.py digits --tiny --folder runs/rehearsal

Each row trains with one thread until its process has used the minutes, so that several can run side by side. The rows:

- diffunet is configs/folder.yaml without classes, which chooses its network by the time, or with the network of a
  width; `former default` is the network and the recipe that this file had before, in the proportions of DDPM.
- `as shipped` is the network and the recipe of a package (benchmarks/baselines).
- The rows below are its recipe with a network of diffunet's size, and one value changed; `best` combines the
  values expected to help, and `diffunet's recipe` is the package's network with all values of configs/folder.yaml.

All see the images unmirrored. Everything is sampled by DPM-Solver++ 2M in 25 calls, from the better of the weights and
their EMA by 100 samples, and compared with the data by --features. Interrupted, the same command continues.
FOLDER/rows.jsonl has a line for each row, and FOLDER/ROW.png a grid.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from efficientnet import EFFICIENTNET, efficientnet_features
from records import add_record_flag, append_rows, machine, table
from sizes import seconds_per_step
from torch import Tensor

from diffunet.core.runtime import default_device, precision
from diffunet.core.settings import settings_from
from diffunet.data.config import DataConfig
from diffunet.data.dataset import ImageDataset, load_images
from diffunet.data.pixels import denormalize
from diffunet.evaluation.features import FeatureExtractor, choose_features
from diffunet.evaluation.report import evaluate_images
from diffunet.models.sizes import SIZES, Size
from diffunet.objectives.base import CLIP_TO_DATA_RANGE
from diffunet.runs.config import Config, config_file
from diffunet.runs.figures import save_grid
from diffunet.runs.run import Run
from diffunet.sampling.loop import sample
from diffunet.tasks.fit import fit
from diffunet.tasks.generation import generation
from diffunet.tasks.start import begin

BASELINES = Path(__file__).parent / "baselines"
CALLS, BATCH, FEW = 25, 100, 100
"""Network calls for an image, images sampled at once, and samples by which weights are chosen."""
OWN = ["train.runtime.compile=false", "data.random_flip=false", f"sample.steps={CALLS}"]
"""What all rows have in common."""
FORMER = [
    *("unet.dropout=0.1", "train.learning_rate=1e-4", "train.batch_size=64", "train.warmup_steps=500"),
    *("train.ema_decay=0.9995", "train.ema_share=null", "train.lr_schedule=constant", "train.adam_beta2=0.999"),
]


@dataclass(frozen=True)
class Own:
    """A training by configs/folder.yaml, with changes."""

    changes: list[str] = field(default_factory=list)
    size: Size | None = None
    """Of the network; None: by the time."""


@dataclass(frozen=True)
class Peer:
    """A training by a module in baselines/, with other values for its `Recipe`."""

    module: str
    network: str = "compact"
    batch_size: int | None = None
    values: dict[str, Any] = field(default_factory=dict)


def diffusers(**values: Any) -> Peer:
    return Peer("diffusers_recipe", values=values)


SCHEDULED = {"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"}
ROWS = {
    "diffunet": Own(["conditions={}"]),
    **{f"diffunet, {size.name}": Own(["conditions={}"], size) for size in SIZES[:3]},
    "diffunet, with classes": Own(),
    "diffunet, former default": Own(["conditions={}", *FORMER], SIZES[-1]),
    "diffusers, as shipped": Peer("diffusers_recipe", "as_shipped"),
    "diffusers, smaller": diffusers(),
    "diffusers, rate 1e-3": diffusers(learning_rate=1e-3),
    "diffusers, rate 2e-3": diffusers(learning_rate=2e-3),
    "diffusers, rate 1e-3, v and cosine": diffusers(learning_rate=1e-3, **SCHEDULED),
    "diffusers, rate 1e-3, batches of 64": Peer("diffusers_recipe", batch_size=64, values={"learning_rate": 1e-3}),
    "diffusers, best": diffusers(learning_rate=2e-3, ema=(0.995, 0.75), **SCHEDULED),
    "diffusers, diffunet's recipe": Peer(
        "diffusers_recipe",
        batch_size=32,
        values={"learning_rate": 0.05 / 32, "betas": (0.9, 0.99), "warm_up": 100, "ema": (0.995, 0.75), **SCHEDULED},
    ),
    "denoising-diffusion-pytorch, as shipped": Peer("denoising_diffusion", "as_shipped"),
    "denoising-diffusion-pytorch, smaller": Peer("denoising_diffusion"),
    "denoising-diffusion-pytorch, rate 1e-3": Peer("denoising_diffusion", values={"learning_rate": 1e-3}),
}


def train_own(row: Own, minutes: float, seed: int, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Return what is known of a training by diffunet, with functions from a number to samples, by the weights' name."""
    changes = dict(word.split("=", 1) for word in [*OWN, *row.changes])
    config = settings_from(config_file("configs/folder.yaml"), Config, changes).replace(
        data={"path": args.data, "resolution": args.resolution, "channels": args.channels},
        train={"output": str(folder), "minutes": minutes, "seed": seed, "preview_every": 10**8},
    )
    if row.size:
        config = config.model_copy(update={"unet": row.size.of(config.unet, args.resolution)})
    chosen = generation(config)
    per_step = seconds_per_step(chosen.config)
    steps = 4 if args.tiny else max(1, round(60 * minutes / per_step))
    config = chosen.config.replace(train={"steps": steps, "minutes": None})
    started = time.process_time()
    fit(generation(config), begin(config, overwrite=True))
    spent = time.process_time() - started
    run = Run(folder)

    def sampled(number: int) -> Tensor:
        return run.sample(num_images=number, batch_size=BATCH, seed=10_000 * seed).pixels

    known = {"steps": steps, "images": config.train.images, "processor_minutes": spent / 60, "notes": chosen.notes}
    return known | {"parameters": sum(p.numel() for p in run.denoiser().parameters()), "samples": {"EMA": sampled}}


def train_peer(row: Peer, minutes: float, seed: int, data: ImageDataset, args: argparse.Namespace) -> dict[str, Any]:
    """Return what is known of a training by a package, with functions from a number to samples, as `train_own`."""
    from accelerate import Accelerator

    module, common = import_module(row.module), import_module("common")
    torch.manual_seed(seed)
    accelerator = Accelerator(cpu=True, mixed_precision=precision("auto", default_device()))
    images = data.images[list(range(len(data)))]
    batches = common.Batches(images, row.batch_size or module.BATCH_SIZE, flip=False)
    network = module.build(args.resolution, images.shape[1], "tiny" if args.tiny else row.network)
    started, seconds = time.process_time(), 60 * minutes

    def used() -> float:
        return time.process_time() - started

    recipe = module.Recipe(
        network, batches, accelerator, last_step=lambda step: step * seconds / max(used(), 1e-3), **row.values
    )
    steps = seen = 0
    while used() < seconds and not (args.tiny and steps == 4):
        seen += recipe.step()[0]
        steps += 1
    spent = used()
    samples = {
        weights: partial(peer_samples, predict, recipe.noise_scheduler, images.shape[1:], seed)
        for weights, predict in recipe.predictors().items()
    }
    known = {"steps": steps, "images": seen, "processor_minutes": spent / 60}
    return known | {"parameters": sum(p.numel() for p in network.parameters()), "samples": samples}


def peer_samples(predict: Callable, trained: DDPMScheduler, shape: torch.Size, seed: int, number: int) -> Tensor:
    """Return integers (number, C, H, W), sampled by DPM-Solver++."""
    known = {"trained_betas": trained.betas.tolist(), "prediction_type": trained.config.prediction_type}
    spacing = {"timestep_spacing": "trailing", "final_sigmas_type": "zero"}
    noise = torch.randn(number, *shape, generator=torch.Generator().manual_seed(10_000 * seed))
    parts = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, precision("auto", default_device()) == "bf16"):
        for part in noise.split(BATCH):
            scheduler = DPMSolverMultistepScheduler(**known, **spacing, **CLIP_TO_DATA_RANGE)
            scheduler.set_timesteps(CALLS)
            parts.append(sample(lambda x, t: predict(x, t).float(), scheduler, part))
    return denormalize(torch.cat(parts), bit_depth=8)


def measure(
    name: str,
    minutes: float,
    seed: int,
    trained: ImageDataset,
    real: ImageDataset,
    features: FeatureExtractor,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Return the record of a row, with the scores of the better weights."""
    folder = args.folder / f"{name.replace(',', '').replace(' ', '-')}-{minutes:g}-{seed}"
    row = ROWS[name]
    if isinstance(row, Own):
        known = train_own(row, minutes, seed, folder, args)
    else:
        known = train_peer(row, minutes, seed, trained, args)
    samplers = known.pop("samples")

    def scores_of(pixels: Tensor) -> dict[str, float]:
        metrics = evaluate_images(pixels, {}, real, features)["metrics"]
        return {key: score["value"] for key, score in metrics.items()}

    few = {weights: scores_of(sampled(FEW)) for weights, sampled in samplers.items() if len(samplers) > 1}
    best = min(few, key=lambda weights: few[weights]["frechet_distance"], default="EMA")
    pixels = samplers[best](args.samples)
    save_grid(pixels[:64], 8, folder.with_suffix(".png"), 16)
    about = {"data": Path(args.data).name, "resolution": args.resolution, "row": name, "minutes": minutes, "seed": seed}
    return about | known | {"features": features.name, "weights": best, "scores": scores_of(pixels), "of_few": few}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("data")
    add("--folder", type=Path, required=True)
    add("--minutes", type=float, nargs="+", default=[60])
    add("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    add("--seeds", type=int, nargs="+", default=[0])
    add("--resolution", type=int, default=32)
    add("--channels", type=int, default=3)
    add("--references", help="the split with which samples are compared; default: that of the training")
    add("--features", help=f"as of diffunet evaluate, or {EFFICIENTNET}")
    add("--samples", type=int, default=1000)
    add("--tiny", action="store_true")
    add_record_flag(parser)
    args = parser.parse_args()
    if args.tiny:
        args.data, args.resolution, args.channels, args.minutes, args.samples = "digits", 8, 1, [1], 20
    torch.set_num_threads(1)
    sys.path.insert(0, str(BASELINES))
    args.folder.mkdir(parents=True, exist_ok=True)
    file = args.folder / "rows.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(row["row"], row["minutes"], row["seed"]) for row in rows}
    data = DataConfig(path=args.data, resolution=args.resolution, channels=args.channels, bit_depth=8)
    trained, real = (
        load_images(data.model_copy(update={"split": split or data.split})) for split in (None, args.references)
    )
    imagenet = args.features == EFFICIENTNET
    features = efficientnet_features() if imagenet else choose_features(args.features, None, real, default_device())
    new = []
    for minutes, seed, name in product(args.minutes, args.seeds, args.rows):
        if (name, minutes, seed) not in done:
            new.append(measure(name, minutes, seed, trained, real, features, args))
            with open(file, "a", encoding="utf-8") as opened:
                opened.write(json.dumps(new[-1]) + "\n")
    heads = ["row", "minutes", "seed", "parameters", "steps", *(rows + new)[0]["scores"]]
    lines = [
        [row["row"], f"{row['minutes']:g}", str(row["seed"]), f"{row['parameters']:,}", f"{row['steps']:,}"]
        + [f"{value:.4g}" for value in row["scores"].values()]
        for row in sorted(rows + new, key=lambda row: (row["minutes"], row["scores"]["frechet_distance"]))
    ]
    print(f"\n{machine()}, one thread.\n\n{table(heads, lines)}")
    if args.record:
        append_rows("same-minutes", new)


if __name__ == "__main__":
    main()
