"""What a network cannot see: networks of several exact receptive fields on shapes of which only the contour is drawn.

    python benchmarks/receptive_field.py --folder runs/receptive-field
    python benchmarks/receptive_field.py --tiny --folder runs/rehearsal          two steps of each

After Loos et al. 2024 (J. Med. Imaging 11(5) 054004), whose shapes the built-in `contours` (outlines) and `shapes`
(filled) follow. As there, the field follows from the depth and the convolutions on each level: 54, 100 and 146 pixels
from four levels with one, two and three, 204 from the five levels of 2015. Widths differ, so that the networks have
about as many parameters and operations. The filled shapes need the least field; the networks of the largest are
also trained without skip connections, as the fully convolutional networks before the U-Net.

Every training has the same steps and patches, and is scored as `diffunet evaluate` does; Dice and boundary F1 (within
2 pixels) are those of the shapes. Interrupted, the same command continues. FOLDER gets rows.jsonl and
receptive-field.md.
"""

import argparse
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from records import add_record_flag, append_rows, machine, mean_std, run_command
from records import table as markdown

from diffunet.models.inspection import describe
from diffunet.runs.evaluate_prediction import evaluate_predictor
from diffunet.runs.prediction import PredictionConfig
from diffunet.runs.run import Run


@dataclass(frozen=True)
class Network:
    """Widths of the levels, finest first, and the number of convolutions on each, as often on the way up."""

    convolutions: int
    widths: tuple[int, ...]

    @property
    def levels(self) -> list[dict]:
        """The levels of a `UNetConfig`, with the upsampling of 2015."""
        *fine, coarsest = self.widths
        levels = [{"channels": width, "blocks": self.convolutions, "from_coarser": width} for width in fine]
        return [*levels, {"channels": coarsest, "blocks": self.convolutions, "up": []}]


NETWORKS = {
    54: Network(1, (20, 40, 120, 480)),
    100: Network(2, (16, 24, 72, 288)),
    146: Network(3, (12, 24, 48, 240)),
    204: Network(2, (16, 32, 64, 128, 128)),
}
"""By receptive field, in pixels."""
LOOS = {("contours", 54): 0.671, ("contours", 100): 0.865, ("contours", 146): 0.984, ("contours", 204): 1.0}
LOOS |= {("shapes", field): 1.0 for field in NETWORKS}
"""Published Dice of the study's synthetic images, "large", with or without a filling."""
SCORES = ["dice/inside", "boundary_f1/inside"]
QUIET = ["--train.preview_every", "1000000", "--train.checkpoint_every", "1000000"]

Row = tuple[str, int, str]
"""Images, receptive field and skips."""


def rows_of(fields: list[int]) -> list[Row]:
    """Return what is trained: contours at each field, filled shapes at the least, and the largest without skips."""
    least, largest = min(fields), max(fields)
    rows = [("contours", field, "level") for field in fields] + [("shapes", least, "level")]
    rows += [(data, largest, skips) for data in ("shapes", "contours") for skips in ("level", "none")]
    return list(dict.fromkeys(rows))


def measure(row: Row, seed: int, args: argparse.Namespace) -> dict:
    """Train a network, and return its cost and the scores of the held-out cases."""
    data, field, skips = row
    run = Run(args.folder / f"{data}-{field}-{skips}-{seed}")
    words = ["train", "--config", "configs/shapes.yaml", "--train.output", str(run.folder), "--overwrite"]
    words += ["--unet.levels", json.dumps(NETWORKS[field].levels), "--unet.skips", skips, "--data.path", data]
    words += ["--data.patch", str(args.patch), "--train.steps", str(args.steps), "--train.seed", str(seed), *QUIET]
    words += ["--train.batch_size", str(args.batch_size)]
    run_command(words)
    network = describe(run.config(PredictionConfig).unet, (256, 256))[-1]
    if set(network.receptive_field) != {field}:
        raise SystemExit(f"a network of {field} pixels has a receptive field of {network.receptive_field}")
    record = evaluate_predictor(run).record
    found = {"data": data, "field": field, "skips": skips, "seed": seed, "steps": args.steps, "patch": args.patch}
    found |= {"batch_size": args.batch_size, "parameters": network.parameters, "gflop": network.flops / 1e9}
    return found | {"scores": {name: record["scores"][name] for name in SCORES}}


def table(rows: list[dict]) -> str:
    """Return the mean over seeds ± standard deviation, in Markdown, the published value beside it."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["data"], row["field"], row["skips"]].append(row)
    lines = []
    for (data, field, skips), found in sorted(groups.items()):
        dice, boundary = (mean_std([row["scores"][name]["value"] or 0 for row in found]) for name in SCORES)
        cost = [f"{found[0]['parameters'] / 1e6:.2f}", f"{found[0]['gflop']:.1f}"]
        published = f"{LOOS[data, field]:.3f}" if skips == "level" else ""
        lines.append([data, str(field), skips, *cost, dice, published, boundary, str(len(found))])
    heads = ["images", "receptive field", "skips", "million parameters", "GFLOP of 256×256"]
    return markdown([*heads, "Dice", "Dice, Loos 2024", "boundary F1", "seeds"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--fields", type=int, nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--steps", type=int, default=400, help="of each training (%(default)s)")
    parser.add_argument("--patch", type=int, default=256, help="pixels, as large as the images (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=4, help="patches in a step (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--tiny", action="store_true", help="two steps of each network")
    add_record_flag(parser)
    args = parser.parse_args()
    if args.tiny:
        args.steps, args.batch_size, args.seeds = 2, 1, [0]
    file = args.folder / "rows.jsonl"
    args.folder.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for seed in args.seeds:
        for row in rows_of(args.fields):
            if not any((done["data"], done["field"], done["skips"], done["seed"]) == (*row, seed) for done in rows):
                rows.append(measure(row, seed, args))
                with open(file, "a", encoding="utf-8") as opened:
                    opened.write(json.dumps(rows[-1]) + "\n")
    text = f"{machine()}. {rows[0]['steps']:,} steps of {rows[0]['batch_size']} patches.\n\n{table(rows)}"
    (args.folder / "receptive-field.md").write_text(text, encoding="utf-8")
    print(text)
    if args.record:
        append_rows("receptive-field", rows)


if __name__ == "__main__":
    main()
