"""Binding sites of proteins: the complexes of PDBbind 2013's core set in five parts, each held out once.

    python benchmarks/pockets.py PDBBIND2013 --minutes 5 --folder runs/pockets
    python benchmarks/pockets.py --tiny --folder runs/rehearsal                     globules as files, two steps

PDBBIND2013 has complexes, ID.npz (atoms of the protein, coordinates of the ligand), and index.json with the cluster of
similar sequence that each belongs to; clusters stay together in a part. Trained by configs/pockets.yaml; the scores are
those of `diffunet evaluate` for the held-out complexes of all parts, with errors over clusters, beside references
without a network. `--average` predicts by the mean over the 24 rotations of a cube. Interrupted, the same command
continues. FOLDER gets rows.jsonl.
"""

import argparse
import json
import os
from pathlib import Path
from time import perf_counter

import numpy as np
from records import add_record_flag, append_rows, machine, run_command, score_table

from diffunet.data.molecules.complexes import find_complexes
from diffunet.data.pairs import PairConfig, origin_of, split_fold
from diffunet.data.phantoms.globules import globule
from diffunet.runs.pocket_scores import case_scores, summarize_pockets
from diffunet.runs.predict import ImagePredictor
from diffunet.runs.prediction import PredictionConfig
from diffunet.runs.run import Run
from diffunet.training.log import read_log

SCORES = {"DCC <= 4 Å, first pocket": "top_n", "among the first three": "top_n_plus_2", "DCC (Å)": "dcc"}
SCORES |= {"DVO": "dvo", "PLI": "pli", "without a pocket": "missed"}
GROUP = r"(c.+)_"
FOLDS = 5
QUIET = ["--train.preview_every", "1000000", "--train.checkpoint_every", "1000000"]


def linked(source: Path, folder: Path) -> Path:
    """Return a folder with the complexes under names that begin with their cluster."""
    folder.mkdir(parents=True, exist_ok=True)
    for row in json.loads((source / "index.json").read_text()):
        link = folder / f"c{row['cluster']}_{row['id']}.npz"
        if not link.exists():
            os.symlink((source / f"{row['id']}.npz").resolve(), link)
    return folder


def globules(folder: Path) -> Path:
    """Return a folder with two built-in globules for each of ten clusters, as arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(20):
        atoms, ligand = globule(np.random.default_rng(index))
        parts = {"xyz": atoms.xyz, "element": atoms.element, "resname": atoms.residue, "name": atoms.name}
        np.savez(folder / f"c{index % 10:02d}_{index}.npz", ligand_xyz=ligand, chain=atoms.chain, **parts)
    return folder


def train(data: PairConfig, args: argparse.Namespace, seed: int) -> Run:
    """Train on all folds but one, and return the run."""
    run = Run(args.folder / f"fold-{data.fold}-seed-{seed}")
    length = ["--train.steps", "2"] if args.tiny else ["--train.minutes", str(args.minutes)]
    length = ["--train.steps", str(args.steps)] if args.steps else length
    words = ["train", "--config", "configs/pockets.yaml", "--train.output", str(run.folder), "--overwrite"]
    words += ["--data.path", data.path, "--data.group", GROUP, "--data.fold", str(data.fold), *args.flags]
    run_command([*words, "--train.seed", str(seed), *QUIET, *length])
    return run


def measure(fold: int, seed: int, args: argparse.Namespace) -> list[dict]:
    """Train, and return a row for each complex that is held out."""
    data = PairConfig(path=str(args.folder / "complexes"), group=GROUP, folds=FOLDS, fold=fold)
    started = perf_counter()
    run = train(data, args, seed)
    seconds, steps = perf_counter() - started, read_log(run.folder / "log.jsonl")[-1]["step"]
    settings = run.config(PredictionConfig).predict.model_copy(update={"average": args.average})
    predictor, complexes = ImagePredictor([run], settings), find_complexes(Path(data.path))
    names = [each.name for each in complexes]
    about = {"fold": fold, "seed": seed, "seconds": seconds, "steps": steps}
    return [
        about | {"name": names[index], "scores": case_scores(predictor, complexes[index])}
        for index in split_fold(names, data)[1]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="PDBBIND2013", nargs="?", type=Path, help="a folder with index.json")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=5, help="of each training (%(default)s)")
    parser.add_argument("--steps", type=int, help="of each training, instead of minutes")
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(FOLDS)))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--average", action="store_true", help="over the 24 rotations of a cube")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="further flags of train, last")
    parser.add_argument("--tiny", action="store_true", help="two steps")
    add_record_flag(parser)
    args = parser.parse_args()
    (globules if args.data is None else lambda folder: linked(args.data, folder))(args.folder / "complexes")
    file = args.folder / "rows.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for seed in args.seeds:
        for fold in args.folds:
            if not any((row["fold"], row["seed"]) == (fold, seed) for row in rows):
                found = measure(fold, seed, args)
                rows += found
                with open(file, "a", encoding="utf-8") as opened:
                    opened.writelines(json.dumps(row) + "\n" for row in found)
    origins = [origin_of(row["name"], GROUP) for row in rows]
    summary = summarize_pockets([row["scores"] for row in rows], origins)
    print(f"\n{len(rows)} complexes of {len(set(origins))} clusters; {machine()}.\n")
    print(score_table({name: summary[score] for name, score in SCORES.items()}))
    if args.record:
        append_rows("pockets", rows)


if __name__ == "__main__":
    main()
