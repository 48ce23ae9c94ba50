"""Quality against training time on CIFAR-10: diffunet and two baselines on the same machine, by one command.

    python benchmarks/cifar10/run.py DATA --minutes 20

DATA is a folder with CIFAR-10's parquet files, train-*.parquet and test-*.parquet. The Fréchet distance is computed in
the features of a classifier that is trained first; it is not FID (README.md beside this file). Interrupted, the same
command continues; with --piece_minutes 8 it stops by itself after about that many minutes. --rehearse runs everything
with tiny networks on 600 of the images, in a few minutes of a CPU.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet

HERE = Path(__file__).parent
BASELINES = {"diffusers": "diffusers_recipe.py", "denoising-diffusion-pytorch": "denoising_diffusion.py"}
REHEARSAL = {
    "classifier": ["--blocks", "[1, 1, 1, 1]", "--train.steps", "12", "--train.batch_size", "32"],
    "diffunet": ["--unet.levels", "[{channels: 32, blocks: 1}, {channels: 32, blocks: 1}]"],
    "baselines": ["--tiny", "--sampling_steps", "4"],
}


def first_images(data: Path, folder: Path) -> Path:
    """Return a folder with the first images of each parquet file."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in data.glob("*.parquet"):
        pyarrow.parquet.write_table(pyarrow.parquet.read_table(file).slice(0, 600), folder / file.name)
    return folder


def run(*words: str | Path) -> None:
    """Run a command in a new process; exit if it fails."""
    print(*words, flush=True)
    ended = subprocess.run([sys.executable, *map(str, words)], check=False).returncode
    if ended:
        sys.exit(ended)


def diffunet(*words: str | Path) -> None:
    run("-c", "from diffunet.cli.main import main; main()", *words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--num_images", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, default=Path("runs/cifar10-benchmark"))
    parser.add_argument("--piece_minutes", type=float, default=float("inf"))
    parser.add_argument("--rehearse", action="store_true")
    args = parser.parse_args()
    changes = REHEARSAL if args.rehearse else {part: [] for part in REHEARSAL}
    folder, images = args.folder, str(args.num_images)
    data = first_images(args.data, folder / "data") if args.rehearse else args.data
    end = time.monotonic() + 60 * args.piece_minutes
    classifier = folder / "classifier"
    baselines = folder / "baselines"

    def left() -> float:
        """Return the minutes left of this piece; exit if there are none."""
        minutes = (end - time.monotonic()) / 60
        if minutes < 0.1:
            print("stopped after this piece; the same command continues")
            sys.exit(0)
        return minutes

    if not (folder / "diffunet" / "quality-vs-time.md").exists():
        output = ["--train.output", classifier, "--data.path", data, "--test_split", "test"]
        diffunet("classifier", *output, *changes["classifier"])
        points = ["--points", "0.25", "0.5", "0.75", "1", "--num_images", images, "--features", classifier]
        budget = ["--minutes", str(args.minutes), "--stop_after", f"{left():.2f}"]
        where = ["--config", HERE / "config.yaml", "--folder", folder / "diffunet", "--data.path", data]
        run(HERE.parent / "quality_vs_time.py", *where, *budget, *points, *changes["diffunet"])
        if not (folder / "diffunet" / "quality-vs-time.md").exists():
            return
    for name, script in BASELINES.items():
        images_folder, record = baselines / name, baselines / f"{name}-record"
        train_file = min(data.glob("train-*.parquet"))
        while not (images_folder / "baseline.json").exists():
            options = ["--minutes", str(args.minutes), "--num_images", images, *changes["baselines"]]
            pieces = [] if args.piece_minutes == float("inf") else ["--piece_minutes", f"{left():.2f}"]
            run(HERE.parent / "baselines" / script, "--data", train_file, "--output", images_folder, *options, *pieces)
        if not (record / "evaluation.json").exists():
            real = ["--data.path", data, "--features", classifier, "--output", record]
            diffunet("evaluate", images_folder, *real, "--num_images", images)


if __name__ == "__main__":
    main()
