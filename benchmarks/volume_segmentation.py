"""Volumes: the hippocampus in the same minutes as MONAI's U-Net, and what few labelled slices are worth.

    pip install monai
    python benchmarks/volume_segmentation.py --data HIPPOCAMPUS --minutes 60 --folder runs/hippocampus
    python benchmarks/volume_segmentation.py --data HIPPOCAMPUS --minutes 10 --slices 1 2 4 --methods diffunet \\
        --folder runs/slices
    python benchmarks/volume_segmentation.py --tiny --folder runs/rehearsal                       built-in volumes

HIPPOCAMPUS is Task04 of the Medical Segmentation Decathlon (Simpson et al. 2019, CC-BY-SA-4.0), or another folder of
volumes; a fifth of the cases is held out by name. diffunet trains configs/hippocampus.yaml; `--slices N`, or
`--slices "[z, y, x]"`, keeps the labels of so many slices along each axis of each training volume. MONAI as its
tutorials combine it (benchmarks/baselines/volumes.py). Only training counts, by the clock or by --steps; *CPU* is the
processor time of the whole process until then. Interrupted, the same command continues. FOLDER gets rows.jsonl and
volumes.md.
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from time import perf_counter, process_time

from records import add_record_flag, append_rows, machine, mean_std, run_command
from records import table as markdown

sys.path.append(str(Path(__file__).parent / "baselines"))
from volumes import monai_unet_3d

from diffunet.data.labels import UNKNOWN
from diffunet.evaluation.comparison import Comparison, Judge, PredictedCase
from diffunet.runs.evaluate_prediction import evaluate_predictor
from diffunet.runs.prediction import PredictionConfig
from diffunet.runs.run import Run
from diffunet.training.log import read_log

QUIET = ["--train.preview_every", "1000000", "--train.checkpoint_every", "1000000"]
SCORES = "dice", "hausdorff95", "average_surface_distance"


def words_of(run: Run, seed: int, slices: str, args: argparse.Namespace) -> list[str]:
    """Return the command that trains with diffunet."""
    length = ["--train.minutes", str(args.minutes), "--train.steps", "1000000"]
    if most := 2 if args.tiny else args.steps:
        length = ["--train.minutes", "null", "--train.steps", str(most)]
    words = ["train", "--config", "configs/hippocampus.yaml", "--train.output", str(run.folder), "--overwrite"]
    words += ["--data.path", args.data, "--data.slices", slices, "--train.seed", str(seed), *QUIET, *length]
    return [*words, "--data.patch", json.dumps(args.patch)]


def scores_of(record: dict) -> dict[str, dict[str, float]]:
    """Return the scores of each class but the first, and their errors over the cases."""
    names = [name for kind in SCORES for name in [n for n in record["scores"] if n.startswith(f"{kind}/")][1:]]
    kinds = {"scores": "value", "errors": "error"}
    return {key: {name: record["scores"][name][kind] for name in names} for key, kind in kinds.items()}


def measure_own(seed: int, slices: str, args: argparse.Namespace) -> dict:
    run = Run(args.folder / f"diffunet-{slices}-{seed}")
    started, cpu = perf_counter(), process_time()
    run_command(words_of(run, seed, slices, args))
    spent = {"seconds": perf_counter() - started, "cpu_seconds": process_time() - cpu}
    data = run.config(PredictionConfig).data
    record = evaluate_predictor(run, data.model_copy(update={"slices": None})).record
    steps = read_log(run.folder / "log.jsonl")[-1]["step"]
    return spent | {"steps": steps, "labelled": labelled_share(run), **scores_of(record)}


def labelled_share(run: Run) -> float:
    """Return the share of the voxels of training volumes that have a label."""
    pairs = run.config(PredictionConfig).load(log=lambda line: None)
    targets = [pairs.cases[index].target for index in pairs.split_fold()[0]]
    return float(sum((target != UNKNOWN).sum() for target in targets) / sum(target.numel() for target in targets))


def measure_monai(seed: int, args: argparse.Namespace) -> dict:
    data = {"path": args.data, "spacing": "files"}
    config = PredictionConfig.model_validate({"unet": {"dims": 3, "levels": [{"channels": 8}]}, "data": data})
    pairs = config.load()
    trained, held_out = pairs.split_fold()
    assert pairs.labels
    cases = [(pairs.cases[index].image, pairs.cases[index].target.clamp(min=0).long()) for index in trained]
    peer = monai_unet_3d(cases, len(pairs.labels.codes), args.patch, seed)
    started, cpu, steps, most = perf_counter(), process_time(), 0, 2 if args.tiny else args.steps
    while steps < most if most else perf_counter() - started < 60 * args.minutes:
        peer.step()
        steps += 1
    spent = {"seconds": perf_counter() - started, "cpu_seconds": process_time() - cpu, "labelled": 1.0}
    comparison = Comparison(Judge.of(pairs.cases, pairs.labels, held_out, trained[:5]))
    for index in held_out:
        case = pairs.cases[index]
        comparison.add(PredictedCase(case, peer.predict(case.image)))
    return spent | {"steps": steps, **scores_of(comparison.record({}, {}, "training volumes"))}


def table(rows: list[dict]) -> str:
    """Return the mean by method and slices ± standard deviation over seeds, of one seed the error over cases."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["method"], row["slices"]].append(row)
    names = list(rows[0]["scores"])
    lines = []
    for (method, _), found in groups.items():
        values = [mean_std([row["scores"][name] for row in found]) for name in names]
        if len(found) == 1:
            values = [f"{value} ± {found[0]['errors'][name]:.2g}" for value, name in zip(values, names, strict=True)]
        took = [mean_std([row[key] / 60 for row in found]) for key in ("seconds", "cpu_seconds")]
        lines.append([method, f"{found[0]['labelled']:.1%}", *took, f"{found[0]['steps']:,}", *values])
    return markdown(["method", "labelled voxels", "minutes", "CPU", "steps", *names], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", metavar="VOLUMES", default="lesions", help="a folder, or a built-in set (%(default)s)"
    )
    parser.add_argument("--minutes", type=float, default=60, help="of each training (%(default)s)")
    parser.add_argument("--steps", type=int, help="of each training, instead of minutes")
    parser.add_argument("--patch", type=int, nargs=3, default=[32, 48, 32], metavar=("D", "H", "W"))
    parser.add_argument("--slices", nargs="+", default=["null"], help="of each axis; null: all (%(default)s)")
    parser.add_argument("--methods", nargs="+", default=["diffunet", "MONAI"], choices=["diffunet", "MONAI"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="two steps of each")
    add_record_flag(parser)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    file = args.folder / "rows.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    plan = [(seed, method, s) for seed in args.seeds for method in args.methods for s in args.slices]
    for seed, method, slices in plan:
        if method == "MONAI" and slices != "null":
            continue
        if any((row["method"], row["slices"], row["seed"]) == (method, slices, seed) for row in rows):
            continue
        found = measure_own(seed, slices, args) if method == "diffunet" else measure_monai(seed, args)
        rows.append({"method": method, "slices": slices, "seed": seed, "minutes": args.minutes} | found)
        with open(file, "a", encoding="utf-8") as opened:
            opened.write(json.dumps(rows[-1]) + "\n")
    text = f"{machine()}.\n\n{table(rows)}"
    (args.folder / "volumes.md").write_text(text, encoding="utf-8")
    print(text)
    if args.record:
        append_rows("volumes", rows)


if __name__ == "__main__":
    main()
