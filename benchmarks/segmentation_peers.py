"""Membranes by four recipes in the same minutes on this machine: diffunet's, that of 2015, and those of two libraries.

    pip install monai segmentation-models-pytorch
    python benchmarks/segmentation_peers.py --data EM --minutes 5 15 30 --folder runs/peers
    python benchmarks/segmentation_peers.py --data EM --time 3 --folder runs/peers             first, if other work runs
    python benchmarks/segmentation_peers.py --tiny --folder runs/rehearsal                     built-in images

EM has images/ and labels/ of ISBI 2012, whose last third is held out as a block (benchmarks/membranes.py); without it,
the built-in membranes. As many threads for each, one after the other:

- diffunet: configs/membranes.yaml, whose settings were chosen in this project, on small electron micrographs;
- 2015 (Ronneberger et al.), by diffunet's parts: the preset unet2015 with valid borders at a quarter of its width, one
  large patch a step, SGD with momentum 0.99, cross-entropy with border weights, elastic deformation and rotation. The
  paper gives no learning rate; here it is 1e-3;
- MONAI and segmentation-models-pytorch as their tutorials combine them (benchmarks/baselines/segmentation.py).

Only training counts. The first two decay their learning rate to the end, so each of the minutes is a training of its
own; those of the libraries are constant, so that one training is scored at each of the minutes. *Took* is the clock,
for the first two with start-up. `--time` measures the steps that each makes in a minute, in turn; later calls in the
same FOLDER then train that many steps for each minute, so that other work on the machine is no one's loss. All are
scored in the same way, by the most probable class; *watershed* is V_rand of the objects that `diffunet predict` makes
of each method's probabilities, and *best threshold* that at the probability that is best on training slices.
Interrupted, the same command continues.
FOLDER gets rates.json, rows.jsonl, peers.md and the probabilities of a cell in the held-out slices, fp16, as .npy.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from records import add_record_flag, append_rows, machine, mean_std, run_command
from records import table as markdown
from torch import Tensor

sys.path.append(str(Path(__file__).parent / "baselines"))
from segmentation import PEERS, Peer

from diffunet.data.paired import PairedData, load_pairs
from diffunet.data.pairs import PairConfig
from diffunet.evaluation.comparison import Comparison, Judge, PredictedCase
from diffunet.evaluation.instances import (
    rand_scores,
    scores_over_thresholds,
    segments_of,
    thinned,
    watershed_segments,
)
from diffunet.evaluation.references import evenly_spaced
from diffunet.runs.predict import ImagePredictor
from diffunet.runs.prediction import PredictConfig
from diffunet.runs.run import Run
from diffunet.training.log import read_log

PAPER = ["--unet.preset", "unet2015", "--unet.in_channels", "1", "--unet.levels"]
PAPER += [json.dumps([{"channels": w, "from_coarser": w} for w in (16, 32, 64, 128)] + [{"channels": 256, "up": []}])]
PAPER += ["--data.patch", "444", "--train.batch_size", "1", "--train.optimizer", "sgd", "--train.momentum", "0.99"]
PAPER += ["--train.learning_rate", "1e-3", "--train.lr_schedule", "poly", "--objective.dice", "0"]
PAPER += ["--weights.border", "10", "--augment.rotate", "180", "--augment.elastic", "10"]
PAPER += ["--augment.contrast", "0", "--augment.brightness", "0"]
OWN = {"diffunet": [], "2015": PAPER}
BLOCK = {"fold_by": "order", "folds": 3, "fold": 2, "class_names": ("membrane", "cell")}
SCORES = {"Dice, membrane": "dice/membrane", "pixel error": "pixel_error", "V_rand": "v_rand", "V_info": "v_info"}
SCORES |= {"adapted Rand error": "adapted_rand_error"}
THRESHOLDS = [n / 20 for n in range(2, 20)]
"""Of the probability of a cell."""
FITTED = 10
"""Training slices, at most, on which the threshold is chosen."""
TIMED = 40
"""Steps by which a method's speed is measured."""
Predict = Callable[[Tensor], Tensor]
"""From an image (1, H, W) to probabilities (2, H, W)."""


@dataclass(frozen=True)
class Trained:
    """A method after some of the minutes."""

    minutes: float
    seconds: float
    steps: int
    predict: Predict


def run_own(method: str, run: Run, seed: int, args: argparse.Namespace, *flags: str) -> list[dict]:
    """Train with diffunet, and return the log."""
    words = ["train", "--config", "configs/membranes.yaml", "--train.output", str(run.folder), "--overwrite"]
    words += ["--train.seed", str(seed), "--train.preview_every", "1000000", "--train.checkpoint_every", "1000000"]
    words += ["--data.path", args.data, "--data.class_names", "[membrane, cell]"]
    words += ["--data.fold_by", "order", "--data.folds", "3", "--data.fold", "2"]
    run_command([*words, *OWN[method], *flags])
    return read_log(run.folder / "log.jsonl")


def train_own(
    method: str, minutes: list[float], seed: int, args: argparse.Namespace, rate: float | None
) -> Iterator[Trained]:
    """Train with diffunet, for each of the minutes anew. rate: steps for each minute; None: by the clock."""
    for each in minutes:
        run = Run(args.folder / f"{method}-{each:g}-{seed}")
        length = ["--train.steps", str(round(rate * each))] if rate else ["--train.minutes", str(each)]
        started = perf_counter()
        log = run_own(method, run, seed, args, *(["--train.steps", "2"] if args.tiny else length))
        yield Trained(each, perf_counter() - started, int(log[-1]["step"]), predict_with(ImagePredictor([run])))


def steps_per_minute(method: str, args: argparse.Namespace, pairs: PairedData) -> float:
    """Return the steps that a method makes in a minute, once it is under way."""
    if method in OWN:
        flags = "--train.steps", str(TIMED), "--train.log_every", "5"
        lines = run_own(method, Run(args.folder / f"{method}-timed"), 0, args, *flags)[1:]
        size = 1 if method == "2015" else 8
        return 60 / size * float(np.median([line["images_per_second"] for line in lines]))
    peer = build_peer(method, 0, pairs)
    times = []
    for _ in range(TIMED):
        started = perf_counter()
        peer.step()
        times.append(perf_counter() - started)
    return 60 / float(np.median(times[5:]))


def predict_with(predictor: ImagePredictor) -> Predict:
    return lambda image: predictor(image).mean


def build_peer(method: str, seed: int, pairs: PairedData) -> Peer:
    trained, _ = pairs.split_fold()
    return PEERS[method]([(pairs.cases[i].image, pairs.cases[i].target.long()) for i in trained], seed)


def train_peer(
    method: str, minutes: list[float], seed: int, pairs: PairedData, rate: float | None
) -> Iterator[Trained]:
    """Train with another library once, pausing the clock at each of the minutes. rate: as for `train_own`."""
    peer = build_peer(method, seed, pairs)
    seconds, steps = 0.0, 0
    for each in sorted(minutes):
        started = perf_counter() - seconds
        while (seconds := perf_counter() - started) < 60 * each if rate is None else steps < rate * each:
            peer.step()
            steps += 1
        yield Trained(each, perf_counter() - started, steps, peer.predict)


def score(predict: Predict, pairs: PairedData) -> tuple[dict[str, float], dict[str, dict], np.ndarray]:
    """Return the scores of the held-out slices, those of references by name, and the probabilities (N, H, W) fp16."""
    trained, held_out = pairs.split_fold()
    curves = []
    for index in evenly_spaced(trained, FITTED):
        case = pairs.cases[index]
        truth = segments_of(case.target.numpy() == 1)
        curves.append(scores_over_thresholds(predict(case.image)[1].numpy(), truth, THRESHOLDS)["v_rand"])
    threshold = THRESHOLDS[int(np.mean(curves, axis=0).argmax())]
    comparison, at_best, divided, kept = Comparison(Judge.of(pairs.cases, pairs.labels, held_out, trained)), [], [], []
    for index in held_out:
        case = pairs.cases[index]
        output = predict(case.image)
        comparison.add(PredictedCase(case, output))
        truth = segments_of(case.target.numpy() == 1)
        at_best.append(scores_over_thresholds(output[1].numpy(), truth, [threshold])["v_rand"][0])
        divided.append(divided_v_rand(output[1].numpy(), truth))
        kept.append(output[1].numpy().astype(np.float16))
    rows = comparison.record({}, {}, "training slices")["scores"]
    found = {name: rows[score]["value"] for name, score in SCORES.items()}
    found |= {"V_rand, watershed": float(np.mean(divided))}
    found |= {"V_rand, best threshold": float(np.mean(at_best)), "threshold": threshold}
    names = rows["pixel_error"]["references"]
    return found, {name: {s: rows[r]["references"][name] for s, r in SCORES.items()} for name in names}, np.stack(kept)


def divided_v_rand(probability: np.ndarray, truth: np.ndarray) -> float:
    """Return V_rand of the cells (H, W) that a watershed divides as `diffunet predict` does by default."""
    segments = watershed_segments(probability, -probability, seed_below=-PredictConfig().watershed)
    return rand_scores(thinned(segments), truth)["v_rand"]


def table(rows: list[dict]) -> str:
    """Return the mean over seeds ± standard deviation by method and minutes, in Markdown."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["method"], row["minutes"]].append(row)
    names = list(rows[0]["scores"])
    lines = []
    for (method, minutes), found in sorted(groups.items(), key=lambda item: item[0][1]):
        values = [mean_std([row["scores"][name] for row in found]) for name in names]
        took = mean_std([row["seconds"] / 60 for row in found])
        lines.append([method, f"{minutes:g}", took, f"{found[0]['steps']:,}", *values, str(len(found))])
    for name, values in rows[0]["references"].items():
        cells = ("" if values.get(score) is None else f"{values[score]:.3g}" for score in names)
        lines.append([f"*{name}*", "", "", "", *cells, ""])
    return markdown(["method", "minutes", "took", "steps", *names, "seeds"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="EM", default="membranes", help="a folder with images/ and labels/")
    parser.add_argument("--minutes", type=float, nargs="+", default=[5, 15, 30])
    parser.add_argument("--methods", nargs="+", default=[*OWN, *PEERS], choices=[*OWN, *PEERS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--time", type=int, metavar="ROUNDS", help="measure the steps per minute, and end")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="seconds for each method")
    add_record_flag(parser)
    args = parser.parse_args()
    if args.tiny:
        args.minutes, args.seeds = [0.02], [0]
    args.folder.mkdir(parents=True, exist_ok=True)
    file = args.folder / "rows.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    pairs = load_pairs(PairConfig.model_validate({"path": args.data, **BLOCK}), "segmentation")
    timed = args.folder / "rates.json"
    if args.time:
        rounds = [[steps_per_minute(method, args, pairs) for method in args.methods] for _ in range(args.time)]
        found = {"rates": dict(zip(args.methods, np.median(rounds, 0).tolist(), strict=True)), "rounds": rounds}
        timed.write_text(json.dumps(found, indent=2), encoding="utf-8")
        return print(timed.read_text(encoding="utf-8"))
    rates = json.loads(timed.read_text(encoding="utf-8"))["rates"] if timed.exists() else {}
    for seed in args.seeds:
        for method in args.methods:
            done = {row["minutes"] for row in rows if (row["method"], row["seed"]) == (method, seed)}
            left = [minutes for minutes in args.minutes if minutes not in done]
            rate = rates.get(method)
            own = method in OWN
            train = train_own(method, left, seed, args, rate) if own else train_peer(method, left, seed, pairs, rate)
            for trained in train if left else ():
                scores, references, probabilities = score(trained.predict, pairs)
                name = f"{method}-{trained.minutes:g}-{seed}.npy".replace(", ", "-").replace(" ", "-")
                np.save(args.folder / name, probabilities)
                row = {"method": method, "minutes": trained.minutes, "seed": seed, "threads": torch.get_num_threads()}
                row |= {"seconds": trained.seconds, "steps": trained.steps, "scores": scores, "references": references}
                rows.append(row)
                with open(file, "a", encoding="utf-8") as opened:
                    opened.write(json.dumps(row) + "\n")
    text = f"{machine()}, {rows[0]['threads']} threads.\n\n{table(rows)}"
    (args.folder / "peers.md").write_text(text, encoding="utf-8")
    print(text)
    if args.record:
        append_rows("segmentation-peers", rows)


if __name__ == "__main__":
    main()
