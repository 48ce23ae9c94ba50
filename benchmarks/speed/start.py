"""From the shell to the first network call and to finished pictures, whole commands in turn.

    python benchmarks/speed/start.py RUN --output FILE.md            RUN: a run that exports, such as runs/digits

Beside ours stand `python -c "import torch"`, which is the floor, and diffusers' pipelines with the same weights.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from run import machine, table
from timing import interleaved, shown

ROOT = Path(__file__).parent.parent.parent
FIRST_CALL = """
import os
from diffunet.cli import main as commands
from diffunet.models.denoiser import Denoiser
Denoiser.forward = lambda *args, **conditions: os._exit(0)
commands.sample([{run!r}])
"""
PIPELINE = """
from diffusers import {pipeline}
pictures = {pipeline}.from_pretrained({folder!r})(batch_size={pictures}, num_inference_steps={steps}).images
for number, picture in enumerate(pictures):
    picture.save(f"{folder}/{{number:05d}}.png")
"""
TORCH = 'python -c "import torch"'
WORDS = {
    "start": """Whole processes, from their start to their end. The first network call of `sample.py` ends its process,
without Python's own clearing up.""",
    "commands": "The same, for {pictures} finished pictures; diffusers draws from the run's export.",
    "drawing": "The same within one process, with all imports done and all networks loaded: {pictures} pictures.",
}


def command(*words: str) -> Callable[[], None]:
    return lambda: subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True)


def starts(run: str, rounds: int) -> str:
    calls = {
        TORCH: command("-c", "import torch"),
        "python train.py --help": command("train.py", "--help"),
        "a flag that train.py refuses": command("train.py", "--train.learing_rate", "1"),
        "a run that sample.py does not find": command("sample.py", "runs/nowhere"),
        "sample.py to its first network call": command("-c", FIRST_CALL.format(run=run)),
        'python -c "from diffusers import UNet2DModel, DDPMPipeline"': command(
            "-c", "from diffusers import UNet2DModel, DDPMPipeline"
        ),
    }
    seconds = interleaved(calls, rounds)
    rows = [[name, shown(took), shown(took / seconds[TORCH])] for name, took in seconds.items()]
    return table(["", "s", "× import torch"], rows)


def against_pipelines(ours: Callable, theirs: Callable[[str, int], Callable], rounds: int) -> str:
    """diffusers' slow one is timed once: it is far off, and takes minutes."""
    calls = {"diffunet": ours, "DDIMPipeline, 50 steps": theirs("DDIMPipeline", 50)}
    seconds = interleaved(calls, rounds)
    seconds |= interleaved({"DDPMPipeline, 1000 steps": theirs("DDPMPipeline", 1000)}, 1)
    rows = [[name, shown(took), shown(np.median(took) / seconds["diffunet"])] for name, took in seconds.items()]
    return table(["", "s", "× diffunet's time"], rows)


def drawing(run: str, folder: str, pictures: int, rounds: int) -> str:
    import diffusers

    from diffunet.runs.run import Run
    from diffunet.cli.sample import draw

    opened = Run(run)
    config, denoiser = opened.config(), opened.denoiser()
    wish = config.sample.model_copy(update={"num_images": pictures, "batch_size": pictures})

    def theirs(name: str, steps: int) -> Callable:
        pipeline = getattr(diffusers, name).from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        return lambda: pipeline(batch_size=pictures, num_inference_steps=steps)

    return against_pipelines(lambda: list(draw(opened, denoiser, config, wish)), theirs, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", type=lambda path: str(Path(path).resolve()))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--label", default="7", help="of the run's classes, for the export (%(default)s)")
    parser.add_argument("--output", type=Path, help="a file for the report, besides")
    asked = parser.parse_args()
    with TemporaryDirectory() as scratch:
        folder = f"{scratch}/export"
        words = ["export", asked.run, folder, "--label", asked.label]
        command("-c", f"from diffunet.cli.main import main; main({words})")()

        def pipeline(name: str, steps: int) -> Callable:
            return command("-c", PIPELINE.format(pipeline=name, folder=folder, pictures=asked.pictures, steps=steps))

        ours = command("sample.py", asked.run, "--num_images", str(asked.pictures))
        parts = {
            "start": lambda: starts(asked.run, asked.rounds),
            "commands": lambda: against_pipelines(ours, pipeline, asked.rounds),
            "drawing": lambda: drawing(asked.run, folder, asked.pictures, asked.rounds),
        }
        report = f"# From the shell to pictures\n\n{machine(torch.device('cpu'))}"
        for name, measured in parts.items():
            part = f"\n## {name.capitalize()}\n\n{WORDS[name].format(pictures=asked.pictures)}\n\n{measured()}"
            report += part
            print(part, flush=True)
    if asked.output:
        asked.output.write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()
