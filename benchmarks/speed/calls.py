"""The timed calls: networks at work, the machine's fastest convolution, and measurements in new processes."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from contenders import EVERYONE, STEPS, Setting, Shape
from timing import timed
from torch import nn


def forward(name: str, setting: Setting, shape: Shape, batch: int, device: torch.device) -> Callable[[], object]:
    """Return a call of the network without gradient."""
    network = EVERYONE[name].network(shape, setting, device).eval()
    x = setting.place(torch.randn(batch, 3, shape.side, shape.side), device)
    t = torch.randint(1000, (batch,), device=device)
    setting.compile(network)

    def call() -> None:
        with torch.no_grad(), setting.autocast(device):
            network(x, t)

    return call


def training(name: str, setting: Setting, shape: Shape, batch: int, device: torch.device) -> Callable[[], object]:
    """Return a training step: loss, gradient, clipping, optimizer, EMA."""
    contender = EVERYONE[name]
    network = contender.network(shape, setting, device).train()
    loss, update_ema = contender.loss(network, shape.side), contender.ema(network, setting.fused)
    optimizer = contender.optimizer(network.parameters(), fused=setting.fused)
    images = setting.place(torch.rand(batch, 3, shape.side, shape.side), device)
    setting.compile(network)

    def call() -> None:
        with setting.autocast(device):
            value = loss(images)
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        update_ema()

    return call


def sampling(name: str, setting: Setting, shape: Shape, batch: int, device: torch.device) -> Callable[[], object]:
    """Return a call that samples images from noise."""
    contender = EVERYONE[name]
    network = contender.network(shape, setting, device).eval()
    sample = contender.sample(network, batch, shape.side)
    setting.compile(network)

    def call() -> None:
        with setting.autocast(device):
            sample()

    return call


PARTS = {"forward": (forward, 1), "training": (training, 3), "sampling": (sampling, STEPS)}
"""With the cost of each in network calls; a gradient counts as two."""


# ── the machine's fastest convolution ─────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Convolution:
    """A 3×3 convolution of the network, alone: most of the work, and so an upper bound of the speed."""

    channels: int
    side: int
    setting: Setting

    def __str__(self) -> str:
        layout = "channels_last" if self.setting.channels_last else "NCHW"
        return f"{self.channels}->{self.channels} at {self.side}×{self.side}, {layout}"

    def call(self, batch: int, device: torch.device) -> Callable[[], object]:
        dtype = torch.bfloat16 if self.setting.precision == "bf16" else torch.float32
        layer = self.setting.place(nn.Conv2d(self.channels, self.channels, 3, padding=1, dtype=dtype), device)
        x = self.setting.place(torch.randn(batch, self.channels, self.side, self.side, dtype=dtype), device)

        def call() -> None:
            with torch.no_grad(), self.setting.autocast(device):
                layer(x)

        return call

    def gflop(self, batch: int) -> float:
        return 2 * 9 * self.channels**2 * self.side**2 * batch / 1e9


# ── measurements in new processes ─────────────────────────────────────────────────────────────────


def in_new_process(function: Callable, *arguments) -> float:
    """Return the function's result in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def compile_seconds(part: str, name: str, shape: Shape, batch: int, device: torch.device) -> float:
    """Return the time of the first call minus that of the second."""
    make, _ = PARTS[part]
    call = make(name, Setting(compiled="default"), shape, batch, device)
    return timed(call) - timed(call)


def peak_memory(name: str, shape: Shape, batch: int, device: torch.device) -> int:
    """Return the peak bytes of two training steps: of tensors on a GPU, else of the whole process (on Linux)."""
    call = training(name, EVERYONE[name].shipped, shape, batch, device)
    for _ in range(2):
        call()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()  # getrusage includes the parent's
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])
