"""Where the time of a training step goes, by kind of operation, in one network of several libraries.

    python benchmarks/speed/operations.py                                   # diffunet and diffusers, 16 pictures
    python benchmarks/speed/operations.py --tiny                            # a rehearsal

Each as shipped and in fp32, by torch's profiler, whose own cost is spread over all operations.
"""

import argparse
from collections import Counter
from pathlib import Path

import torch
from calls import training
from contenders import CONTENDERS, EVERYONE, FULL, TINY
from run import machine, table
from torch.profiler import ProfilerActivity, profile

KINDS = {
    "convolution, backward": ("convolution_backward",),
    "convolution, forward": ("mkldnn_convolution", "convolution", "conv2d"),
    "group norm": ("group_norm",),
    "SiLU": ("silu",),
    "matrix products and attention": ("addmm", "bmm", "aten::mm", "attention"),
    "optimiser, clipping and average": ("adam", "_foreach", "lerp", "norm"),
    "copies and joins": ("copy_", "cat", "clone", "contiguous"),
    "sums and products": ("add", "mul", "div", "sum", "sub"),
}
"""By what the names of operations contain; the first that fits."""


def shares(name: str, asked: argparse.Namespace) -> dict[str, float]:
    """Of the time of a step, in percent."""
    shape = TINY if asked.tiny else FULL
    step = training(name, EVERYONE[name].shipped, shape, asked.batch_size, torch.device("cpu"))
    step()
    with profile(activities=[ProfilerActivity.CPU]) as watched:
        for _ in range(asked.steps):
            step()
    spent = Counter()
    for event in watched.key_averages():
        kind = next((kind for kind, parts in KINDS.items() if any(part in event.key for part in parts)), "all else")
        spent[kind] += event.self_cpu_time_total
    return {kind: 100 * time / spent.total() for kind, time in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--contenders", nargs="+", choices=CONTENDERS, default=["diffunet", "diffusers"], metavar="NAME")
    add("--batch_size", type=int, default=16)
    add("--steps", type=int, default=5)
    add("--tiny", action="store_true", help="a tiny network, to measure_step_time")
    add("--output", type=Path, help="a file for the report, besides")
    asked = parser.parse_args()
    found = {name: shares(name, asked) for name in asked.contenders}
    rows = [[kind, *(f"{each.get(kind, 0):.1f}" for each in found.values())] for kind in [*KINDS, "all else"]]
    report = f"{machine(torch.device('cpu'))}\n{table(['% of a training step', *found], rows)}"
    print(report)
    if asked.output:
        asked.output.write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()
