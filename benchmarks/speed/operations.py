"""Where the time of a training step goes, by kind of operation, in one network of several libraries.

    python benchmarks/speed/operations.py                                   # diffunet and diffusers, batches of 16
    python benchmarks/speed/operations.py --tiny                            # a rehearsal

As shipped and in fp32, by torch's profiler, whose overhead is spread over all operations.
"""

import argparse
from collections import Counter
from pathlib import Path

import torch
from calls import training
from contenders import CONTENDERS, EVERYONE, FULL, TINY
from report import add_record_flag, append_rows, header, table
from torch.profiler import ProfilerActivity, profile

KINDS = {
    "convolution, backward": ("convolution_backward",),
    "convolution, forward": ("mkldnn_convolution", "convolution", "conv2d"),
    "group norm": ("group_norm",),
    "SiLU": ("silu",),
    "matrix products and attention": ("addmm", "bmm", "aten::mm", "attention"),
    "optimizer, clipping and EMA": ("adam", "_foreach", "lerp", "norm"),
    "copies and concatenations": ("copy_", "cat", "clone", "contiguous"),
    "sums and products": ("add", "mul", "div", "sum", "sub"),
}
"""Parts of the names of operations; the first match counts."""


def shares(name: str, args: argparse.Namespace) -> dict[str, float]:
    """Return the share of each kind in the time of a step, in percent."""
    shape = TINY if args.tiny else FULL
    step = training(name, EVERYONE[name].shipped, shape, args.batch_size, torch.device("cpu"))
    step()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(args.steps):
            step()
    spent = Counter()
    for event in profiler.key_averages():
        kind = next((kind for kind, parts in KINDS.items() if any(part in event.key for part in parts)), "other")
        spent[kind] += event.self_cpu_time_total
    return {kind: 100 * time / spent.total() for kind, time in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--contenders", nargs="+", choices=CONTENDERS, default=["diffunet", "diffusers"], metavar="NAME")
    add("--batch_size", type=int, default=16)
    add("--steps", type=int, default=5)
    add("--tiny", action="store_true", help="a tiny network, to rehearse")
    add("--output", type=Path, help="a file for the report")
    add_record_flag(parser)
    args = parser.parse_args()
    found = {name: shares(name, args) for name in args.contenders}
    rows = [[kind, *(f"{each.get(kind, 0):.1f}" for each in found.values())] for kind in [*KINDS, "other"]]
    report = f"{header(torch.device('cpu'))}\n{table(['% of a training step', *found], rows)}"
    print(report)
    if args.output:
        args.output.write_text(report, encoding="utf-8")
    if args.record:
        append_rows("operations", [{"name": name, "percent": each} for name, each in found.items()])


if __name__ == "__main__":
    main()
