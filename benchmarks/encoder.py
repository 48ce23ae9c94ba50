"""A pretrained way down against a random one: TernausNet on few images, equal steps, Dice and IoU at several of them.

    python benchmarks/encoder.py --encoder vgg11 --folder runs/encoder                       torchvision downloads it
    python benchmarks/encoder.py --encoder vgg16.safetensors --network vgg16 --folder runs/encoder --data PAIRS
    python benchmarks/encoder.py --tiny --folder runs/rehearsal                              no encoder, a rehearsal

PAIRS is a folder of images and targets, or a built-in set. All trainings see the same patches of the same cases, at a
constant learning rate; the held-out fold is scored as `diffunet evaluate` does. Further flags are those of train.py, as
--data.fold_by order. Interrupted, the same command continues. FOLDER gets rows.jsonl and encoder.md.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

from records import add_record_flag, append_rows, machine, mean_std, run_command
from records import table as markdown

from diffunet.models.presets import PRESETS
from diffunet.runs.evaluate_prediction import evaluate_predictor
from diffunet.runs.run import Run

TERNAUS11 = PRESETS["ternaus11"]["levels"]
VGG16 = 2, 2, 3, 3, 3, 1
"""Convolutions of each level: those of VGG16, and the middle."""
NETWORKS = {
    "vgg11": TERNAUS11,
    "vgg16": [level | {"blocks": blocks} for level, blocks in zip(TERNAUS11, VGG16, strict=True)],
    "tiny": [{"channels": 8, "blocks": 1}, {"channels": 16, "blocks": 1, "up": []}],
}
"""The levels of each network, by the encoder that fits it."""
QUIET = ["--train.preview_every", "1000000", "--train.checkpoint_every", "1000000"]
CONSTANT = ["--train.lr_schedule", "constant", "--train.warmup_steps", "10"]
"""A schedule that depends on no length, so that a longer training continues a shorter one."""


def measure(start: str, rate: float, seed: int, args: argparse.Namespace, flags: list[str]) -> list[dict]:
    """Train with a random or the pretrained way down, and return the scores after each number of steps."""
    run = Run(args.folder / f"{start}-{rate:g}-{seed}")
    words = ["train", "--config", "configs/ternaus.yaml", "--train.output", str(run.folder), "--overwrite"]
    words += ["--unet.levels", json.dumps(NETWORKS[args.network]), "--data.path", args.data, "--train.seed", str(seed)]
    words += ["--train.learning_rate", str(rate), *CONSTANT, *QUIET, *flags]
    words += ["--finetune.encoder", args.encoder] if start == "pretrained" else []
    rows = []
    for steps in args.steps:
        run_command([*words, "--train.steps", str(steps)])
        words = ["train", "--resume", str(run.folder)]
        scores = evaluate_predictor(run).record["scores"]
        rows.append({"start": start, "learning_rate": rate, "seed": seed, "steps": steps, "scores": chosen(scores)})
    return rows


def chosen(scores: dict) -> dict[str, float]:
    """Return Dice and IoU of each class but the first, which is the background."""
    names = [name for kind in ("dice", "iou") for name in list(filter(lambda x: x.startswith(f"{kind}/"), scores))[1:]]
    return {name: scores[name]["value"] for name in names}


def table(rows: list[dict]) -> str:
    """Return the mean over seeds ± standard deviation by start, learning rate and steps, in Markdown."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["start"], row["learning_rate"], row["steps"]].append(row["scores"])
    names = list(rows[0]["scores"])
    lines = [
        [start, f"{rate:g}", str(steps), *(mean_std([each[name] for each in found]) for name in names), str(len(found))]
        for (start, rate, steps), found in groups.items()
    ]
    return markdown(["way down", "learning rate", "steps", *names, "seeds"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", metavar="FILE", help="a file of convolutions, or vgg11 or vgg16")
    parser.add_argument("--network", choices=list(NETWORKS), default="vgg11", help="that fits it (%(default)s)")
    parser.add_argument("--data", metavar="PAIRS", default="cells", help="a folder or a built-in set (%(default)s)")
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 100, 200])
    parser.add_argument("--learning_rates", type=float, nargs="+", default=[1e-4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="two and three steps of a tiny network")
    add_record_flag(parser)
    args, flags = parser.parse_known_args()
    if args.tiny:
        args.network, args.steps, args.seeds = "tiny", [2, 3], [0]
        flags = ["--train.batch_size", "1", *flags]
    file = args.folder / "rows.jsonl"
    args.folder.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(row["start"], row["learning_rate"], row["seed"]) for row in rows}
    for seed in args.seeds:
        for rate in args.learning_rates:
            for start in ("random", "pretrained") if args.encoder else ("random",):
                if (start, rate, seed) not in done:
                    rows += (found := measure(start, rate, seed, args, flags))
                    with open(file, "a", encoding="utf-8") as opened:
                        opened.writelines(json.dumps(row) + "\n" for row in found)
    text = f"{machine()}, the network of {args.network} on {args.data}.\n\n{table(rows)}"
    (args.folder / "encoder.md").write_text(text, encoding="utf-8")
    print(text)
    if args.record:
        append_rows("encoder", rows)


if __name__ == "__main__":
    main()
