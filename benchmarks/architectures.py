"""Networks and batch sizes for the digits at equal compute.

    python benchmarks/architectures.py                                    one after the other, on all cores
    python benchmarks/architectures.py --parallel 2                       two at a time, with one thread each
    python benchmarks/architectures.py --tiny                             a rehearsal of two rows

Each row changes configs/digits.yaml and trains for as many operations as that takes in --steps: those of the U-Net's
forward pass, as `diffunet describe` counts them, per training image (the backward pass takes twice as many in all
rows). Interrupted, the same command continues. The table goes to FOLDER/architectures.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from ablations import METRICS, QUIET, metric_values
from records import add_record_flag, append_rows, mean_std
from records import table as markdown

from diffunet.core.settings import settings_from
from diffunet.data.dataset import load_images
from diffunet.models.inspection import describe
from diffunet.runs.config import Config

CONFIG = Path(__file__).parent.parent / "configs" / "digits.yaml"


def levels(*widths: int, blocks: int = 1) -> dict[str, str]:
    return {"unet.levels": json.dumps([{"channels": width, "blocks": blocks} for width in widths])}


ONE_SKIP = {"unet.skips": "level"}
ROWS = {
    "as digits.yaml": {},
    "one skip per level": ONE_SKIP,
    "one skip, average pools": ONE_SKIP | {"unet.resampling": "average"},
    "one skip, no attention": ONE_SKIP | {"unet.middle_attention": "false"},
    "one skip, one block in the middle": ONE_SKIP | {"unet.middle_blocks": "1"},
    "one skip, widths 48, 48": ONE_SKIP | levels(48, 48),
    "one skip, learning rate 6e-3": ONE_SKIP | {"train.learning_rate": "6e-3"},
    "one skip, learning rate 8e-3": ONE_SKIP | {"train.learning_rate": "8e-3"},
    "one skip, batch 32": ONE_SKIP | {"train.batch_size": "32", "train.warmup_steps": "200"},
    "one level": levels(32),
    "one level of 48": levels(48),
    "widths 24, 48": levels(24, 48),
    "widths 32, 64": levels(32, 64),
    "widths 48, 48": levels(48, 48),
    "widths 64, 64": levels(64, 64),
    "blocks 2": levels(32, 32, blocks=2),
    "three levels": levels(32, 32, 32),
    "average pools": {"unet.resampling": "average"},
    "one block in the middle": {"unet.middle_blocks": "1"},
    "no attention": {"unet.middle_attention": "false"},
    "modulation by a shift": {"unet.modulation": "shift"},
    "batch 32": {"train.batch_size": "32", "train.warmup_steps": "200"},
    "batch 128": {"train.batch_size": "128", "train.warmup_steps": "50"},
    "batch 256": {"train.batch_size": "256", "train.warmup_steps": "25"},
    "learning rate 2e-3": {"train.learning_rate": "2e-3"},
    "learning rate 6e-3": {"train.learning_rate": "6e-3"},
    "learning rate 8e-3": {"train.learning_rate": "8e-3"},
    "beta2 0.95": {"train.adam_beta2": "0.95"},
    "beta2 0.999": {"train.adam_beta2": "0.999"},
    "linear decay": {"train.lr_schedule": "linear"},
}


def cost(changes: dict[str, str]) -> tuple[Config, int, int]:
    """Return the resolved config, and the U-Net's parameters and forward operations per image."""
    config = settings_from(CONFIG, Config, changes)
    config = config.resolve(load_images(config.data, {"label": None}, log=lambda text: None))
    network = describe(config.unet, config.data.size)[-1]
    return config, network.parameters, network.flops


def equal_steps(changes: dict[str, str], steps: int) -> int:
    """Return the number of steps with as many operations as `steps` steps of digits.yaml."""
    (baseline, _, flops), (config, _, own) = cost({}), cost(changes)
    return round(steps * baseline.train.batch_size * flops / (config.train.batch_size * own))


def diffunet(args: argparse.Namespace, *words: str | Path) -> None:
    """Run a command of diffunet in a new process."""
    print("diffunet", *words, flush=True)
    command = [sys.executable, "-c", "from diffunet.cli.main import main; main()", *map(str, words)]
    threads = {} if args.parallel == 1 else {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=os.environ | threads, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(ended.stderr)


def train_and_evaluate(args: argparse.Namespace, name: str, steps: int, seed: int) -> None:
    folder = args.folder / f"{name}, seed {seed}"
    record = folder / "record"
    if (record / "evaluation.json").exists():
        return
    changes = {"train.steps": str(steps), **ROWS[name]}
    flags = [word for key, value in changes.items() for word in (f"--{key}", value)]
    run = ["--config", CONFIG, "--train.output", folder, "--train.seed", str(seed)]
    diffunet(args, "train", *run, *QUIET, *flags)
    options = ["--num_images", str(args.num_images), "--seed", str(10_000 * seed), "--batch_size", "250"]
    diffunet(args, "evaluate", folder, *options, "--output", record)


def table(args: argparse.Namespace) -> tuple[str, list[dict]]:
    """Return mean ± standard deviation over the training seeds that exist, and the raw rows."""
    heads = ["", *METRICS, "class accuracy", "memorization"]
    heads += ["images/s", "parameters", "MFLOP", "batch", "steps", "seeds"]
    rows, raw = [], []
    for name, changes in ROWS.items():
        folders = [file.parent.parent for file in args.folder.glob(f"{name}, seed */record/evaluation.json")]
        if not folders:
            continue
        records = [json.loads((folder / "record" / "evaluation.json").read_text()) for folder in folders]
        logs = [(folder / "log.jsonl").read_text().splitlines() for folder in folders]
        config, parameters, flops = cost(changes)
        speed = statistics.median(json.loads(line)["images_per_second"] for log in logs for line in log)
        costs = [f"{speed:,.0f}", f"{parameters:,}", f"{flops / 1e6:.1f}", str(config.train.batch_size)]
        costs += [str(equal_steps(changes, args.steps)), str(len(records))]
        rows.append([name, *map(mean_std, metric_values(records)), *costs])
        about = {"row": name, "images_per_second": speed, "parameters": parameters, "flops": flops}
        raw += [{**about, **record} for record in records]
    return markdown(heads, rows), raw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400, help="of digits.yaml without changes (%(default)s)")
    parser.add_argument("--num_images", type=int, default=1000)
    parser.add_argument("--parallel", type=int, default=1, help="trainings at the same time (%(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("runs/architectures"))
    parser.add_argument("--tiny", action="store_true", help="20 steps and 20 images of two rows, to rehearse")
    add_record_flag(parser)
    args = parser.parse_args()
    if args.tiny:
        args.rows, args.seeds, args.steps, args.num_images = args.rows[:2], args.seeds[:1], 20, 20
    steps = {name: equal_steps(ROWS[name], args.steps) for name in args.rows}
    runs = [(name, steps[name], seed) for seed in args.seeds for name in args.rows]
    with ThreadPoolExecutor(args.parallel) as pool:
        list(pool.map(partial(train_and_evaluate, args), *zip(*runs, strict=True)))
    text, rows = table(args)
    (args.folder / "architectures.md").write_text(text, encoding="utf-8")
    print(text)
    if args.record:
        append_rows("architectures", rows)


if __name__ == "__main__":
    main()
