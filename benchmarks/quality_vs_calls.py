"""Quality of samples against network calls, for runs, samplers and where a solver starts, before and after a change.

    python benchmarks/quality_vs_calls.py runs/digits runs/flow --before ../before --folder runs/calls
    python benchmarks/quality_vs_calls.py runs/color --steps 8 15 25 --starts -4 -5.4 -6 --folder runs/calls
    python benchmarks/quality_vs_calls.py runs/digits --tiny --folder runs/rehearsal                a rehearsal

The Fréchet and the kernel distance of `--number` samples to the run's own images: of digits in their 64 pixels, of
others in pixels averaged down to 16×16. The sampling seeds share no noise. BEFORE is a checkout of an older version,
as `git worktree add ../before 893e2e6` makes one; it samples the same run folders in its own process. `--starts` are
values of log(alpha / sigma) at the first call, in place of the objective's. FOLDER gets rows.jsonl, with which the same
command continues where it stopped and several runs of the script share a table, calls.md and calls.png.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from records import add_record_flag, append_rows, machine, mean_std
from records import table as markdown

STEPS = [4, 6, 8, 10, 15, 25]
BATCH = 250
TINY = {"steps": [2, 4], "seeds": [0], "number": 20}
MARKERS = ("o", "s", "^", "v", "D", "P", "X")


@dataclass(frozen=True)
class Setting:
    """One row: what to sample."""

    run: str
    when: str
    """before or after."""
    sampler: str
    steps: int
    start: float | None
    """log(alpha / sigma) of the first call; None: the objective's own."""
    seed: int
    number: int


class Measure:
    """The distances of a run's samples to its images."""

    def __init__(self, folder: Path):
        import torch

        from diffunet.evaluation.features import choose_features
        from diffunet.runs.evaluate import real_images
        from diffunet.runs.run import Run

        self.run, self.config = Run(folder), Run(folder).config()
        dataset = real_images(self.config, self.config.data)
        self.features = choose_features(None, None, dataset, torch.device("cpu"))
        self.real = self.features(dataset.__getitems__(list(range(len(dataset))))["image"])

    def __call__(self, setting: Setting) -> dict[str, Any]:
        """Return the distances of a setting, and what they were measured with."""
        from diffunet.evaluation.metrics import frechet_distance, kernel_distance

        found = self.features(self._samples(setting))
        distances = {"frechet": frechet_distance(found, self.real), "kernel": kernel_distance(found, self.real)}
        objective = self.config.objective.model_dump(mode="json", include={"type", "prediction_type", "beta_schedule"})
        return {**distances, "features": self.features.name, **objective, "training_seed": self.config.train.seed}

    def _samples(self, setting: Setting):
        seed = setting.seed * setting.number
        update = {"num_images": setting.number, "seed": seed, "batch_size": BATCH, "guidance_scale": 1.0}
        update |= {"sampler": setting.sampler, "steps": setting.steps}
        if setting.start is None:
            return self.run.sample(**update).pixels
        return self._samples_from(setting.start, self.config.sample.model_copy(update=update))

    def _samples_from(self, start: float, config):
        from diffunet.objectives.solvers import METHODS, Solver
        from diffunet.sampling.editing import Edit
        from diffunet.sampling.generate import SampleBatch

        class Start(Edit):
            def sampler(self, objective, name, steps):
                return Solver(objective, objective.falling_times(steps, start), METHODS[name])

        return SampleBatch.concatenate(self.run.sampler(config).sample(config, edit=Start())).pixels


def measured(folder: Path, settings: list[Setting]) -> Iterator[dict]:
    """Yield a row for each setting of one run; a sampler that an objective or version lacks is left out."""
    from diffunet.core.errors import UserError

    measure = Measure(folder)
    for setting in settings:
        try:
            yield asdict(setting) | measure(setting)
        except UserError as problem:
            print(f"{setting.run}, {setting.when}: {problem}", file=sys.stderr, flush=True)


def measured_before(folder: Path, settings: list[Setting], checkout: Path) -> Iterator[dict]:
    """Yield the rows of an older checkout, which imports its own diffunet."""
    words = [sys.executable, __file__, str(folder.resolve()), "--settings", json.dumps([asdict(x) for x in settings])]
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve())}
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as process:
        yield from map(json.loads, process.stdout or ())
    if process.returncode:
        raise SystemExit(process.returncode)


def group(rows: list[dict]) -> dict[tuple, dict[int, list[dict]]]:
    """Return the rows by (objective, when, sampler, start), then by number of calls."""
    groups = defaultdict(lambda: defaultdict(list))
    for row in rows:
        groups[label(row), row["when"], row["sampler"], row["start"]][row["steps"]].append(row)
    return groups


def label(row: dict) -> str:
    """Return the data's features and the objective in words."""
    words = [row["type"], row.get("prediction_type"), row.get("beta_schedule")]
    data = "digits" if row["features"].startswith("64") else "color"
    return f"{data}, {' '.join(word for word in words if word)}"


def table(rows: list[dict], metric: str) -> str:
    """Return mean ± standard deviation over training and sampling seeds, in Markdown."""
    steps = sorted({row["steps"] for row in rows})
    lines = []
    for (objective, when, sampler, start), found in group(rows).items():
        cells = [mean_std([row[metric] for row in found[n]]) if n in found else "" for n in steps]
        seeds = {(row["training_seed"], row["seed"]) for part in found.values() for row in part}
        sampler = sampler if start is None else f"{sampler} from {start:g}"
        lines.append([objective, sampler, when, *cells, str(len(seeds))])
    return markdown(["", "sampler", "", *map(str, steps), "seeds"], sorted(lines))


def plot(rows: list[dict], path: Path) -> None:
    """Plot the Fréchet distance of the solver dpm++ against calls; dashed is before."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    groups = {key: found for key, found in group(rows).items() if key[2] == "dpm++" and key[3] is None}
    names = sorted({key[0] for key in groups if key[0].startswith("digits")})
    for (objective, when, _, _), found in sorted(groups.items()):
        if objective in names:
            index = names.index(objective)
            points = [(n, sum(row["frechet"] for row in part) / len(part)) for n, part in sorted(found.items())]
            style = {"color": f"C{index}", "marker": MARKERS[index], "linestyle": "-" if when == "after" else "--"}
            axes.plot(*zip(*points, strict=True), label=f"{objective.removeprefix('digits, ')}, {when}", **style)
    axes.set(xscale="log", yscale="log", xlabel="network calls", ylabel="Fréchet distance of 1,000 digits, in pixels")
    axes.set_xticks(ticks := sorted({row["steps"] for row in rows}), map(str, ticks), minor=False)
    axes.set_xticks([], minor=True)
    low, high = axes.get_ylim()
    axes.set_yticks(ticks := [n for n in (5, 10, 15, 20, 30, 50, 100, 200, 400) if low < n < high], map(str, ticks))
    axes.set_yticks([], minor=True)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders")
    parser.add_argument("--samplers", nargs="+", default=["dpm++"], help="(%(default)s)")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help="network calls (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of sampling (%(default)s)")
    parser.add_argument("--starts", type=float, nargs="+", default=[None], help="log(alpha / sigma) of the first call")
    parser.add_argument("--number", type=int, default=1000, help="samples (%(default)s)")
    parser.add_argument("--before", type=Path, help="an older checkout to compare with")
    parser.add_argument("--folder", type=Path, default=Path("runs/calls"))
    parser.add_argument("--tiny", action="store_true", help="few calls and images, to rehearse")
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    add_record_flag(parser)
    args = parser.parse_args()
    if args.settings:  # this is the process of an older checkout
        for row in measured(args.runs[0], [Setting(**setting) for setting in json.loads(args.settings)]):
            print(json.dumps(row), flush=True)
        return
    if args.tiny:
        vars(args).update(TINY)
    args.folder.mkdir(parents=True, exist_ok=True)
    file = args.folder / "rows.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    fields = Setting.__dataclass_fields__
    done = {Setting(**{name: row[name] for name in fields}) for row in rows}
    for run in args.runs:
        for when in ["after", *(["before"] if args.before else [])]:
            wanted = [
                Setting(run.name, when, sampler, steps, start, seed, args.number)
                for seed in args.seeds
                for sampler in args.samplers
                for start in args.starts
                for steps in args.steps
            ]
            if missing := [setting for setting in wanted if setting not in done]:
                found = measured_before(run, missing, args.before) if when == "before" else measured(run, missing)
                for row in found:
                    print(f"{row['run']}, {when}, {row['sampler']} {row['steps']}: {row['frechet']:.2f}", flush=True)
                    rows.append(row)
                    with open(file, "a", encoding="utf-8") as lines:
                        lines.write(json.dumps(row) + "\n")
    text = f"{machine()}.\n\n" + "\n".join(f"{name}:\n\n{table(rows, name)}" for name in ("frechet", "kernel"))
    (args.folder / "calls.md").write_text(text, encoding="utf-8")
    plot(rows, args.folder / "calls.png")
    print(text)
    if args.record:
        append_rows("calls", rows)


if __name__ == "__main__":
    main()
