"""Membranes in electron microscopy, the first job of the U-Net: one change of the recipe per row.

    python benchmarks/membranes.py --steps 400 --folder runs/membranes-ablations --data EM
    python benchmarks/membranes.py --minutes 30 --recipes configs/membranes.yaml --folder runs/membranes --data EM
    python benchmarks/membranes.py --tiny --folder runs/rehearsal                  built-in images, a rehearsal

EM has images/ and labels/ of ISBI 2012 (Cardona et al. 2010), or of another stack: its last third is held out as a
block. Without it, the built-in membranes. Each row is scored as `diffunet evaluate` does. Interrupted, the same command
continues. FOLDER gets rows.jsonl and membranes.md.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

from records import add_record_flag, append_rows, machine, mean_std, run_command
from records import table as markdown

from diffunet.runs.evaluate_prediction import evaluate_predictor
from diffunet.runs.run import Run
from diffunet.training.log import read_log

LEVELS = [
    *({"channels": c, "blocks": 2, "from_coarser": c} for c in (16, 32, 64)),
    {"channels": 128, "blocks": 2, "up": []},
]
PLAIN = [
    "--unet.preset",
    "unet2015",
    "--unet.levels",
    json.dumps(LEVELS),
    "--unet.norm",
    "group",
    "--unet.norm_groups",
    "8",
]
"""Blocks of 2015 in the four levels of configs/membranes.yaml; outputs of 128×128 pixels with either border."""
RECIPES: dict[str, list[str]] = {
    "configs/membranes.yaml": [],
    "without border weights": ["--weights.border", "0"],
    "without elastic deformation": ["--augment.elastic", "0"],
    "cross-entropy alone": ["--objective.dice", "0"],
    "blocks of 2015, same borders": [*PLAIN, "--unet.padding", "same"],
    "blocks of 2015, valid borders": [*PLAIN, "--data.patch", "220"],
}
SCORES = ["pixel_error", "dice/membrane", "v_rand", "v_info", "adapted_rand_error", "warping_error"]
BLOCK = ["--data.fold_by", "order", "--data.folds", "3", "--data.fold", "2", "--data.class_names", "[membrane, cell]"]
QUIET = ["--train.preview_every", "1000000", "--train.checkpoint_every", "1000000"]
TINY = ["--train.steps", "2", "--train.batch_size", "1"]


def measure(recipe: str, seed: int, args: argparse.Namespace) -> dict:
    """Train a recipe, and return the scores of the held-out slices."""
    name = recipe.replace("configs/", "").replace(" ", "-").replace(",", "")
    run = Run(args.folder / f"{name}-{seed}")
    length = ["--train.minutes", str(args.minutes)] if args.steps is None else ["--train.steps", str(args.steps)]
    length = TINY if args.tiny else length
    data = ["--data.path", args.data, *BLOCK] if args.data else []
    words = ["train", "--config", "configs/membranes.yaml", "--train.output", str(run.folder), "--overwrite"]
    run_command([*words, "--train.seed", str(seed), *QUIET, *length, *data, *RECIPES[recipe]])
    record = evaluate_predictor(run).record
    lines = read_log(run.folder / "log.jsonl")
    found = {"recipe": recipe, "seed": seed, "steps": lines[-1]["step"], "minutes": args.minutes}
    return found | {"scores": {name: record["scores"][name] for name in SCORES}}


def table(rows: list[dict]) -> str:
    """Return the mean over seeds ± standard deviation by recipe, in Markdown."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["recipe"]].append(row)
    lines = []
    for recipe, found in groups.items():
        values = [mean_std([row["scores"][name]["value"] for row in found]) for name in SCORES]
        lines.append([recipe, f"{found[0]['steps']:,}", *values, str(len(found))])
    references = {name: row["references"] for name, row in rows[0]["scores"].items()}
    for reference in references[SCORES[0]]:
        cells = (references[name].get(reference) for name in SCORES)
        lines.append([f"*{reference}*", "", *("" if value is None else f"{value:.3g}" for value in cells), ""])
    return markdown(["recipe", "steps", *(name.replace("_", " ") for name in SCORES), "seeds"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="EM", help="a folder with images/ and labels/")
    parser.add_argument("--minutes", type=float, default=30, help="of each training (%(default)s)")
    parser.add_argument("--steps", type=int, help="of each training, instead of minutes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="two steps of each recipe")
    add_record_flag(parser)
    args = parser.parse_args()
    file = args.folder / "rows.jsonl"
    args.folder.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for seed in [0] if args.tiny else args.seeds:
        for recipe in args.recipes:
            if not any((row["recipe"], row["seed"]) == (recipe, seed) for row in rows):
                rows.append(measure(recipe, seed, args))
                with open(file, "a", encoding="utf-8") as opened:
                    opened.write(json.dumps(rows[-1]) + "\n")
    text = f"{machine()}.\n\n{table(rows)}"
    (args.folder / "membranes.md").write_text(text, encoding="utf-8")
    print(text)
    if args.record:
        append_rows("membranes", rows)


if __name__ == "__main__":
    main()
