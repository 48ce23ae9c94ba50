"""Start-up: from the shell to the first network call and to finished images, whole commands in turn.

    python benchmarks/speed/start.py RUN --output FILE.md                 RUN: an exportable run, such as runs/digits
    python benchmarks/speed/start.py RUN --tiny                      a rehearsal

Compared with `python -c "import torch"`, the lower bound, and with diffusers' pipelines and the same weights. The
pipelines make 50 and 1000 network calls per image by default, diffunet as many as the run's config sets (15 for the
digits): the ratio is mostly that of the calls. diffusers has the same solver.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from report import add_record_flag, append_rows, header, table
from timing import format_median, interleaved

ROOT = Path(__file__).parent.parent.parent
FIRST_CALL = """
import os
from diffunet.cli.main import main
from diffunet.models.denoiser import Denoiser
Denoiser.forward = lambda *args, **conditions: os._exit(0)
main(["sample", {run!r}])
"""
PIPELINE = """
from diffusers import {pipeline}
images = {pipeline}.from_pretrained({folder!r})(batch_size={images}, num_inference_steps={steps}).images
for number, image in enumerate(images):
    image.save(f"{folder}/{{number:05d}}.png")
"""
TORCH = 'python -c "import torch"'
WORDS = {
    "start": """Whole processes, from start to end. The first network call of `sample.py` ends its process, without
Python's own clean-up.""",
    "commands": "The same, for {images} finished images; diffusers samples from the run's export.",
    "sampling": "The same within one process, with all imports done and all networks loaded: {images} images.",
}


def command(*words: str) -> Callable[[], None]:
    return lambda: subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True)


def starts(run: str, rounds: int, raw: list[dict]) -> str:
    """Time processes up to their first useful result."""
    calls = {
        TORCH: command("-c", "import torch"),
        "python train.py --help": command("train.py", "--help"),
        "a misspelled flag of train.py": command("train.py", "--train.learing_rate", "1"),
        "a missing run of sample.py": command("sample.py", "runs/nowhere"),
        "sample.py until its first network call": command("-c", FIRST_CALL.format(run=run)),
        'python -c "from diffusers import UNet2DModel, DDPMPipeline"': command(
            "-c", "from diffusers import UNet2DModel, DDPMPipeline"
        ),
    }
    seconds = interleaved(calls, rounds)
    raw += [{"part": "start", "name": name, "seconds": took.tolist()} for name, took in seconds.items()]
    rows = [[name, format_median(took), format_median(took / seconds[TORCH])] for name, took in seconds.items()]
    return table(["", "s", "× import torch"], rows)


def against_pipelines(
    part: str, diffunet: Callable, pipeline: Callable[[str, int], Callable], args: argparse.Namespace, raw: list[dict]
) -> str:
    """Time diffunet beside diffusers' pipelines; the slow one once only, as it takes minutes."""
    seconds = interleaved({"diffunet": diffunet, "DDIMPipeline, 50 steps": pipeline("DDIMPipeline", 50)}, args.rounds)
    if not args.tiny:
        seconds |= interleaved({"DDPMPipeline, 1000 steps": pipeline("DDPMPipeline", 1000)}, 1)
    raw += [{"part": part, "name": name, "seconds": took.tolist()} for name, took in seconds.items()]
    rows = [
        [name, format_median(took), format_median(np.median(took) / seconds["diffunet"])]
        for name, took in seconds.items()
    ]
    return table(["", "s", "× diffunet's time"], rows)


def sampling(folder: str, args: argparse.Namespace, raw: list[dict]) -> str:
    """Time sampling within this process."""
    import diffusers

    from diffunet.runs.run import Run

    run = Run(args.run)
    config = run.config().sample.model_copy(update={"num_images": args.images, "batch_size": args.images})
    sampler = run.sampler(config)

    def pipeline(name: str, steps: int) -> Callable:
        found = getattr(diffusers, name).from_pretrained(folder)
        found.set_progress_bar_config(disable=True)
        return lambda: found(batch_size=args.images, num_inference_steps=steps)

    return against_pipelines("sampling", lambda: list(sampler.sample(config)), pipeline, args, raw)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", type=lambda path: str(Path(path).resolve()))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--label", default="7", help="class of the export (%(default)s)")
    parser.add_argument("--output", type=Path, help="a file for the report")
    parser.add_argument("--tiny", action="store_true", help="one round of two images, to rehearse")
    add_record_flag(parser)
    args = parser.parse_args()
    if args.tiny:
        args.rounds, args.images = 1, 2
    raw: list[dict] = []
    with TemporaryDirectory() as scratch:
        folder = f"{scratch}/export"
        words = ["export", args.run, folder, "--label", args.label]
        command("-c", f"from diffunet.cli.main import main; main({words})")()

        def pipeline(name: str, steps: int) -> Callable:
            return command("-c", PIPELINE.format(pipeline=name, folder=folder, images=args.images, steps=steps))

        sample = command("sample.py", args.run, "--num_images", str(args.images))
        parts = {
            "start": lambda: starts(args.run, args.rounds, raw),
            "commands": lambda: against_pipelines("commands", sample, pipeline, args, raw),
            "sampling": lambda: sampling(folder, args, raw),
        }
        report = f"# From the shell to images\n\n{header(torch.device('cpu'))}"
        for name, measured in parts.items():
            part = f"\n## {name.capitalize()}\n\n{WORDS[name].format(images=args.images)}\n\n{measured()}"
            report += part
            print(part, flush=True)
    if args.output:
        args.output.write_text(report, encoding="utf-8")
    if args.record:
        append_rows("start", raw)


if __name__ == "__main__":
    main()
