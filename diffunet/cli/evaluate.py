"""The commands that measure: evaluate, ema."""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..core.errors import UserError
from ..core.progress import shared_bar
from ..core.runtime import default_device
from ..core.settings import settings_from
from ..core.storage import atomic_write
from ..evaluation.comparison import format_comparison
from ..evaluation.compressed import format_compressed
from ..evaluation.report import format_record
from ..runs.autoencoding import AutoencoderEvaluationConfig, AutoencoderRunConfig, evaluate_autoencoder
from ..runs.ema_length import publish_length
from ..runs.evaluate import EvaluationConfig, evaluate_folder, sample_for, save_evaluation
from ..runs.evaluate import evaluate as evaluate_run
from ..runs.evaluate_prediction import (
    EvaluatedPairs,
    evaluate_files,
    evaluate_predictor,
    save_predictor_evaluation,
)
from ..runs.figures import save_comparison
from ..runs.pocket_scores import format_pockets
from ..runs.prediction import PredictConfig, PredictionConfig
from ..runs.run import Run
from ..runs.samples import next_folder
from ..runs.shared_samples import SharedSamples
from ..sampling.generate import SampleConfig
from ..tasks.autoencoding import load_lpips
from ..training.ema import MAX_STD, MIN_STD
from ..training.processes import this_process
from .console import add_condition_flags, check_single_process, check_writable, user_friendly
from .flags import add_flags, parse_flags


@user_friendly
def evaluate(argv: list[str]) -> int:
    """Evaluate a run, or a folder of images, against real images.

    New images of a run are sampled first, under a launcher by all its processes; the same command resumes them. The
    record is written to RUN/evaluations, or for a folder to --output, with the samples that are closest to real images.
    A run of predictions is evaluated against the targets of the cases that it holds out, and a folder of predictions
    with --targets FOLDER against those; RUN --help lists the options.
    """
    if _is_prediction(argv):
        return _evaluate_prediction(argv)
    if _first_task(argv) == AutoencoderRunConfig.task:
        return _evaluate_autoencoder(argv)
    parser = argparse.ArgumentParser(prog="diffunet evaluate", description=evaluate.__doc__)
    parser.add_argument("source", metavar="RUN", help="a run folder, or a folder of images (with --data.path)")
    parser.add_argument("--output", metavar="FOLDER", help="for the record [default: RUN/evaluations/000, ...]")
    args, sampling, flags = _parse(parser, argv)
    run, collect = Run(args.source), None
    if run.exists or not run.folder.is_dir():
        own = run.config()
        config = settings_from(EvaluationConfig(data=own.data), EvaluationConfig, flags)
        sample = settings_from(own.sample, SampleConfig, sampling)
        folder = Path(args.output) if args.output else next_folder(run.folder / "evaluations")
        check_writable(folder)
        process = this_process()
        collect = SharedSamples(run.folder / "evaluations")
        if not process.is_main_process:
            sample_for(run, config, sample, collect.assist)
            return 0
        bar = shared_bar("sample", "step", sample.total_steps // process.of)
        evaluation = evaluate_run(run, config, sample, bar, collect)
    else:
        check_single_process("diffunet evaluate FOLDER")
        if "data.path" not in flags or not args.output:
            raise UserError(f"{run.folder}: not a run; for a folder of images add --data.path DATA and --output FOLDER")
        for flag in sampling.keys() - {"num_images"}:
            raise UserError(f"--{flag}: applies to sampling from a run, but {run.folder} is a folder of images")
        number = settings_from(SampleConfig(), SampleConfig, sampling).num_images if sampling else None
        folder = Path(args.output)
        check_writable(folder)
        config = settings_from(EvaluationConfig(), EvaluationConfig, flags)
        evaluation = evaluate_folder(run.folder, config, number, shared_bar)
    save_evaluation(evaluation, folder)
    if collect:
        collect.close()
    print(format_record(evaluation.record))
    print(f"{folder}: evaluation.json; closest_in_*.png, with samples on the left, the nearest real image on the right")
    return 0


def _is_prediction(argv: list[str]) -> bool:
    """Return whether the command line is about predictions: of a run, or in a folder beside targets."""
    targets = any(word.partition("=")[0] == "--targets" for word in argv)
    return targets or _first_task(argv) == PredictionConfig.task


def _first_task(argv: list[str]) -> str | None:
    """Return the task of the first run on the command line."""
    return next((Run(word).task for word in argv if not word.startswith("-") and Run(word).exists), None)


def _evaluate_autoencoder(argv: list[str]) -> int:
    """Compress the images that an autoencoder's run holds out, and compare them with the originals.

    The record and the images that changed most are written to RUN/evaluations.
    """
    check_single_process("diffunet evaluate")
    parser = argparse.ArgumentParser(prog="diffunet evaluate", description=_evaluate_autoencoder.__doc__)
    parser.add_argument("source", metavar="RUN", help="the run of an autoencoder")
    parser.add_argument("--output", metavar="FOLDER", help="for the record [default: RUN/evaluations/000, ...]")
    add_flags(parser, AutoencoderEvaluationConfig)
    args, flags = parse_flags(parser, argv)
    run = Run(args.source)
    own = run.config(AutoencoderRunConfig)
    config = settings_from(AutoencoderEvaluationConfig(data=own.data), AutoencoderEvaluationConfig, flags)
    weights = config.perceptual_weights
    distance = load_lpips(weights, "--perceptual_weights").to(default_device()) if weights else None
    folder = Path(args.output) if args.output else next_folder(run.folder / "evaluations")
    check_writable(folder)
    record, rows = evaluate_autoencoder(run, config, distance, _bar)
    with atomic_write(folder / "evaluation.json") as file:
        file.write_text(json.dumps(record, indent=2), encoding="utf-8")
    save_comparison(folder / "changed_most.png", rows)
    print(format_compressed(record))
    print(f"{folder}: evaluation.json; changed_most.png")
    return 0


def _evaluate_prediction(argv: list[str]) -> int:
    """Evaluate a run of predictions against the targets of held-out cases, or a folder of predictions.

    The record and the worst cases are written to RUN/evaluations, or for a folder to --output, if given.
    """
    check_single_process("diffunet evaluate")
    parser = argparse.ArgumentParser(prog="diffunet evaluate", description=_evaluate_prediction.__doc__)
    parser.add_argument(
        "source", metavar="RUN", help="a run folder, or a folder of label images or numbers (with --targets)"
    )
    parser.add_argument(
        "--targets", metavar="FOLDER", help="the true label images or numbers of a folder, of the same names"
    )
    parser.add_argument("--output", metavar="FOLDER", help="for the record [default: RUN/evaluations/000, ...]")
    add_flags(parser, PredictConfig)
    add_flags(parser, EvaluatedPairs)
    args, flags = parse_flags(parser, argv)
    about_cases = {name: word for name, word in flags.items() if name.startswith("data.")}
    about_predictions = {name: word for name, word in flags.items() if name not in about_cases}
    run = Run(args.source)
    if args.targets is None:
        own = run.config(PredictionConfig)
        data = settings_from(EvaluatedPairs(data=own.data), EvaluatedPairs, about_cases).data if about_cases else None
        predict = settings_from(own.predict, PredictConfig, about_predictions)
        folder = Path(args.output) if args.output else next_folder(run.folder / "evaluations")
        check_writable(folder)
        evaluation = evaluate_predictor(run, data, predict, _bar)
    else:
        if run.exists or not run.folder.is_dir():
            problem = "a run, whose targets are --data.targets" if run.exists else "no such folder"
            raise UserError(f"{run.folder}: {problem}; --targets is for a folder of predictions")
        for flag in about_predictions:
            raise UserError(f"--{flag}: applies to predicting with a run, but {run.folder} is a folder of predictions")
        data = settings_from(EvaluatedPairs(), EvaluatedPairs, about_cases | {"data.targets": args.targets}).data
        folder = Path(args.output) if args.output else None
        if folder:
            check_writable(folder)
        evaluation = evaluate_files(run.folder, data, _bar)
    print(format_comparison(evaluation.record))
    if "pockets" in evaluation.record:
        print(format_pockets(evaluation.record["pockets"]))
    if folder:
        save_predictor_evaluation(evaluation, folder)
        print(f"{folder}: evaluation.json; worst.png, the worst cases")
    return 0


def _bar(cases: Sequence[int]) -> Iterable[int]:
    return shared_bar("evaluate", "case", len(cases))(cases)


@user_friendly
def ema(argv: list[str]) -> int:
    """Choose the EMA length of a run's weights after its training.

    A single length becomes the run's model. Several are evaluated as `diffunet evaluate` does, and the one with the
    least Fréchet distance becomes its model.
    """
    check_single_process("diffunet ema")
    parser = argparse.ArgumentParser(prog="diffunet ema", description=ema.__doc__)
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument(
        "lengths", metavar="LENGTH", nargs="+", help=f"as a share of the training, {MIN_STD} to {MAX_STD}"
    )
    args, sampling, flags = _parse(parser, argv)
    run = Run(args.run)
    own, lengths = run.config(), [_length(word) for word in args.lengths]
    config = settings_from(EvaluationConfig(data=own.data), EvaluationConfig, flags)
    sample = settings_from(own.sample, SampleConfig, sampling)
    bar = shared_bar("sample", "step", len(lengths) * sample.total_steps)
    best = publish_length(run, lengths, config, sample, _between_bars, bar)
    print(f"{run.folder}/model: now the EMA of length {best}; --resume restores the EMA of train.ema_decay")
    return 0


def _parse(parser: argparse.ArgumentParser, argv: list[str]) -> tuple[argparse.Namespace, dict, dict]:
    """Return the arguments, the flags of the sampling and those of the evaluation."""
    add_condition_flags(parser, argv)
    add_flags(parser, SampleConfig)
    add_flags(parser, EvaluationConfig)
    args, flags = parse_flags(parser, argv)
    own = {name for name in flags if name.split(".")[0] in EvaluationConfig.model_fields}
    return args, {n: v for n, v in flags.items() if n not in own}, {n: v for n, v in flags.items() if n in own}


def _between_bars(line: str) -> None:
    """Print a line above the bar that is shown, if any."""
    from tqdm import tqdm

    tqdm.write(line)
    sys.stdout.flush()


def _length(word: str) -> float:
    try:
        length = float(word)
    except ValueError:
        length = -1.0
    if not MIN_STD <= length <= MAX_STD:
        raise UserError(f"LENGTH: {word} is not a number from {MIN_STD} to {MAX_STD}; try 0.1")
    return length
