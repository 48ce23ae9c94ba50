"""Nuclei of the 2018 Data Science Bowl, each an object of its own: one of five folds held out.

    python benchmarks/nuclei.py DSB2018 --folder runs/nuclei
    python benchmarks/nuclei.py --tiny --folder runs/rehearsal          built-in cells, two steps

DSB2018 has images/ and masks/ of the same names, the masks with a value for each nucleus and 0 for the background
(Caicedo et al. 2019; BBBC038, CC0). Images count as gray. The fold follows from the names of the files. The scores are
those of `diffunet evaluate`, with its references. Interrupted, the same command continues. FOLDER gets rows.jsonl, and
for each seed the run and its evaluation.json.
"""

import argparse
import json
from pathlib import Path

from records import add_record_flag, append_rows, machine, run_command, score_table

from diffunet.runs.evaluate_prediction import evaluate_predictor, save_predictor_evaluation
from diffunet.runs.run import Run

SCORES = {
    "Dice": "dice/nucleus",
    "IoU": "iou/nucleus",
    "AP, IoU .5": "ap50",
    "AP, IoU .5 to .95": "mean_ap",
    "V_rand": "v_rand",
    "boundary F1": "boundary_f1/nucleus",
}
QUIET = ["--train.preview_every", "1000000", "--train.checkpoint_every", "1000000"]
TINY = ["--train.steps", "2", "--train.batch_size", "1"]


def measure(seed: int, args: argparse.Namespace) -> dict:
    """Train, and return the scores of the held-out images."""
    folder = args.folder / f"fold-{args.fold}-seed-{seed}"
    run = Run(folder / "run")
    data = ["--data.path", args.data, "--data.channels", "1"] if args.data else []
    data += ["--data.labels", "instances", "--data.class_names", "[background, nucleus]"]
    data += ["--data.folds", "5", "--data.fold", str(args.fold)]
    length = TINY if args.tiny else ["--train.minutes", str(args.minutes)]
    words = ["train", "--config", "configs/cells.yaml", "--train.output", str(run.folder), "--overwrite"]
    run_command([*words, "--train.seed", str(seed), *QUIET, *length, *data])
    evaluation = evaluate_predictor(run)
    save_predictor_evaluation(evaluation, folder)
    record = evaluation.record
    found = {"seed": seed, "fold": args.fold, "minutes": args.minutes, "images": record["cases"]["number"]}
    return found | {"scores": {name: record["scores"][score] for name, score in SCORES.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DSB2018", nargs="?", help="a folder with images/ and masks/")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10, help="of each training (%(default)s)")
    parser.add_argument("--fold", type=int, default=0, choices=range(5), help="held out (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--tiny", action="store_true", help="two steps")
    add_record_flag(parser)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    file = args.folder / "rows.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for seed in [0] if args.tiny else args.seeds:
        if not any((row["seed"], row["fold"]) == (seed, args.fold) for row in rows):
            rows.append(measure(seed, args))
            with open(file, "a", encoding="utf-8") as opened:
                opened.write(json.dumps(rows[-1]) + "\n")
    for row in rows:
        print(f"\n{row['images']} images of fold {row['fold']}, seed {row['seed']}; {machine()}.\n")
        print(score_table(row["scores"]))
    if args.record:
        append_rows("nuclei", rows)


if __name__ == "__main__":
    main()
