"""Which network and batch for the digits, all with the same amount of computing.

    python benchmarks/candidates.py                                       one after the other, all cores for each
    python benchmarks/candidates.py --parallel 2                          two at once, a thread for each
    python benchmarks/candidates.py --candidates "as digits.yaml" "one level" --seeds 0 --steps 20 --num_images 100

configs/digits.yaml with some changes at a time, each trained for as many operations as that one takes in --steps:
those of the U-Net's forward pass as `diffunet describe` counts them, for each picture seen (backward is twice that for
all of them). Interrupted, the same command goes on. The table goes to FOLDER/candidates.md.
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

from ablations import COLUMNS, shown

from diffunet.runs.config import Config
from diffunet.data.dataset import load_images
from diffunet.core.settings import settings_from
from diffunet.models.inspection import describe
from diffunet.core.progress import no_progress

CONFIG = Path(__file__).parent.parent / "configs" / "digits.yaml"


def levels(*widths: int, blocks: int = 1) -> dict[str, str]:
    return {"unet.levels": json.dumps([{"channels": width, "blocks": blocks} for width in widths])}


ONE_SKIP = {"unet.skips": "level"}
CANDIDATES = {
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
    """The settled config, the U-Net's parameters, and its forward operations for a picture."""
    config = settings_from(CONFIG, Config, changes)
    config = config.settled(load_images(config.data, labelled=True, say=no_progress))
    network = describe(config.unet, config.data.size)[-1]
    return config, network.parameters, network.flops


def equal_steps(changes: dict[str, str], steps: int) -> int:
    """Steps that take as many operations as so many of digits.yaml."""
    (first, _, flops), (config, _, own) = cost({}), cost(changes)
    return round(steps * first.train.batch_size * flops / (config.train.batch_size * own))


def diffunet(asked: argparse.Namespace, *words: str | Path) -> None:
    """A command in a process of its own."""
    print("diffunet", *words, flush=True)
    command = [sys.executable, "-c", "from diffunet.cli.main import main; main()", *map(str, words)]
    alone = {} if asked.parallel == 1 else {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=os.environ | alone, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(ended.stderr)


def train_and_measure(asked: argparse.Namespace, name: str, steps: int, seed: int) -> None:
    folder = asked.folder / f"{name}, seed {seed}"
    record = folder / "record"
    if (record / "evaluation.json").exists():
        return
    changes = {"train.steps": str(steps), **CANDIDATES[name]}
    quiet = ["--train.preview_every", "1000000", "--train.checkpoint_every", "1000000", "--overwrite"]
    flags = [word for key, value in changes.items() for word in (f"--{key}", value)]
    where = ["--config", CONFIG, "--train.output", folder, "--train.seed", str(seed)]
    diffunet(asked, "train", *where, *quiet, *flags)
    how = ["--num_images", str(asked.num_images), "--seed", str(10_000 * seed), "--batch_size", "250"]
    diffunet(asked, "evaluate", folder, *how, "--output", record)


def table(asked: argparse.Namespace) -> str:
    """Mean ± standard deviation over the training seeds that are there."""
    heads = ["", *COLUMNS, "named as asked", "images/s", "parameters", "MFLOP", "batch", "steps", "seeds"]
    rows = [f"| {' | '.join(heads)} |", "| --- |" + " --- |" * (len(heads) - 1)]
    for name, changes in CANDIDATES.items():
        folders = [file.parent.parent for file in asked.folder.glob(f"{name}, seed */record/evaluation.json")]
        if not folders:
            continue
        records = [json.loads((folder / "record" / "evaluation.json").read_text()) for folder in folders]
        logs = [(folder / "log.jsonl").read_text().splitlines() for folder in folders]
        config, parameters, flops = cost(changes)
        columns = [[record["metrics"][column]["value"] for record in records] for column in COLUMNS.values()]
        columns.append([record["class_accuracy"]["value"] for record in records])
        speed = statistics.median(json.loads(line)["images_per_second"] for log in logs for line in log)
        costs = [f"{speed:,.0f}", f"{parameters:,}", f"{flops / 1e6:.1f}", str(config.train.batch_size)]
        costs += [str(equal_steps(changes, asked.steps)), str(len(records))]
        rows.append(f"| {' | '.join([name, *map(shown, columns), *costs])} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=list(CANDIDATES), metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400, help="of digits.yaml as it is (%(default)s)")
    parser.add_argument("--num_images", type=int, default=1000)
    parser.add_argument("--parallel", type=int, default=1, help="trainings at once (%(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("runs/candidates"))
    asked = parser.parse_args()
    steps = {name: equal_steps(CANDIDATES[name], asked.steps) for name in asked.candidates}  # counted by one thread
    runs = [(name, steps[name], seed) for seed in asked.seeds for name in asked.candidates]
    with ThreadPoolExecutor(asked.parallel) as pool:
        list(pool.map(partial(train_and_measure, asked), *zip(*runs, strict=True)))
    (asked.folder / "candidates.md").write_text(table(asked), encoding="utf-8")
    print(table(asked))


if __name__ == "__main__":
    main()
