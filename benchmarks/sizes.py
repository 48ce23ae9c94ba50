"""Which network is best in a given time: members of a family of sizes, and variants, in the same processor minutes.

    python benchmarks/sizes.py DATA --minutes 10 30 --folder runs/sizes            DATA: what --data.path takes
    python benchmarks/sizes.py DATA --minutes 10 --rows 32 "32 two blocks; train.batch_size=64" --folder runs/sizes
    python benchmarks/sizes.py digits --tiny --folder runs/rehearsal

Each row trains with one thread for as many steps as fit into the minutes of the processor, by a measurement of its own
before, so that several rows can run side by side; its samples are compared with the data by --features. Interrupted,
the same command continues. FOLDER/rows.jsonl has a line for each row.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from efficientnet import EFFICIENTNET, efficientnet_features
from records import add_record_flag, append_rows, machine, table

from diffunet.core.runtime import default_device
from diffunet.core.settings import settings_from
from diffunet.evaluation.features import choose_features
from diffunet.models.config import UNetConfig
from diffunet.models.inspection import describe
from diffunet.models.sizes import compact
from diffunet.runs.config import Config
from diffunet.runs.evaluate import evaluate_denoiser, real_images
from diffunet.runs.run import Run
from diffunet.tasks.fit import fit, make_trainer
from diffunet.tasks.generation import generation
from diffunet.tasks.start import begin

WIDTHS = (8, 16, 24, 32, 48, 64, 96)
MEASURED = 6
"""Steps, after two, of which the processor time is measured."""


def network(side: int, width: int) -> UNetConfig:
    """Return the compact network of a width for images whose shorter side has `side` pixels."""
    return UNetConfig(**compact(width, side))


def variants(side: int) -> dict[str, UNetConfig]:
    """Return the networks by the name of their row: a width, or a width and what is different."""
    networks = {}
    for width in WIDTHS:
        base = network(side, width)
        two = tuple(level.model_copy(update={"blocks": 2}) for level in base.levels)
        without = tuple(level.model_copy(update={"attention": False}) for level in base.levels)
        changes = {
            "": {},
            " skips of blocks": {"skips": "block"},
            " convolutions resample": {"resampling": "conv"},
            " two blocks": {"levels": two},
            " no attention": {"levels": without, "middle_attention": False},
            " one level less": {"levels": base.levels[:-1]},
            " unshuffle 2": network(-(-side // 2), width).model_dump(include={"levels"}) | {"unshuffle": 2},
        }
        for name, change in changes.items():
            networks[f"{width}{name}"] = UNetConfig.model_validate(base.model_dump() | change)
    return networks


def config_for(row: str, output: Path, seed: int, args: argparse.Namespace) -> Config:
    """Return the configuration of a row; its number of steps is to be set."""
    name, *words = row.split("; ")
    network, changes = variants(args.resolution)[name], dict(word.split("=", 1) for word in words)
    settings = {
        "unet": network.model_dump(exclude={"in_channels", "out_channels"}),
        "conditions": {"label": {"type": "label"}} if args.label else {},
        "objective": {"type": "ddpm", "prediction_type": "v_prediction", "beta_schedule": "cosine"},
        "data": {"path": args.data, "resolution": args.resolution, "channels": args.channels, "bit_depth": 8},
        "train": {
            "output": str(output),
            "batch_size": 32,
            "learning_rate": "auto",
            "lr_schedule": "cosine",
            "warmup_steps": 100,
            "adam_beta2": 0.99,
            "ema_decay": 0.995,
            "log_every": 50,
            "checkpoint_every": 10**8,
            "preview_every": 10**8,
            "snapshots": 0,
            "seed": seed,
            "runtime": {"compile": False},
        },
        "sample": {"num_images": 100},
    }
    return settings_from(Config.model_validate(settings), Config, changes)


def seconds_per_step(config: Config) -> float:
    """Return the processor seconds of a step."""
    task = generation(config.replace(train={"steps": 10**8}))
    trainer = make_trainer(task, task.config.train)
    batches = trainer._batches()
    for step in range(2 + MEASURED):
        if step == 2:
            started = time.process_time()
        trainer._train_step(next(batches))
        trainer.step += 1
    return (time.process_time() - started) / MEASURED


def measure(name: str, minutes: float, seed: int, args: argparse.Namespace) -> dict:
    """Train a row, and return what is known of it."""
    run = Run(args.folder / f"{name.translate(str.maketrans(' ;', '--'))}-{minutes:g}-{seed}")
    config = config_for(name, run.folder, seed, args)
    per_step = seconds_per_step(config)
    steps = 4 if args.tiny else max(1, round(60 * minutes / per_step))
    task = generation(config.replace(train={"steps": steps, "warmup_steps": min(100, steps // 10)}))
    own = task.config
    real = real_images(own, own.data.model_copy(update={"split": args.references or own.data.split}))
    imagenet = args.features == EFFICIENTNET
    features = efficientnet_features() if imagenet else choose_features(args.features, None, real, default_device())
    started = time.process_time()
    fit(task, begin(own, overwrite=True))
    spent = (time.process_time() - started) / 60
    sampling = own.sample.model_copy(update={"num_images": 20 if args.tiny else args.samples, "batch_size": 100})
    record = evaluate_denoiser(run, run.denoiser(), sampling, real, features).record
    whole = describe(own.unet, own.sampled_size)[-1]
    about = {"data": Path(args.data).name, "resolution": args.resolution, "row": name, "minutes": minutes, "seed": seed}
    about |= {"parameters": whole.parameters, "gflop": whole.flops / 1e9, "steps": steps, "images": own.train.images}
    about |= {"learning_rate": own.train.learning_rate}
    about |= {"seconds_per_step": per_step, "processor_minutes": spent, "features": features.name}
    return about | {"scores": {key: value["value"] for key, value in record["metrics"].items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--minutes", type=float, nargs="+", default=[10])
    parser.add_argument(
        "--rows",
        nargs="+",
        default=list(map(str, WIDTHS)),
        help="widths or variants, with changes of the configuration if any",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--label", action="store_true", help="tell the network the class")
    parser.add_argument("--features", help=f"as of diffunet evaluate, or {EFFICIENTNET}")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--references", help="the split with which samples are compared; default: that of the training")
    parser.add_argument("--tiny", action="store_true")
    add_record_flag(parser)
    args = parser.parse_args()
    if args.tiny:
        args.data, args.resolution, args.channels, args.minutes = "digits", 8, 1, [1]
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    file = args.folder / "rows.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(row["row"], row["minutes"], row["seed"]) for row in rows}
    new = []
    for minutes in args.minutes:
        for name in args.rows[:2] if args.tiny else args.rows:
            for seed in args.seeds:
                if (name, minutes, seed) not in done:
                    new.append(measure(name, minutes, seed, args))
                    with open(file, "a", encoding="utf-8") as opened:
                        opened.write(json.dumps(new[-1]) + "\n")
    heads = ["row", "minutes", "parameters", "GFLOP", "steps", *(rows + new)[0]["scores"]]
    lines = [
        [row["row"], f"{row['minutes']:g}", f"{row['parameters']:,}", f"{row['gflop']:.3g}", f"{row['steps']:,}"]
        + [f"{value:.4g}" for value in row["scores"].values()]
        for row in sorted(rows + new, key=lambda row: (row["minutes"], row["gflop"]))
    ]
    print(f"\n{machine()}, one thread.\n\n{table(heads, lines)}")
    if args.record:
        append_rows("sizes", new)


if __name__ == "__main__":
    main()
