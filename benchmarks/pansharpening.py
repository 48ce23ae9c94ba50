"""Pansharpening by Wald's protocol: a network against Brovey's method and bicubic interpolation, on the other half.

    python benchmarks/pansharpening.py SCENES.npy --folder runs/pansharpening     (H, W, B), or several, (N, H, W, B)
    python benchmarks/pansharpening.py RED.tif GREEN.tif BLUE.tif --folder runs/pansharpening     a scene of three bands
    python benchmarks/pansharpening.py --tiny --folder runs/rehearsal                             built-in scenes

The sharp image is the mean of the bands, and the bands are made coarser by 4. The left half of each scene is trained on
and the right half scored, as `diffunet evaluate` does. Pixels of 0 in any band are empty. FOLDER gets the pairs, the
run, and evaluation.json.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from records import add_record_flag, append_rows, machine, run_command, score_table

from diffunet.data.decoding import inspect, read_values
from diffunet.data.pansharpening import wald_pair
from diffunet.runs.evaluate_prediction import evaluate_predictor, save_predictor_evaluation
from diffunet.runs.run import Run

RATIO = 4
SCORES = ["ergas", "sam", "psnr", "rmse"]
TINY = ["--train.steps", "2", "--train.batch_size", "1"]


def scenes_of(files: list[Path]) -> list[np.ndarray]:
    """Return scenes, (B, H, W) fp32 each: of arrays, or one of the bands in image files."""
    if files[0].suffix == ".npy":
        arrays = [np.load(file, allow_pickle=False).astype(np.float32) for file in files]
        return [scene.transpose(2, 0, 1) for array in arrays for scene in (array if array.ndim == 4 else [array])]
    rows = [{"bytes": None, "path": str(file)} for file in files]
    return [np.concatenate([read_values(row, inspect(row).channels)[0].numpy() for row in rows]).astype(np.float32)]


def write_pairs(scenes: list[np.ndarray], folder: Path) -> None:
    """Write halves as pairs: 0-N of the left ones, 1-N of the right ones, NaN where a scene is empty."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(scenes):
        middle = scene.shape[2] // 2
        for half, part in enumerate((scene[..., :middle], scene[..., middle:])):
            height, width = (side // RATIO * RATIO for side in part.shape[1:])
            bands = torch.from_numpy(part[:, :height, :width].copy())
            image, target = wald_pair(bands, ratio=RATIO)
            target[:, (bands == 0).any(0)] = torch.nan
            name = f"{half}-{number:03d}"
            np.save(folder / "imagesTr" / f"{name}.npy", image.permute(1, 2, 0).numpy())
            np.save(folder / "labelsTr" / f"{name}.npy", target.permute(1, 2, 0).numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", type=Path, nargs="*", help="arrays, or image files of one band each")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=5, help="of the training (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="two steps")
    add_record_flag(parser)
    args = parser.parse_args()
    data: list[str] = []
    if args.scenes:
        write_pairs(scenes_of(args.scenes), args.folder / "pairs")
        data = ["--data.path", str(args.folder / "pairs"), "--data.fold_by", "order", "--data.folds", "2"]
        data += ["--data.fold", "1"]
    run = Run(args.folder / "run")
    length = TINY if args.tiny else ["--train.minutes", str(args.minutes)]
    words = ["train", "--config", "configs/pansharpen.yaml", "--train.output", str(run.folder), "--overwrite"]
    run_command([*words, *data, *length])
    evaluation = evaluate_predictor(run)
    save_predictor_evaluation(evaluation, args.folder)
    scores = {name: evaluation.record["scores"][name] for name in SCORES}
    print(f"{machine()}.\n\n{score_table(scores)}")
    if args.record:
        append_rows("pansharpening", [{"scenes": list(map(str, args.scenes)), "scores": scores}])


if __name__ == "__main__":
    main()
