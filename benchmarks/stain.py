"""A stain that was not applied: the brown one of a microscope photograph, from its gray image.

    python benchmarks/stain.py --folder runs/stain-photograph                scikit-image's photograph
    python benchmarks/stain.py IMAGE.png --folder runs/stain-photograph      another one of the same stains
    python benchmarks/stain.py --tiny --folder runs/rehearsal                two steps

The photograph is `skimage.data.immunohistochemistry`: colon, 512×512 pixels in color, hematoxylin (blue, nuclei) and
diaminobenzidine (brown, FHL2). The target is the density of the brown stain by color deconvolution (Ruifrok & Johnston
2001, scikit-image's `rgb2hed`), the image is the luminance, in which both are dark. The left half is trained on and the
right half scored, as `diffunet evaluate` does. The reference *identity* is the gray value with the factor and offset of
least squares, *constant* the mean. PSNR is relative to the span of the true densities, of which few pixels have the
upper part. Needs scikit-image. FOLDER gets the pairs, the run, and evaluation.json.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from records import add_record_flag, append_rows, machine, run_command, score_table

from diffunet.runs.evaluate_prediction import evaluate_predictor, save_predictor_evaluation
from diffunet.runs.run import Run

DAB = 2
"""Channel of `rgb2hed` after hematoxylin and eosin."""
SCORES = {"r": "pearson", "PSNR": "psnr", "MAE": "mae", "SSIM": "ssim"}
BLOCK = ["--data.fold_by", "order", "--data.folds", "2", "--data.fold", "1"]
TINY = ["--train.steps", "2", "--train.batch_size", "1"]


def write_pairs(photograph: Image.Image, folder: Path) -> None:
    """Write gray images, 8 bits, and densities of the brown stain, fp32: 0 of the left half, 1 of the right half."""
    from skimage.color import rgb2hed

    density = rgb2hed(np.asarray(photograph.convert("RGB")))[..., DAB].astype(np.float32)
    gray = np.asarray(photograph.convert("L"))
    middle = gray.shape[1] // 2
    for name, whole in (("images", gray), ("targets", density)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for half, part in enumerate((whole[:, :middle], whole[:, middle:])):
            np.save(folder / name / f"{half}.npy", part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path, nargs="?", help="a photograph in color (scikit-image's)")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10, help="of the training (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the training (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="two steps")
    add_record_flag(parser)
    args = parser.parse_args()
    from skimage.data import immunohistochemistry

    photograph = Image.open(args.image) if args.image else Image.fromarray(immunohistochemistry())
    pairs, run = args.folder / "pairs", Run(args.folder / "run")
    write_pairs(photograph, pairs)
    length = TINY if args.tiny else ["--train.minutes", str(args.minutes)]
    words = ["train", "--config", "configs/stain.yaml", "--train.output", str(run.folder), "--overwrite"]
    run_command([*words, "--train.seed", str(args.seed), "--data.path", str(pairs), *BLOCK, *length])
    evaluation = evaluate_predictor(run)
    save_predictor_evaluation(evaluation, args.folder)
    scores = {name: evaluation.record["scores"][score] for name, score in SCORES.items()}
    print(f"{machine()}.\n\n{score_table(scores)}")
    if args.record:
        append_rows("stain", [{"image": str(args.image), "minutes": args.minutes, "seed": args.seed, "scores": scores}])


if __name__ == "__main__":
    main()
