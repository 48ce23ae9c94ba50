"""Images of 64×64 pixels in the same minutes: by pixels, in blocks, and in latents of an autoencoder of their own.

    python benchmarks/latents.py EMOJI --minutes 120 --folder runs/latents
    python benchmarks/latents.py EMOJI --minutes 60 --ways autoencoder plain lpips --lpips VGG16 --folder runs/latents
    python benchmarks/latents.py EMOJI --speed --folder runs/speed                     steps, images and memory of each
    python benchmarks/latents.py --tiny --folder runs/rehearsal                        digits, two steps

EMOJI is an image folder with a column `category` in its metadata.jsonl, the class. `pixels`, `unshuffle-2`,
`unshuffle-4` and `latents` are generators, compared with the images by features of efficientnet-lite0
(benchmarks/efficientnet.py); the autoencoder of `latents` has a third of its minutes. `autoencoder`, `plain` (without
equivariance) and `lpips` (with LPIPS, of which VGG16 is the file --lpips) are autoencoders alone, scored on held-out
images.
Interrupted, the same command continues. FOLDER gets rows.jsonl and a grid of each generator.
"""

import argparse
import json
import resource
import shutil
import time
from multiprocessing import get_context
from pathlib import Path

import torch
from efficientnet import efficientnet_features
from records import add_record_flag, append_rows, machine, run_command, table

from diffunet.evaluation.features import FeatureExtractor, PixelFeatures
from diffunet.runs.autoencoding import evaluate_autoencoder
from diffunet.runs.evaluate import evaluate_denoiser, real_images
from diffunet.runs.run import Run
from diffunet.tasks.autoencoding import load_lpips
from diffunet.training.log import read_log

FINE = "[{channels: 32, blocks: 1}, {channels: 64, blocks: 1}, {channels: 96, blocks: 1, attention: true}, {channels: 128, blocks: 1}]"  # noqa: E501
MIDDLE = "[{channels: 64, blocks: 1}, {channels: 96, blocks: 1, attention: true}, {channels: 128, blocks: 1}]"
COARSE = "[{channels: 96, blocks: 1, attention: true}, {channels: 128, blocks: 1}]"
GENERATORS = {"pixels": (FINE, 1), "unshuffle-2": (MIDDLE, 2), "unshuffle-4": (COARSE, 4), "latents": (COARSE, 1)}
"""Levels of the U-Net, and its `unshuffle`."""
AUTOENCODERS = {
    "autoencoder": [],
    "plain": ["--objective.equivariance", "0"],
    "lpips": ["--objective.perceptual", "1", "--objective.perceptual_weights"],
}
"""Flags of each autoencoder."""
LATENTS_SHARE = 1 / 3
"""Of the minutes of `latents`, for its autoencoder."""
MEASURED = (4, 14)
"""Steps of two trainings, of which the difference is measured."""
SAMPLED = 32
"""Images of which the time to sample them, in 15 calls, is measured."""


def length(args: argparse.Namespace, share: float = 1) -> list[str]:
    if args.speed:
        return ["--train.steps", str(args.steps), "--train.runtime.compile", "false"]
    if args.tiny:
        return ["--train.steps", "2", "--train.batch_size", "4"]
    return ["--train.minutes", str(args.minutes * share)]


def data(args: argparse.Namespace) -> list[str]:
    if args.tiny:
        return ["--data.path", "digits", "--data.resolution", "16"]
    return ["--data.path", str(args.data), "--data.resolution", "64", "--data.channels", "3", "--data.bit_depth", "8"]


def quiet(args: argparse.Namespace, output: Path) -> list[str]:
    every = ["--train.preview_every", "100000000", "--train.checkpoint_every", "100000000"]
    return ["--train.output", str(output), "--overwrite", "--train.seed", str(args.seed), *every]


def compress(name: str, args: argparse.Namespace, share: float = 1) -> Run:
    """Train an autoencoder, and return its run; share: of the minutes."""
    run = Run(args.folder / f"{name}{'-of-latents' * (share < 1)}-{args.seed}")
    words = ["train", "--config", "configs/autoencoder.yaml", *data(args), *quiet(args, run.folder)]
    flags = [*AUTOENCODERS[name], *([args.lpips] if name == "lpips" else [])]
    run_command([*words, *length(args, share), *flags])
    return run


def generate(name: str, args: argparse.Namespace) -> Run:
    """Train a generator, and return its run."""
    levels, unshuffle = GENERATORS[name]
    run = Run(args.folder / f"{name}-{args.seed}")
    column = {"type": "label"} if args.tiny else {"type": "label", "column": "category"}
    words = ["train", "--config", "configs/unshuffle.yaml", *data(args), *quiet(args, run.folder)]
    words += ["--unet.levels", levels, "--unet.unshuffle", str(unshuffle)]
    words += ["--conditions", json.dumps({"label": column})]
    share = 1.0
    if name == "latents":
        compressor = args.compressor or compress("autoencoder", args, LATENTS_SHARE)
        words += ["--codec.from", str(compressor.folder)]
        share -= LATENTS_SHARE
    run_command([*words, *length(args, share), *args.flags])
    return run


def measure(name: str, args: argparse.Namespace, features: FeatureExtractor) -> dict:
    started = time.perf_counter()
    if name in AUTOENCODERS:
        run = compress(name, args)
        minutes = (time.perf_counter() - started) / 60
        distance = load_lpips(args.lpips) if args.lpips else None
        record, _ = evaluate_autoencoder(run, distance=distance, features=features)
        scores = record["scores"]
    else:
        run = generate(name, args)
        minutes = (time.perf_counter() - started) / 60
        own = run.config()
        sampling = own.sample.model_copy(update={"num_images": 8 if args.tiny else args.samples, "steps": 15})
        evaluation = evaluate_denoiser(
            run, run.denoiser(), sampling, real_images(own, own.data, run.folder / "model"), features
        )
        scores = evaluation.record["metrics"]
        shutil.copy(run.folder / "samples" / f"step_{own.train.steps:08d}.png", args.folder / f"{name}.png")
    steps = read_log(run.folder / "log.jsonl")[-1]["step"]
    speed = [line["images_per_second"] for line in read_log(run.folder / "log.jsonl")]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    about = {"name": name, "seed": args.seed, "minutes": minutes, "steps": steps, "peak_gib_so_far": memory}
    return about | {"images_per_second": sorted(speed)[len(speed) // 2], "scores": scores}


def speed(name: str, args: argparse.Namespace) -> dict:
    """Return processor seconds and memory of a generator, or of an autoencoder; for a process of its own."""
    spent, train = [], compress if name in AUTOENCODERS else generate
    args.steps = 1
    args.compressor = compress("autoencoder", args, LATENTS_SHARE) if name == "latents" else None
    train(name, args)  # imports, and caches
    for args.steps in MEASURED:
        started = time.process_time()
        run = train(name, args)
        spent.append(time.process_time() - started)
    row = {"name": name, "seconds_per_step": (spent[1] - spent[0]) / (MEASURED[1] - MEASURED[0])}
    row["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if name in GENERATORS:
        started = time.process_time()
        run.sample(num_images=SAMPLED, steps=15, batch_size=SAMPLED)
        row["seconds_per_sample"] = (time.process_time() - started) / SAMPLED
    return row


def print_speed(args: argparse.Namespace) -> None:
    rows = []
    for name in [*GENERATORS, "autoencoder"]:
        with get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(speed, (name, args)))
    heads = ["", "s per step", "GiB", "s per sample"]
    cells = ("seconds_per_step", "peak_gib", "seconds_per_sample")
    lines = [[row["name"], *(f"{row[cell]:.3g}" if cell in row else "" for cell in cells)] for row in rows]
    print(f"\n{machine()}, processor seconds.\n\n{table(heads, lines)}")
    if args.record:
        append_rows("latents", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="EMOJI", nargs="?", type=Path, help="an image folder with categories")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=120, help="of each (%(default)s)")
    ways = [*GENERATORS, *AUTOENCODERS]
    parser.add_argument("--ways", nargs="+", choices=ways, default=list(GENERATORS))
    parser.add_argument("--samples", type=int, default=1000, help="of each generator (%(default)s)")
    parser.add_argument("--lpips", metavar="VGG16", help="weights in the format of torchvision's; none: without LPIPS")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--speed", action="store_true", help="measure a few steps of each, and what they take")
    parser.add_argument("--tiny", action="store_true", help="two steps")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="further flags of the generators, last")
    add_record_flag(parser)
    parser.set_defaults(compressor=None)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.speed:
        return print_speed(args)
    features = PixelFeatures(8) if args.tiny else efficientnet_features()
    file = args.folder / "rows.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for name in args.ways:
        if not any((row["name"], row["seed"]) == (name, args.seed) for row in rows):
            rows.append(measure(name, args, features))
            with open(file, "a", encoding="utf-8") as opened:
                opened.write(json.dumps(rows[-1]) + "\n")
    print(f"\n{machine()}, {torch.get_num_threads()} threads.")
    for kinds in (GENERATORS, AUTOENCODERS):
        shown = [row for row in rows if row["name"] in kinds]
        if shown:
            heads = ["", "minutes", "steps", "images/s", *shown[0]["scores"]]
            lines = [
                [row["name"], f"{row['minutes']:.3g}", f"{row['steps']:,}", f"{row['images_per_second']:.3g}"]
                + [f"{each['value']:.4g} ± {each['error']:.2g}" for each in row["scores"].values()]
                for row in shown
            ]
            print(f"\n{table(heads, lines)}")
    if args.record:
        append_rows("latents", rows)


if __name__ == "__main__":
    main()
