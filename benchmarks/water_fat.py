"""Water and fat: the error of the fraction of fat by the number of echoes, and real scans without targets.

    python benchmarks/water_fat.py --echoes 1 2 3 4 5 --steps 600 --folder runs/echoes
    python benchmarks/water_fat.py --scans ISMRM2012 --steps 600 --folder runs/scans
    python benchmarks/water_fat.py --echoes 1 5 --tiny --folder runs/rehearsal

Of the built-in sets water-fat-1 to water-fat-5, whose fractions are exact, configs/water-fat.yaml is trained by as many
steps each; a fifth of the bodies is held out (Andersson et al. 2019 found the same order on real ones). ISMRM2012 has
ismrm2012_12.mat, ... of the challenge of 2012: slices of complex echoes with their times, field strength and a mask of
the body. Each case is a training of configs/water-fat-signal.yaml of its own, from its echoes alone (Jafari et al.
2021), and scored beside a fit by least squares with a smooth field, not an expert's map. Interrupted, the same command
continues. FOLDER gets rows.jsonl.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from records import add_record_flag, append_rows, machine, run_command, score_table

from diffunet.runs.evaluate_prediction import evaluate_predictor, save_predictor_evaluation
from diffunet.runs.prediction import PredictionConfig
from diffunet.runs.run import Run

QUIET = ["--train.preview_every", "1000000", "--train.checkpoint_every", "1000000"]


def measure(config: str, name: str, flags: list[str], args: argparse.Namespace) -> dict:
    """Train by a config, and return the scores of the held-out cases, or of all if none is."""
    run = Run(args.folder / name)
    steps = 2 if args.tiny else args.steps
    words = ["train", "--config", f"configs/{config}.yaml", "--train.output", str(run.folder), "--overwrite"]
    run_command([*words, *QUIET, "--train.seed", str(args.seed), "--train.steps", str(steps), *flags, *args.flags])
    own = run.config(PredictionConfig).data
    evaluation = evaluate_predictor(run, own)
    save_predictor_evaluation(evaluation, args.folder / f"{name}-evaluation")
    return {"name": name, "seed": args.seed, "steps": steps, "scores": evaluation.record["scores"]}


def write_scan(file: Path, folder: Path) -> tuple[list[float], float]:
    """Write the slices of a case as images/NAME.npy and weights/NAME.png, and return its times and field strength."""
    import scipy.io

    scan = scipy.io.loadmat(file, struct_as_record=False, squeeze_me=True)["imDataParams"]
    echoes = np.asarray(scan.images, np.complex64)
    if scan.PrecessionIsClockwise != 1:
        echoes = echoes.conj()
    shutil.rmtree(folder, ignore_errors=True)
    for inner in ("images", "weights"):
        (folder / inner).mkdir(parents=True)
    for index in range(echoes.shape[2]):
        np.save(folder / "images" / f"{file.stem}_{index}.npy", echoes[:, :, index].transpose(2, 0, 1))
        Image.fromarray(scan.mask[..., index].astype(np.uint8)).save(folder / "weights" / f"{file.stem}_{index}.png")
    return [float(time) for time in scan.TE], float(scan.FieldStrength)


def of_scan(file: Path, args: argparse.Namespace) -> dict:
    folder = args.folder / f"{file.stem}-data"
    times, strength = write_scan(file, folder)
    flags = ["--data.path", str(folder), "--data.fold", "null", "--data.patch", "null"]
    flags += ["--augment.rotate", "0"]  # slices are not square
    flags += ["--objective.echo_times", json.dumps(times), "--objective.field_strength", str(strength)]
    return measure("water-fat-signal", file.stem, flags, args)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--echoes", type=int, nargs="*", default=[], choices=range(1, 6))
    parser.add_argument("--scans", type=Path, metavar="ISMRM2012", help="a folder with ismrm2012_*.mat")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600, help="of each training (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="two steps")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="further flags of train, last")
    add_record_flag(parser)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    file = args.folder / "rows.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    sets = [f"water-fat-{number}" for number in args.echoes]
    plan = {name: lambda name=name: measure("water-fat", name, ["--data.path", name], args) for name in sets}
    scans = sorted(args.scans.glob("ismrm2012_*.mat")) if args.scans else []
    plan |= {scan.stem: lambda scan=scan: of_scan(scan, args) for scan in scans}
    for name, make in plan.items():
        if not any((row["name"], row["seed"]) == (name, args.seed) for row in rows):
            rows.append(make())
            with open(file, "a", encoding="utf-8") as opened:
                opened.write(json.dumps(rows[-1]) + "\n")
    print(f"\n{machine()}.")
    for row in rows:
        print(f"\n{row['name']}, {row['steps']} steps:\n\n{score_table(row['scores'])}")
    if args.record:
        append_rows("water-fat", rows)


if __name__ == "__main__":
    main()
