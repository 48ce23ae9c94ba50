"""The predict command."""

import argparse

from ..core.errors import UserError
from ..core.progress import no_progress, shared_bar
from ..core.settings import settings_from
from ..runs.predict import ImagePredictor
from ..runs.predicted_arrays import Extras
from ..runs.predicted_files import inputs_of, job_of, predict_files
from ..runs.prediction import PredictConfig, PredictionConfig
from ..runs.run import Run
from ..training.processes import from_main, this_process
from .console import begin, user_friendly
from .flags import add_flags, parse_flags


@user_friendly
def predict(argv: list[str]) -> int:
    """Predict the classes or numbers of images or volumes: files or folders in, files of the same names out.

    The same command resumes an interrupted prediction. A launcher, such as torchrun, shares the files among processes.
    """
    parser = argparse.ArgumentParser(prog="diffunet predict", description=predict.__doc__)
    parser.add_argument(
        "words", metavar="RUN... IMAGE...", nargs="+", help="run folders, of which the mean is predicted; then images"
    )
    parser.add_argument("--output", metavar="FOLDER", help="empty folder [default: RUN/predictions/000, ...]")
    parser.add_argument(
        "--probabilities", action="store_true", help="also write NAME.probabilities.npy, (K, H, W) fp16"
    )
    parser.add_argument("--overlays", action="store_true", help="also write the classes on the images, for looking")
    parser.add_argument("--objects", action="store_true", help="also write objects/NAME.png, a number for each object")
    parser.add_argument(
        "--members", action="store_true", help="also write each sample, view or run behind the mean, to members/NAME"
    )
    add_flags(parser, PredictConfig)
    args, flags = parse_flags(parser, argv)
    runs = [Run(word) for word in args.words if Run(word).exists]
    images = args.words[len(runs) :]
    if not runs or any(Run(word).exists for word in images):
        Run(args.words[0]).config(PredictionConfig)
        raise UserError("predict: runs come first, and images after them")
    if not images:
        raise UserError(f"{args.words[-1]}: a run; add images to predict, files or folders")
    config = settings_from(runs[0].config(PredictionConfig).predict, PredictConfig, flags)
    extras = Extras(args.probabilities, args.overlays, args.objects, args.members)
    process = this_process()
    predictor = ImagePredictor(runs, config)
    dims = predictor.own.unet.dims
    inputs = inputs_of(images, predictor.own.data.channels, dims)
    job = job_of(predictor, inputs, extras)
    with process.connected():
        folder = from_main(process, lambda: begin(args.output, runs[0].folder / "predictions", job))
    bar = shared_bar("predict", "volume" if dims == 3 else "image", len(inputs) // process.of)
    skipped = predict_files(predictor, inputs, folder, extras, bar if process.is_main_process else no_progress)
    if skipped is not None:
        print(f"{len(inputs) - skipped} predictions: {folder}")
    return 2 if skipped == len(inputs) else 0
