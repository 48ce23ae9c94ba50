"""What is worth having: each lever alone on the built-in digits, over several training seeds.

    python benchmarks/levers.py                      # about an hour on two CPU cores; goes on where it stopped
    python benchmarks/levers.py --seeds 0            # a third of it; several at once share the folder

Trains configs/digits.yaml with one change at a time, draws pictures and measures them with the commands
that everybody has, printed as they are run. The table goes to FOLDER/levers.md.
"""

import argparse
import json
import statistics
from pathlib import Path

from diffunet.cli import main as commands

PLAIN = ["--guidance_scale", "1.08", "--guide", "null"]
"""How to draw where nothing else is said: classifier-free guidance, little of it."""

FIRST = "v_prediction, as digits.yaml"

TRAINED = {
    FIRST: [],
    "epsilon": ["--diffusion.prediction_type", "epsilon"],
    "min-SNR, gamma 5": ["--diffusion.min_snr_gamma", "5"],
    "EDM": ["--objective", "edm", "--edm.sigma_data", "0.75", "--edm.condition_dropout", "0.05"],
    "flow matching": ["--objective", "flow", "--flow.condition_dropout", "0.05"],
    "told augmentation 0.12": ["--data.augmentation", "0.12"],
}
"""A training for each."""

DRAWN = {
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
"""Other pictures from the first of the trainings."""

LENGTHS = ["0.02", "0.03", "0.05", "0.07", "0.1", "0.15", "0.2"]
"""Of the average of the first training's weights."""

COLUMNS = {
    "Fréchet": "frechet_distance",
    "kernel": "kernel_distance",
    "precision": "precision",
    "recall": "recall",
    "coverage": "coverage",
}


def run(*words: str) -> None:
    """A command of diffunet, as typed."""
    print("diffunet", *words, flush=True)
    try:
        commands.main(list(words))
    except SystemExit as end:
        if end.code:
            raise


def measure(folder: Path, lever: str, seed: int, asked: argparse.Namespace, *flags: str, of: str) -> None:
    output = folder / "records" / f"{lever}, seed {seed}".replace("/", ":")
    if not (output / "evaluation.json").exists():
        how = ["--num_images", str(asked.num_images), "--seed", str(1000 * seed), "--output", str(output), *PLAIN]
        run("evaluate", str(folder / f"{of}, seed {seed}"), *how, "--batch_size", "250", *flags)


def table(folder: Path) -> str:
    """Mean ± standard deviation over the training seeds that are there."""
    lines = [f"| {' | '.join(['', *COLUMNS, 'named as asked', 'too near', 'seeds'])} |", "| --- |" + " --- |" * 8]
    for lever in [*TRAINED, *DRAWN]:
        found = sorted((folder / "records").glob(f"{lever.replace('/', ':')}, seed */evaluation.json"))
        records = [json.loads(file.read_text()) for file in found]
        if not records:
            continue
        columns = [[record["metrics"][name]["value"] for record in records] for name in COLUMNS.values()]
        columns.append([record["class_accuracy"]["value"] for record in records])
        columns.append([record["memorization"]["features"]["value"] for record in records])
        lines.append(f"| {' | '.join([lever, *map(shown, columns), str(len(records))])} |")
    averages = [json.loads(file.read_text()) for file in folder.glob(f"{FIRST}, seed */model/average.json")]
    for length in LENGTHS if averages else []:
        values = [average["frechet_distances"][str(float(length))] for average in averages]
        lines.append(f"| average of length {length} | {shown(values)} | | | | | | | {len(values)} |")
    return "\n".join(lines) + "\n"


def shown(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3g} ± {spread:.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num_images", type=int, default=1000)
    parser.add_argument("--folder", type=Path, default=Path("runs/levers"))
    asked = parser.parse_args()
    folder = asked.folder
    for seed in asked.seeds:
        for lever, flags in TRAINED.items():
            training = folder / f"{lever}, seed {seed}"
            if not (training / "model" / "diffusion_pytorch_model.safetensors").exists():
                quiet = ["--train.preview_every", "1000000", "--train.checkpoint_every", "1000000", "--overwrite"]
                run("train", "--train.output", str(training), "--train.seed", str(seed), *quiet, *flags)
            measure(folder, lever, seed, asked, of=lever)
        for lever, flags in DRAWN.items():
            measure(folder, lever, seed, asked, *flags, of=FIRST)
        training = folder / f"{FIRST}, seed {seed}"
        if not (training / "model" / "average.json").exists():
            how = ["--num_images", str(asked.num_images), "--seed", str(1000 * seed), "--batch_size", "250"]
            run("ema", str(training), *LENGTHS, *how, *PLAIN)
        (folder / "levers.md").write_text(table(folder), encoding="utf-8")
    print(table(folder))


if __name__ == "__main__":
    main()
