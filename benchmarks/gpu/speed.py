"""How fast: the share of the card's peak that training takes, image by image, beside diffusers; and sampling."""

import gc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from checks import _step, _with_train
from workbench import Workbench

from diffunet.core.runtime import autocast
from diffunet.models.inspection import describe
from diffunet.training.benchmark import TRAIN_FLOPS_RATIO

KINDS = {
    "convolutions": ("conv", "cudnn", "xmma", "implicit", "wgrad", "dgrad", "fprop", "nchwToNhwc", "nhwcToNchw"),
    "matrix products": ("gemm", "cublas", "nvjet", "cutlass"),
    "attention": ("flash", "fmha", "sdpa"),
    "norms": ("group_norm", "GroupNorm", "RowwiseMoments", "ComputeInternal", "ComputeFused"),
    "optimizer and averages": ("multi_tensor", "Adam", "lerp"),
    "copies and casts": ("copy", "Copy", "to_copy"),
    "fused by the compiler": ("triton",),
    "random numbers": ("distribution", "dropout", "philox"),
}
"""Kinds of kernels by parts of their names."""


@dataclass(frozen=True)
class Row:
    """A way to run the training step of DDPM's network for CIFAR-10 (35.7 million parameters, no dropout)."""

    name: str
    batch: int
    runtime: dict
    searched: bool = False
    """cuDNN tries its algorithms first."""
    mode: str | None = None
    """Of torch.compile, instead of the one of `train.runtime.compile`."""


ROWS = [
    Row("eager, channels last", 512, {}),
    Row("compiled", 512, {"compile": True}, searched=True),
    Row("eager, channels last", 128, {}),
    Row("compiled", 128, {"compile": True}, searched=True),
    Row("eager, contiguous", 512, {"channels_last": False}),
    Row("eager, channels last, cuDNN searched", 512, {}, searched=True),
    Row("compiled, contiguous", 512, {"compile": True, "channels_last": False}, searched=True),
    Row("compiled, CUDA graphs", 128, {}, searched=True, mode="reduce-overhead"),
]


def peak(bench: Workbench) -> dict:
    """The fastest matrix product in 16 bits and the copies of large arrays, to hold everything else to."""
    size = 256 if bench.tiny else 8192
    a, b = (torch.randn(size, size, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    product = bench.seconds(lambda: a @ b, 10)
    big = torch.empty(2**20 if bench.tiny else 2**30, device=bench.device, dtype=torch.uint8)
    copy = bench.seconds(big.clone, 10)
    return {
        "tflops": round(2 * size**3 / product / 1e12, 3),
        "terabytes_per_second": round(2 * len(big) / copy / 1e12, 3),
    }


def training(bench: Workbench) -> dict:
    """The whole step of our Trainer in several ways, and that of diffusers in the same precision."""
    highest = peak(bench)["tflops"] * 1e12
    rows = []
    for row in ROWS[:2] if bench.tiny else ROWS:
        try:
            rows.append(_train(bench, row, highest))
        except Exception as error:  # the other rows count too
            rows.append({"name": row.name, "batch": row.batch, "error": f"{type(error).__name__}: {error}"[:500]})
        print(rows[-1], flush=True)
        _free()
    rows.append(_diffusers(bench, 4 if bench.tiny else 512, highest))
    return {"rows": rows}


def _train(bench: Workbench, row: Row, highest: float) -> dict:
    torch._dynamo.reset()
    size = 4 if bench.tiny else row.batch
    config = bench.config(side=16 if bench.tiny else 32, unet=_network(bench), conditions={})
    config = config.model_copy(update={"conditions": {}})
    runtime = {"mixed_precision": bench.precision, "compile": False, **row.runtime}
    trainer = bench.trainer(_with_train(config, steps=10**9, batch_size=size, runtime=runtime))
    torch.backends.cudnn.benchmark = row.searched
    if row.mode:
        trainer.placement.module.unet.compile(mode=row.mode, dynamic=False)
    batches = trainer._batches()
    step = lambda: _step(trainer, batches)  # noqa: E731
    for _ in range(1 if bench.tiny else 5):
        step()
    seconds = bench.seconds(step, 1 if bench.tiny else 20)
    flops = TRAIN_FLOPS_RATIO * describe(trainer.ema.model.unet.config, (config.data.resolution or 32,) * 2)[-1].flops
    return {
        "name": row.name,
        "batch": size,
        "milliseconds": round(1e3 * seconds, 2),
        "images_per_second": round(size / seconds, 1),
        "share_of_peak": round(flops * size / seconds / highest, 4),
        "gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if bench.cuda else None,
        "kernels": _kernels(step) if bench.cuda else None,
    }


def _network(bench: Workbench) -> dict:
    network: dict = {"preset": "ddpm_cifar10", "dropout": 0.0}
    return network | {"levels": [{"channels": 32}, {"channels": 32}]} if bench.tiny else network


def _diffusers(bench: Workbench, size: int, highest: float) -> dict:
    """The step of diffusers' own example: UNet2DModel, AdamW, EMAModel, in 16 bits."""
    import torch.nn.functional as F
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.training_utils import EMAModel

    side, widths = (16, (32, 32)) if bench.tiny else (32, (128, 256, 256, 256))
    down = ["DownBlock2D"] * len(widths)
    down[1] = "AttnDownBlock2D"
    up = [kind.replace("Down", "Up") for kind in reversed(down)]
    model = UNet2DModel(side, 3, 3, block_out_channels=widths, down_block_types=down, up_block_types=up)
    model = model.to(bench.device)
    optimizer, average = torch.optim.AdamW(model.parameters(), lr=1e-4), EMAModel(model.parameters())
    scheduler, images = DDPMScheduler(), torch.randn(size, 3, side, side, device=bench.device)

    def step() -> None:
        noise = torch.randn_like(images)
        times = torch.randint(0, 1000, (size,), device=bench.device)
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=bench.precision == "bf16"):
            loss = F.mse_loss(model(scheduler.add_noise(images, noise, times), times).sample.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(model.parameters())

    for _ in range(1 if bench.tiny else 5):
        step()
    seconds = bench.seconds(step, 1 if bench.tiny else 20)
    return {
        "name": "diffusers",
        "batch": size,
        "milliseconds": round(1e3 * seconds, 2),
        "images_per_second": round(size / seconds, 1),
    }


def sampling(bench: Workbench) -> dict:
    """Network calls per second, eager and as a recorded CUDA graph."""
    config = bench.config(side=16 if bench.tiny else 32, unet=_network(bench))
    model = bench.trainer(config.model_copy(update={"conditions": {}})).ema.model
    call, sizes = autocast(model, bench.precision, bench.device), (2,) if bench.tiny else (1, 64, 256)
    return {"rows": [_call(bench, call, size) for size in sizes]}


@torch.no_grad()
def _call(bench: Workbench, model: Callable, size: int) -> dict:
    side, times = (16, 3) if bench.tiny else (32, 20)
    x, t = torch.randn(size, 3, side, side, device=bench.device), torch.tensor(500.0, device=bench.device)
    call = partial(model, x, t)
    call()
    row = {"batch": size, "eager_ms": round(1e3 * bench.seconds(call, times), 3)}
    if bench.cuda:
        row["graph_ms"] = round(1e3 * bench.seconds(_recorded(call), times), 3)
    return row


def _recorded(act: Callable[[], object]) -> Callable[[], object]:
    """Return the replay of a CUDA graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        act()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        act()
    return graph.replay


def _kernels(step: Callable[[], None]) -> dict[str, float]:
    """Return the milliseconds of each kind of kernel in a step."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(3):
            step()
        torch.cuda.synchronize()
    spent = Counter()
    for event in seen.key_averages():
        kind = next((kind for kind, words in KINDS.items() if any(word in event.key for word in words)), "other")
        spent[kind] += event.self_device_time_total / 3e3
    return {kind: round(milliseconds, 2) for kind, milliseconds in spent.most_common()}


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
