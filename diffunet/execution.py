"""How a network is run: in which precision and order of memory, and whether compiled. What it computes stays the same.

What each of these brings is measured in docs/performance.md.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from .settings import Settings, UserError

COMPILED_CODE = Path.home() / ".cache" / "diffunet" / "compiled"
"""Where torch's compiler keeps what it made for the next process, unless TORCHINDUCTOR_CACHE_DIR names a place."""


class Execution(Settings):
    """How to run a network."""

    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Precision of the network; what is around it, such as the loss, is always fp32. auto: bf16 where the hardware
    has it."""
    channels_last: bool = True
    """Keep the channels of a place together in memory, as convolutions like it; false: torch's own order."""
    compile: bool | Literal["auto"] = "auto"
    """Compile the network: minutes at first, seconds from the cache. auto: in trainings of over half an hour."""


def precision(wish: str, device: torch.device) -> str:
    """`no`, `bf16` or `fp16`: what is wished, or for `auto` the fastest there. UserError for fp16 on a CPU."""
    if wish == "fp16" and device.type == "cpu":
        raise UserError("mixed_precision: fp16 needs a GPU; use no or bf16")
    return ("bf16" if _has_bf16(device) else "no") if wish == "auto" else wish


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}    # since torch 2.10
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def ready(unet: nn.Module, wish: Execution) -> None:
    """Brings a network into the order of memory that is wished; compiles it, where it is first called, for `true`."""
    if wish.channels_last:
        unet.to(memory_format=torch.channels_last)
    if wish.compile is True and unet._compiled_call_impl is None:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(COMPILED_CODE))
        unet.compile()


def in_precision(model: Callable[..., Tensor], wish: str, device: torch.device) -> Callable[..., Tensor]:
    """The same model, answering in fp32; convolutions and matrix products within it have that precision."""
    chosen = precision(wish, device)
    if chosen == "no":
        return model
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[chosen]

    def call(*inputs: Tensor, **conditions: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype):
            return model(*inputs, **conditions).float()

    return call


def wait_for(device: torch.device) -> None:
    """Until the device has done what was asked of it."""
    if device.type != "cpu":
        torch.accelerator.synchronize()
