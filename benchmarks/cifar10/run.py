"""Quality against minutes on CIFAR-10, ours and two peers' on the same machine, by one command.

    python benchmarks/cifar10/run.py DATA --minutes 20

DATA is a folder with CIFAR-10's parquet files, train-*.parquet and test-*.parquet. The Fréchet distance is
taken in the features of a classifier that is trained first; it is not FID (README.md beside this file).
Stopped, the same command goes on; with --piece_minutes 8 it stops by itself after about so many minutes.
--measure_step_time does all of it with tiny networks on 600 of the pictures, in a few minutes of a CPU.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet

HERE = Path(__file__).parent
PEERS = {"diffusers": "diffusers_recipe.py", "denoising-diffusion-pytorch": "denoising_diffusion.py"}
REHEARSAL = {
    "classifier": ["--blocks", "[1, 1, 1, 1]", "--train.steps", "12", "--train.batch_size", "32"],
    "ours": ["--unet.levels", "[{channels: 32, blocks: 1}, {channels: 32, blocks: 1}]", "--unet.head_channels", "null"],
    "peers": ["--tiny", "--steps_to_draw", "4"],
}


def few(data: Path, folder: Path) -> Path:
    """A folder with the first pictures of each parquet file."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in data.glob("*.parquet"):
        pyarrow.parquet.write_table(pyarrow.parquet.read_table(file).slice(0, 600), folder / file.name)
    return folder


def run(*words: str | Path) -> None:
    """A command in a process of its own; what stops it stops us."""
    print(*words, flush=True)
    ended = subprocess.run([sys.executable, *map(str, words)], check=False).returncode
    if ended:
        sys.exit(ended)


def diffunet(*words: str | Path) -> None:
    run("-c", "from diffunet.cli.main import main; main()", *words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--num_images", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, default=Path("runs/cifar10-benchmark"))
    parser.add_argument("--piece_minutes", type=float, default=float("inf"))
    parser.add_argument("--measure_step_time", action="store_true")
    asked = parser.parse_args()
    rehearsal = REHEARSAL if asked.measure_step_time else {part: [] for part in REHEARSAL}
    folder, images = asked.folder, str(asked.num_images)
    data = few(asked.data, folder / "few") if asked.measure_step_time else asked.data
    end = time.monotonic() + 60 * asked.piece_minutes
    classifier = folder / "classifier"
    peers = folder / "peers"

    def left() -> float:
        """Minutes of this piece; without any, ends it."""
        minutes = (end - time.monotonic()) / 60
        if minutes < 0.1:
            print("stopped after this piece; the same command goes on")
            sys.exit(0)
        return minutes

    if not (folder / "diffunet" / "curve.md").exists():
        to = ["--train.output", classifier, "--data.path", data, "--test_split", "test"]
        diffunet("classifier", *to, *rehearsal["classifier"])
        measured = ["--points", "0.25", "0.5", "0.75", "1", "--num_images", images, "--features", classifier]
        budget = ["--minutes", str(asked.minutes), "--stop_after", f"{left():.2f}"]
        where = ["--config", HERE / "config.yaml", "--folder", folder / "diffunet", "--data.path", data]
        run(HERE.parent / "curve.py", *where, *budget, *measured, *rehearsal["ours"])
        if not (folder / "diffunet" / "curve.md").exists():
            return
    for name, script in PEERS.items():
        drawn, record = peers / name, peers / f"{name}-record"
        train_file = min(data.glob("train-*.parquet"))
        while not (drawn / "peer.json").exists():
            how = ["--minutes", str(asked.minutes), "--num_images", images, *rehearsal["peers"]]
            pieces = [] if asked.piece_minutes == float("inf") else ["--piece_minutes", f"{left():.2f}"]
            run(HERE.parent / "peers" / script, "--data", train_file, "--output", drawn, *how, *pieces)
        if not (record / "evaluation.json").exists():
            real = ["--data.path", data, "--features", classifier, "--output", record]
            diffunet("evaluate", drawn, *real, "--num_images", images)


if __name__ == "__main__":
    main()
