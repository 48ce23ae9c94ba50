"""Device, precision, memory format and compilation of a network; docs/performance.md has the effect of each."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from .errors import UserError
from .settings import Settings
from .storage import cache_folder


class RuntimeConfig(Settings):
    """Precision, memory format and compilation of a network."""

    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Precision of the network; loss and sampler are always fp32. auto: bf16 where the hardware has it."""
    channels_last: bool | Literal["auto"] = "auto"
    """Store the channels of a pixel next to each other, which convolutions prefer; false: torch's own order. auto:
    true, except in bf16 on a CPU for narrow networks, whose group norms are slow so."""
    compile: bool | Literal["auto"] = "auto"
    """Compile the network: minutes the first time, seconds from the cache. auto: if training exceeds half an hour, on a
    GPU five minutes."""


def default_device() -> torch.device:
    """Return the accelerator of this machine, or its CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def device_name(device: torch.device) -> str:
    """Return the kind of device, of a GPU its model: with another one, random numbers and sums are others."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
"""Memory formats with the channels last, by the axes of a convolution's weight."""
NARROW = 64
"""Channels below which torch's group norm in bf16 on a CPU is slow where they are last in memory."""


def precision(requested: str, device: torch.device) -> str:
    """Return `no`, `bf16` or `fp16`; for `auto` the fastest that the device has. Raise UserError for fp16 on a CPU."""
    if requested == "fp16" and device.type == "cpu":
        raise UserError("mixed_precision: fp16 needs a GPU; use no or bf16")
    return ("bf16" if _has_bf16(device) else "no") if requested == "auto" else requested


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}  # since torch 2.10
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def prepare_for(unet: nn.Module, config: RuntimeConfig) -> None:
    """Set the memory format of a network, and compile it at its first call if `compile` is true."""
    weights = max((parameter.dim() for parameter in unet.parameters()), default=0)  # 4 in 2-D, 5 in 3-D
    channels_last = not _prefers_contiguous(unet, config) if config.channels_last == "auto" else config.channels_last
    if channels_last and weights in FORMATS:
        unet.to(memory_format=FORMATS[weights])
    if config.compile is True and unet._compiled_call_impl is None:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder("compiled")))  # shared by all processes
        unet.compile()


def _prefers_contiguous(network: nn.Module, config: RuntimeConfig) -> bool:
    """Return whether the network is faster with channels first, which benchmarks/speed/bf16.py measures."""
    device = default_device()
    in_bf16_on_a_cpu = device.type == "cpu" and precision(config.mixed_precision, device) == "bf16"
    norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
    return in_bf16_on_a_cpu and any(norm.num_channels < NARROW for norm in norms)


def autocast(model: Callable[..., Tensor], requested: str, device: torch.device) -> Callable[..., Tensor]:
    """Return the model with convolutions and matrix products in that precision, and its output in fp32."""
    chosen = precision(requested, device)
    if chosen == "no":
        return model
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[chosen]

    def call(*inputs: Tensor, **conditions: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype):
            return model(*inputs, **conditions).float()

    return call


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all queued work."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def set_deterministic(deterministic: bool) -> None:
    """Let this process compute the same bytes each time on a GPU, or as fast as it can, as cuDNN finds by trying.

    What has no deterministic algorithm warns. CPUs are deterministic in either case.
    """
    if default_device().type == "cpu":
        return
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as its documentation asks for
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic
    torch.use_deterministic_algorithms(deterministic, warn_only=True)


def full_precision(device: torch.device) -> AbstractContextManager:
    """Return a context without autocast, for what mixed precision would spoil."""
    known = torch.amp.is_autocast_available(device.type)  # not of the meta device
    active = known and torch.is_autocast_enabled(device.type)  # exported networks have no trace of it
    return torch.autocast(device.type, enabled=False) if active else nullcontext()
