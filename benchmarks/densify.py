"""A dense segmentation of one volume from a few of its slices (Çiçek et al. 2016, the first of their two uses).

    python benchmarks/densify.py MNI152 --slices 1 2 4 --steps 400 --folder runs/densify
    python benchmarks/densify.py --tiny --folder runs/rehearsal                        a built-in volume, two steps

MNI152 has the T1 template of the MNI (ICBM 2009a) with its maps of gray and of white matter: the classes are the most
probable of gray, white and neither. `--slices N` keeps the labels of N slices along each axis, 3 N in all; the network
is trained on these by configs/hippocampus.yaml and scored on all voxels of the same volume. Interrupted, the same
command continues. FOLDER gets rows.jsonl.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from records import add_record_flag, append_rows, machine, run_command
from records import table as markdown

from diffunet.data.phantoms.registry import PHANTOMS
from diffunet.runs.evaluate_prediction import evaluate_predictor, save_predictor_evaluation
from diffunet.runs.prediction import PredictionConfig
from diffunet.runs.run import Run

NAMES = "other", "gray", "white"
QUIET = ["--train.preview_every", "1000000", "--train.checkpoint_every", "1000000"]


def write_brain(source: Path | None, folder: Path) -> None:
    """Write the template with its classes, or a built-in volume, as images/brain.nii.gz and labels/brain.nii.gz."""
    import nibabel

    shutil.rmtree(folder, ignore_errors=True)
    for inner in ("images", "labels"):
        (folder / inner).mkdir(parents=True)
    if source is None:
        phantom = PHANTOMS["tubules"].generate(0, (32, 32, 32))
        affine, image, classes = np.eye(4), phantom.image[0], phantom.target
    else:
        files = {kind: next(source.glob(f"*_{kind}_*.nii.gz")) for kind in ("t1", "gm", "wm")}
        t1, gray, white = (nibabel.load(files[kind]) for kind in files)
        affine, image = t1.affine, np.asanyarray(t1.dataobj)
        shares = np.stack([np.asanyarray(each.dataobj).astype(int) for each in (gray, white)])
        classes = np.concatenate([255 - shares.sum(0, keepdims=True), shares]).argmax(0).astype(np.uint8)
    for inner, values in (("images", image), ("labels", classes)):
        nibabel.save(nibabel.Nifti1Image(values, affine), folder / inner / "brain.nii.gz")


def measure(slices: int, seed: int, args: argparse.Namespace) -> dict:
    """Train on some slices, and return the scores of the whole volume."""
    run = Run(args.folder / f"slices-{slices}-{seed}")
    words = ["train", "--config", "configs/hippocampus.yaml", "--train.output", str(run.folder), "--overwrite", *QUIET]
    words += ["--data.path", str(args.folder / "brain"), "--data.class_names", json.dumps(NAMES)]
    words += ["--data.fold", "null", "--data.slices", str(slices), "--data.patch", "24" if args.tiny else "48"]
    words += ["--train.minutes", "null", "--train.steps", "2" if args.tiny else str(args.steps)]
    run_command([*words, "--train.seed", str(seed), *args.flags])
    data = run.config(PredictionConfig).data
    evaluation = evaluate_predictor(run, data.model_copy(update={"slices": None}))
    save_predictor_evaluation(evaluation, args.folder / f"slices-{slices}-{seed}-evaluation")
    scores = {name: row["value"] for name, row in evaluation.record["scores"].items()}
    return {"slices": 3 * slices, "seed": seed, "steps": args.steps, "scores": scores}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="MNI152", nargs="?", type=Path, help="a folder with *_t1_*, *_gm_*, *_wm_*")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--slices", type=int, nargs="+", default=[1, 2, 4], help="along each axis (%(default)s)")
    parser.add_argument("--steps", type=int, default=400, help="of each training (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--tiny", action="store_true", help="two steps")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="further flags of train, last")
    add_record_flag(parser)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if not (args.folder / "brain").exists():
        write_brain(args.data, args.folder / "brain")
    file = args.folder / "rows.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for seed in args.seeds:
        for slices in args.slices:
            if not any((row["slices"], row["seed"]) == (3 * slices, seed) for row in rows):
                rows.append(measure(slices, seed, args))
                with open(file, "a", encoding="utf-8") as opened:
                    opened.write(json.dumps(rows[-1]) + "\n")
    kinds = [name for name in rows[0]["scores"] if name.startswith(("dice/", "hausdorff95/"))]
    lines = [[str(row["slices"]), *(f"{row['scores'][name]:.3g}" for name in kinds)] for row in rows]
    print(f"\n{machine()}.\n\n{markdown(['labelled slices', *kinds], lines)}")
    if args.record:
        append_rows("densify", rows)


if __name__ == "__main__":
    main()
