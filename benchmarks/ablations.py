"""The effect of single changes on the built-in digits, over several training seeds.

    python benchmarks/ablations.py                   # about an hour on two CPU cores; continues where it stopped
    python benchmarks/ablations.py --seeds 0         # a third of it; several processes can share the folder
    python benchmarks/ablations.py --tiny            # a rehearsal

Trains configs/digits.yaml with one change at a time, samples and evaluates with the commands of diffunet, printed as
they run. The table goes to FOLDER/ablations.md.
"""

import argparse
import json
from pathlib import Path

from records import add_record_flag, append_rows, mean_std, run_command
from records import table as markdown

GUIDED = ["--guidance_scale", "1.08", "--guide", "null"]
"""The sampling of rows that do not set their own: a little classifier-free guidance."""

BASELINE = "v_prediction, as digits.yaml"

TRAINED = {
    BASELINE: [],
    "epsilon": ["--objective.prediction_type", "epsilon"],
    "min-SNR, gamma 5": ["--objective.min_snr_gamma", "5"],
    "EDM": ["--objective", "edm", "--objective.sigma_data", "0.75", "--objective.condition_dropout", "0.05"],
    "flow matching": ["--objective", "flow", "--objective.condition_dropout", "0.05"],
    "augmentation 0.12": ["--data.augmentation", "0.12"],
    "Muon": ["--train.optimizer", "muon"],
    "batches of 32": ["--train.batch_size", "32", "--train.steps", "2000"],
    "batches of 128": ["--train.batch_size", "128", "--train.steps", "500"],
    "trapezoid": ["--train.lr_schedule", "trapezoid"],
    "Muon, trapezoid": ["--train.optimizer", "muon", "--train.lr_schedule", "trapezoid"],
}
"""Flags of a training for each row."""

SAMPLED = {
    "guidance 1 (none)": ["--guidance_scale", "1"],
    "guidance 1.3": ["--guidance_scale", "1.3"],
    "guidance 2": ["--guidance_scale", "2"],
    "guidance 1.3 in 20-80 % of the noise": ["--guidance_scale", "1.3", "--guidance_interval", "[0.2, 0.8]"],
    "guidance 2 in 20-80 % of the noise": ["--guidance_scale", "2", "--guidance_interval", "[0.2, 0.8]"],
    "autoguidance 1.3, guide after 1/8": ["--guidance_scale", "1.3", "--guide", "0.125"],
    "autoguidance 1.3, guide after 1/4": ["--guidance_scale", "1.3", "--guide", "0.25"],
    "autoguidance 2, guide after 1/8": ["--guidance_scale", "2", "--guide", "0.125"],
    "autoguidance 2, guide after 1/4": ["--guidance_scale", "2", "--guide", "0.25"],
}
"""Flags of sampling from the baseline's weights for each row."""

LENGTHS = ["0.02", "0.03", "0.05", "0.07", "0.1", "0.15", "0.2"]
"""EMA lengths of the baseline's weights."""

METRICS = {
    "Fréchet distance": "frechet_distance",
    "kernel distance": "kernel_distance",
    "precision": "precision",
    "recall": "recall",
    "coverage": "coverage",
}
"""Columns of the tables, and their keys in evaluation.json."""
QUIET = ["--train.preview_every", "1000000", "--train.checkpoint_every", "1000000", "--overwrite"]
"""Neither previews nor checkpoints before the end."""


def evaluate(args: argparse.Namespace, row: str, seed: int, *flags: str, run: str) -> None:
    output = args.folder / "records" / f"{row}, seed {seed}".replace("/", ":")
    if not (output / "evaluation.json").exists():
        options = ["--num_images", str(args.num_images), "--seed", str(1000 * seed), "--output", str(output), *GUIDED]
        run_command(["evaluate", str(args.folder / f"{run}, seed {seed}"), *options, "--batch_size", "250", *flags])


def metric_values(records: list[dict]) -> list[list[float]]:
    """Return the values of each metric, of the class accuracy and of the memorization."""
    columns = [[record["metrics"][key]["value"] for record in records] for key in METRICS.values()]
    columns.append([record["class_accuracy"]["value"] for record in records if "class_accuracy" in record])
    columns.append([record["memorization"]["features"]["value"] for record in records])
    return columns


def table(folder: Path) -> tuple[str, list[dict]]:
    """Return mean ± standard deviation over the training seeds that exist, and the raw rows."""
    rows, raw = [], []
    for row in [*TRAINED, *SAMPLED]:
        files = sorted((folder / "records").glob(f"{row.replace('/', ':')}, seed */evaluation.json"))
        if records := [json.loads(file.read_text()) for file in files]:
            rows.append([row, *map(mean_std, metric_values(records)), str(len(records))])
            raw += [{"row": row, **record} for record in records]
    averages = [json.loads(file.read_text()) for file in folder.glob(f"{BASELINE}, seed */model/ema.json")]
    for length in LENGTHS:
        found = [average["frechet_distances"].get(str(float(length))) for average in averages]
        if values := [value for value in found if value is not None]:
            rows.append([f"EMA length {length}", mean_std(values), *[""] * 6, str(len(values))])
    return markdown(["", *METRICS, "class accuracy", "memorization", "seeds"], rows), raw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=TRAINED, metavar="ROW", help="trainings alone (all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num_images", type=int, default=1000)
    parser.add_argument("--folder", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--tiny", action="store_true", help="two rows of each kind, 20 steps, 20 images: to rehearse")
    add_record_flag(parser)
    args = parser.parse_args()
    trained, sampled, lengths, short = TRAINED, SAMPLED, LENGTHS, []
    if args.rows:
        trained, sampled, lengths = {row: TRAINED[row] for row in args.rows}, {}, []
    if args.tiny:
        args.seeds, args.num_images, short = args.seeds[:1], 20, ["--train.steps", "20", "--train.snapshots", "8"]
        trained, sampled, lengths = dict([*TRAINED.items()][:2]), dict([*SAMPLED.items()][:2]), LENGTHS[-2:]
    folder = args.folder
    for seed in args.seeds:
        for row, flags in trained.items():
            training = folder / f"{row}, seed {seed}"
            if not (training / "model" / "diffusion_pytorch_model.safetensors").exists():
                output = ["--train.output", str(training), "--train.seed", str(seed)]
                run_command(["train", *output, *QUIET, *flags, *short])
            evaluate(args, row, seed, run=row)
        for row, flags in sampled.items():
            evaluate(args, row, seed, *flags, run=BASELINE)
        training = folder / f"{BASELINE}, seed {seed}"
        if lengths and not (training / "model" / "ema.json").exists():
            options = ["--num_images", str(args.num_images), "--seed", str(1000 * seed), "--batch_size", "250"]
            run_command(["ema", str(training), *lengths, *options, *GUIDED])
        (folder / "ablations.md").write_text(table(folder)[0], encoding="utf-8")
    text, rows = table(folder)
    print(text)
    if args.record:
        append_rows("ablations", rows)


if __name__ == "__main__":
    main()
