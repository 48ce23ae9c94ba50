"""One prediction against samples of the target: the same config, data and minutes, with another objective.

    python benchmarks/posterior.py --minutes 20 --folder runs/posterior                          numbers: a stain
    python benchmarks/posterior.py --config configs/membranes.yaml --folder runs/posterior       classes
    python benchmarks/posterior.py --tiny --folder runs/rehearsal

A row is the predictor, the mean of the samples, or one sample, scored on the held-out cases as `diffunet evaluate`
does. sharpness: squared gradient of the output over that of the target. deviation and error: their correlation over
places, of the samples, or of an error that is the same everywhere in a case (none). deviation / error: root mean square
of both, 1 for exact samples. FOLDER gets the runs and posterior.md.
"""

import argparse
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from records import add_record_flag, append_rows, machine, run_command
from records import table as markdown
from torch import Tensor

from diffunet.data.cases import Case
from diffunet.data.labels import UNKNOWN
from diffunet.data.paired import load_pairs
from diffunet.evaluation.comparison import Judge, PredictedCase
from diffunet.evaluation.scores import CaseScores, summarize
from diffunet.runs.predict import ImagePredictor
from diffunet.runs.prediction import PredictConfig, PredictionConfig
from diffunet.runs.run import Run
from diffunet.training.log import read_log

SCORES = {
    "regression": ["rmse", "mae", "pearson", "ssim"],
    "segmentation": ["dice", "pixel_error", "brier", "calibration_error", "v_rand", "ap50"],
}
QUIET = ["--train.preview_every", "1000000", "--train.checkpoint_every", "1000000"]
TINY = ["--train.steps", "2", "--train.batch_size", "1"]


@dataclass
class Row:
    """Scores of one kind of output, case by case."""

    cases: list[CaseScores] = field(default_factory=list)
    sharpness: list[float] = field(default_factory=list)
    correlation: list[float] = field(default_factory=list)
    ratio: list[float] = field(default_factory=list)


def train(config: str, folder: Path, length: list[str], *flags: str) -> Run:
    """Train a config with some flags, and return the run."""
    run = Run(folder)
    run_command(
        ["train", "--config", config, "--train.output", str(folder), "--overwrite", *QUIET, *length, *flags],
    )
    return run


def gradient(values: Tensor) -> float:
    """Return the sum of the squared differences between neighbors, (K, H, W), where both are known."""
    return sum(float(values.diff(dim=axis).square().nansum()) for axis in (-1, -2))


def target_of(case: Case, channels: int) -> Tensor:
    """Return the target as numbers, (K, H, W), NaN where unknown; classes one-hot."""
    if case.target.is_floating_point():
        return case.target
    one_hot = torch.nn.functional.one_hot(case.target.clamp(min=0).long(), channels).permute(2, 0, 1).float()
    return one_hot.masked_fill(case.target == UNKNOWN, torch.nan)


def measure(run: Run, settings: PredictConfig, names: tuple[str, str], limit: int | None) -> dict[str, Row]:
    """Return rows by name, of the mean and, if there are several members, of the first of them."""
    config = run.config(PredictionConfig)
    pairs = load_pairs(config.data, config.kind, log=lambda text: None)
    others, held_out = pairs.split_fold()
    held_out = held_out[:limit]
    judge, predictor = Judge.of(pairs.cases, pairs.labels, held_out, others), ImagePredictor([run], settings)
    rows: dict[str, Row] = defaultdict(Row)
    for index in held_out:
        case, members = pairs.cases[index], []
        prediction = predictor(case.image, watch=members.append)
        target = target_of(case, predictor.channels)
        known = ~target.isnan()
        outputs = {names[0]: prediction.mean, **({names[1]: members[0]} if len(members) > 1 else {})}
        for name, output in outputs.items():
            rows[name].cases.append(judge.scores_of(PredictedCase(case, output)))
            masked = output.masked_fill(~known, torch.nan)
            rows[name].sharpness.append(gradient(masked) / max(gradient(target), 1e-12))
        if len(members) > 1:
            error, std = (prediction.mean - target).abs()[known].numpy(), prediction.std[known].numpy()
            rows[names[0]].correlation.append(float(np.corrcoef(std, error)[0, 1]))
            unbiased = np.square(std).mean() * (len(members) + 1) / (len(members) - 1)  # of the error of a mean of few
            rows[names[0]].ratio.append(float(np.sqrt(unbiased / np.square(error).mean())))
    return dict(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/stain.yaml")
    parser.add_argument("--minutes", type=float, default=10, help="of each training (%(default)s)")
    parser.add_argument("--samples", type=int, default=16, help="of each case (%(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="network calls of each sample (%(default)s)")
    parser.add_argument("--noise", default="{type: flow}", help="of the samples: objective.noise (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the trainings (%(default)s)")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="two steps, two samples, one case")
    add_record_flag(parser)
    args = parser.parse_args()
    length = TINY if args.tiny else ["--train.minutes", str(args.minutes)]
    length += ["--train.seed", str(args.seed)]
    predictor = train(args.config, args.folder / "predictor", length)
    kind = predictor.config(PredictionConfig).kind
    targets = "numbers" if kind == "regression" else "classes"
    objective = f"{{type: posterior, targets: {targets}, noise: {args.noise}}}"
    posterior = train(args.config, args.folder / "posterior", length, "--objective", objective)
    few = {"samples": 2, "steps": 2} if args.tiny else {"samples": args.samples, "steps": args.steps}
    limit = 1 if args.tiny else None
    rows = measure(predictor, PredictConfig(), ("predictor", ""), limit)
    rows |= measure(posterior, PredictConfig(**few), (f"mean of {few['samples']} samples", "one sample"), limit)
    lines, records = [], []
    for name, row in rows.items():
        scores = summarize(row.cases, [str(number) for number in range(len(row.cases))])
        cells = [f"{scores[s]['value']:.3g} ± {scores[s]['error']:.2g}" if s in scores else "" for s in SCORES[kind]]
        further = [f"{np.mean(values):.3g}" if values else "" for values in (row.sharpness, row.correlation, row.ratio)]
        steps = read_log((predictor if name == "predictor" else posterior).folder / "log.jsonl")[-1]["step"]
        lines.append([name, f"{steps:,}", *cells, *further])
        records.append({"row": name, "steps": steps, "minutes": args.minutes, "scores": scores} | vars(row))
    heads = ["", "steps", *(name.replace("_", " ") for name in SCORES[kind]), "sharpness"]
    text = f"{machine()}.\n\n{markdown([*heads, 'deviation and error', 'deviation / error'], lines)}"
    (args.folder / "posterior.md").write_text(text, encoding="utf-8")
    print(text)
    if args.record:
        kept = [{name: value for name, value in record.items() if name != "cases"} for record in records]
        append_rows("posterior", [{"config": args.config, **row} for row in kept])


if __name__ == "__main__":
    main()
