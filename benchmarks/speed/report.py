"""Shared by the speed benchmarks: the head of a report, tables, and raw rows (records.py one folder up)."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).parent.parent))
from records import add_record_flag, append_rows, commit, table

__all__ = ["add_record_flag", "append_rows", "capabilities", "header", "precisions", "table"]
PACKAGES = ("torch", "diffusers", "monai", "denoising-diffusion-pytorch", "ema-pytorch")


def header(device: torch.device) -> str:
    """Return the machine, the versions and the command of a report."""
    if device.type == "cuda":
        where = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    else:
        name = capabilities().get("cpu_name", platform.machine())
        where = f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
        where += f", {torch.backends.cpu.get_cpu_capability()}"
    lines = [where, ", ".join([*(f"{name} {installed(name)}" for name in PACKAGES), f"diffunet {commit()}"])]
    if "bf16" not in precisions(device):
        lines.append("This hardware has no bf16, which would be slower than fp32 and is left out")
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    return ".\n".join(lines) + f".\n\n    python benchmarks/speed/{' '.join(words)}\n"


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def precisions(device: torch.device) -> tuple[str, ...]:
    """Return the precisions that the device has in hardware, fp32 first."""
    if device.type == "cuda":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("fp32", "strict fp32", "tf32", "bf16") if bf16 else ("fp32",)
    able = capabilities()
    return ("fp32", "bf16") if any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")) else ("fp32",)


def capabilities() -> dict[str, Any]:
    """Return torch's description of the CPU, or nothing before torch 2.9."""
    return getattr(torch.cpu, "get_capabilities", dict)()
