"""What bf16 gains on a CPU, and what its attention and its memory format cost: training steps and calls, in turn.

    python benchmarks/speed/bf16.py                        # minutes, on a CPU with avx512_bf16 or amx_bf16
    python benchmarks/speed/bf16.py --rounds 2 --networks digits        # a rehearsal

The networks are that of configs/digits.yaml and compact ones for 32×32 pixels (diffunet/models/sizes.py), with batches
of 64 and 32. One thread, in processor seconds, so that other programs matter less. `kernel` is torch's attention for
CPUs, `products` the one of `diffunet.models.layers.attend` in training; `last` and `first` is where channels are in
memory.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from report import add_record_flag, append_rows, header, table
from timing import format_median

from diffunet.core.runtime import autocast
from diffunet.core.settings import settings_from
from diffunet.models import layers
from diffunet.models.conditioning import Conditioning
from diffunet.models.config import UNetConfig
from diffunet.models.sizes import compact
from diffunet.models.unet import UNet
from diffunet.runs.config import Config, config_file

CPU = torch.device("cpu")
NETWORKS = {"digits": None, "width 16": 16, "width 32": 32, "width 64": 64}
SETTINGS = {
    "fp32, last": ("no", "kernel", True),
    "bf16, kernel, last": ("bf16", "kernel", True),
    "bf16, products, last": ("bf16", "products", True),
    "bf16, products, first": ("bf16", "products", False),
}
"""Precision, attention in training, and whether channels are last in memory. diffunet takes the last one in bf16 below
64 channels, else the one before."""


def network(width: int | None) -> tuple[UNet, torch.Tensor]:
    """Return a network and a batch for it."""
    if width is None:
        config = settings_from(config_file("configs/digits.yaml"), Config).resolve_model((8, 8), 1)
        return UNet(config.unet), torch.randn(64, 1, 8, 8)
    channels = {"in_channels": 3, "out_channels": 3, "vector_dim": 4 * width}
    return UNet(UNetConfig.model_validate(compact(width, 32) | channels)), torch.randn(32, 3, 32, 32)


@contextmanager
def attention(kind: str) -> Iterator[None]:
    """Use torch's kernel or the products meanwhile."""
    most = layers.MAX_PAIRS
    layers.MAX_PAIRS = most if kind == "products" else 0
    try:
        yield
    finally:
        layers.MAX_PAIRS = most


def calls_of(width: int | None, setting: str, training: bool) -> Callable[[], object]:
    """Return a training step without its optimizer, or a call without gradient."""
    precision, kind, last = SETTINGS[setting]
    torch.manual_seed(0)
    unet, x = network(width)
    unet = unet.to(memory_format=torch.channels_last) if last else unet
    model, cond = autocast(unet, precision, CPU), Conditioning(vector=torch.randn(len(x), unet.config.vector_dim))

    def step() -> None:
        with attention(kind):
            model(x, cond).square().mean().backward()

    return step if training else torch.no_grad()(lambda: model(x, cond))


def seconds(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """Return processor seconds of each call, (rounds,), after a warm-up."""
    found = {name: np.empty(rounds) for name in calls}
    for call in calls.values():
        call()
    for number in range(rounds):
        for name, call in calls.items():
            started = time.process_time()
            call()
            found[name][number] = time.process_time() - started
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="(%(default)s)")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    add_record_flag(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows, records = [], []
    for training in (True, False):
        for name in args.networks:
            found = seconds({each: calls_of(NETWORKS[name], each, training) for each in SETTINGS}, args.rounds)
            base = found["fp32, last"]
            ratios = [format_median(base / each) for each in list(found.values())[1:]]
            rows.append(["training" if training else "call", name, f"{np.median(base) * 1e3:.0f}", *ratios])
            medians = {each: float(np.median(times)) for each, times in found.items()}
            records.append({"network": name, "training": training, "rounds": args.rounds, "seconds": medians})
            print(*rows[-1], flush=True)
    heads = ["", "network", "ms, fp32, last", *(f"× {each}" for each in list(SETTINGS)[1:])]
    print(f"\n{header(CPU)}\n{table(heads, rows)}")
    if args.record:
        append_rows("bf16", records)


if __name__ == "__main__":
    main()
