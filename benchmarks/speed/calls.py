"""What is timed: the networks at work, the machine's best beside them, and what needs a process of its own."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from contenders import EVERYONE, STEPS, Setting, Shape
from timing import timed
from torch import nn


def forward(name: str, setting: Setting, shape: Shape, batch: int, device: torch.device) -> Callable[[], object]:
    """One network call, without gradient."""
    network = EVERYONE[name].network(shape, setting, device).eval()
    x = setting.place(torch.randn(batch, 3, shape.side, shape.side), device)
    t = torch.randint(1000, (batch,), device=device)
    setting.compile(network)

    def call() -> None:
        with torch.no_grad(), setting.autocast(device):
            network(x, t)

    return call


def training(name: str, setting: Setting, shape: Shape, batch: int, device: torch.device) -> Callable[[], object]:
    """A whole step: loss, gradient, clipping, optimiser, average."""
    contender = EVERYONE[name]
    network = contender.network(shape, setting, device).train()
    loss, average = contender.loss(network, shape.side), contender.average(network, setting.fused)
    optimizer = contender.optimizer(network.parameters(), fused=setting.fused)
    pictures = setting.place(torch.rand(batch, 3, shape.side, shape.side), device)
    setting.compile(network)

    def call() -> None:
        with setting.autocast(device):
            value = loss(pictures)
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average()

    return call


def sampling(name: str, setting: Setting, shape: Shape, batch: int, device: torch.device) -> Callable[[], object]:
    """ImageDataset from noise, end to end."""
    contender = EVERYONE[name]
    network = contender.network(shape, setting, device).eval()
    draw = contender.draw(network, batch, shape.side)
    setting.compile(network)

    def call() -> None:
        with setting.autocast(device):
            draw()

    return call


PARTS = {"forward": (forward, 1), "training": (training, 3), "sampling": (sampling, STEPS)}
"""With what each costs in network calls; a gradient counts as two."""


# ── the machine's best ────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Convolution:
    """A 3×3 convolution of the network, alone: it does most of the work, so it says what the machine can do."""

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


def precisions(device: torch.device) -> tuple[str, ...]:
    """What the machine computes in fast, fp32 first."""
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("fp32", "strict fp32", "tf32", "bf16") if able else ("fp32",)
    able = capabilities()
    return ("fp32", "bf16") if any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")) else ("fp32",)


def capabilities() -> dict[str, Any]:
    """Of the CPU, in torch's words; a torch that has none says nothing."""
    return getattr(torch.cpu, "get_capabilities", dict)()


# ── what needs a process of its own ───────────────────────────────────────────────────────────────


def alone(function: Callable, *arguments) -> float:
    """What it answers in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def compile_seconds(part: str, name: str, shape: Shape, batch: int, device: torch.device) -> float:
    """What the first call takes more than the second."""
    make, _ = PARTS[part]
    call = make(name, Setting(compiled="default"), shape, batch, device)
    return timed(call) - timed(call)


def peak_memory(name: str, shape: Shape, batch: int, device: torch.device) -> int:
    """Bytes at most in two steps of training: the GPU's tensors, or all of the process (as Linux counts it)."""
    call = training(name, EVERYONE[name].shipped, shape, batch, device)
    for _ in range(2):
        call()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()             # getrusage would count what the parent had, too
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])
