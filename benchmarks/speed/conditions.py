"""What conditions add to a training step on the built-in digits, timed in turn.

    python benchmarks/speed/conditions.py                                  # minutes; on an otherwise idle machine
    python benchmarks/speed/conditions.py --rounds 2 --encoder FOLDER      # a rehearsal, and a frozen text encoder

The network of configs/text-digits.yaml, unconditional and with one condition each: a caption as in that file, or by an
encoder with the default number of layers; a source made by a degradation; two numbers. With `--encoder`, also frozen
tokens, and a check that each distinct caption was encoded once. Ratios are medians of those within rounds, with the
interval of the median.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from report import add_record_flag, append_rows, header, table
from timing import format_median, interleaved, interval

from diffunet.conditions import pretrained_text
from diffunet.core.settings import merge, settings_from
from diffunet.data.digits import digit_images
from diffunet.runs.config import Config, config_file
from diffunet.tasks.fit import make_trainer
from diffunet.tasks.generation import generation

TEXT = yaml.safe_load(config_file("configs/text-digits.yaml").read_text())["conditions"]["caption"]
CONDITIONS = {
    "unconditional": {},
    "class": {"label": {"type": "label"}},
    f"text, {TEXT['layers']} layer": {"caption": TEXT},
    "text, 2 layers": {"caption": {**TEXT, "layers": 2}},
    "source by a degradation": {"source": {"type": "image", "by": [{"downscale": 2}]}},
    "two numbers": {"measured": {"type": "vector", "column": ["ink", "slant"]}},
}


def training_step(conditions: dict[str, Any], folder: str) -> Callable[[], object]:
    """Return a training step of configs/text-digits.yaml with these conditions, its batch included."""

    def change(values: dict) -> dict:
        return merge({**values, "conditions": conditions}, {"train": {"output": folder, "snapshots": 0}})

    task = generation(settings_from(config_file("configs/text-digits.yaml"), Config, transform=change))
    trainer = make_trainer(task, task.config.train)
    batches = trainer._batches()

    def step() -> None:
        trainer._train_step(next(batches))
        trainer.step += 1

    return step


def count_encoded(encoder: str, folder: str) -> tuple[int, int, Callable[[], object]]:
    """Return how many captions a frozen encoder got, how many distinct ones there are, and a training step."""
    encoded, encode = [], pretrained_text.PretrainedText.encode_anew

    def counting(self: pretrained_text.PretrainedText, captions: Any, *arguments: Any, **options: Any) -> Any:
        encoded.extend(caption for caption in captions if caption)
        return encode(self, captions, *arguments, **options)

    pretrained_text.PretrainedText.encode_anew = counting
    pretrained_text.cache_folder = lambda: Path(folder) / "texts"  # an empty cache
    step = training_step({"caption": {"type": "text", "encoder": encoder}}, folder)
    return len(encoded), len(set(encoded)), step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="(%(default)s)")
    parser.add_argument("--encoder", help="folder of a frozen text encoder")
    add_record_flag(parser)
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        make = partial(training_step, folder=f"{folder}/run")
        calls = {name: make(conditions) for name, conditions in CONDITIONS.items()}
        if args.encoder:
            encoded, distinct, calls["text, frozen"] = count_encoded(args.encoder, folder)
            print(f"frozen encoder: {encoded} captions encoded, {distinct} distinct, {len(digit_images()):,} images")
        seconds = interleaved(calls, args.rounds)
    base = seconds["unconditional"]
    cells = ([name, format_median(1000 * s, ".1f"), format_median(s / base, ".3f")] for name, s in seconds.items())
    print(header(torch.device("cpu")))
    print(table(["a training step with", "ms", "of unconditional"], cells))
    if args.record:
        rows = ({"name": name, "seconds": s.tolist(), "ratio": interval(s / base)} for name, s in seconds.items())
        append_rows("conditions-speed", rows)


if __name__ == "__main__":
    main()
