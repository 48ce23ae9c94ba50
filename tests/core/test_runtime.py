import copy
import os

import pytest
import torch
from helpers import randomized, small_unet
from torch import nn

from diffunet.core import runtime
from diffunet.core.errors import UserError
from diffunet.core.runtime import RuntimeConfig, autocast, precision, prepare_for
from diffunet.models.config import LevelConfig, UNetConfig
from diffunet.models.unet import UNet

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "expected"), [({}, "no"), ({"avx512_f": True}, "no"), ({"avx512_bf16": True}, "bf16")]
)
def test_auto_is_bf16_on_hardware_with_bf16(flags, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    assert precision("auto", CPU) == expected
    assert precision("no", CPU) == "no"
    assert precision("bf16", CPU) == "bf16"


def test_emulated_bf16_of_a_gpu_does_not_count(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    assert precision("auto", torch.device("cuda")) == "bf16"


def test_fp16_needs_a_gpu():
    with pytest.raises(UserError, match="fp16 needs a GPU; use no or bf16"):
        precision("fp16", CPU)
    assert precision("fp16", torch.device("cuda")) == "fp16"


def test_autocast_computes_in_bf16_and_returns_fp32():
    unet, dtypes = randomized(UNet(small_unet(vector_dim=0))), []
    unet.stem.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    x = torch.randn(2, 3, 8, 8)
    exact, rounded = unet(x), autocast(unet, "bf16", CPU)(x)
    assert dtypes == [torch.float32, torch.bfloat16]
    assert rounded.dtype == torch.float32
    error = (rounded - exact).norm() / exact.norm()
    assert 1e-4 < error < 0.05  # a significand of 8 bits, through two levels
    assert autocast(unet, "no", CPU) is unet


def test_memory_format_changes_neither_output_nor_state_dict():
    unet = randomized(UNet(small_unet(vector_dim=0)))
    channels_last = copy.deepcopy(unet)
    prepare_for(channels_last, RuntimeConfig(channels_last=True))
    assert channels_last.stem.weight.is_contiguous(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 9, 8)
    torch.testing.assert_close(channels_last(x), unet(x), rtol=1e-4, atol=1e-5)
    for name, tensor in unet.state_dict().items():
        assert torch.equal(channels_last.state_dict()[name], tensor)
    unchanged = copy.deepcopy(unet)
    prepare_for(unchanged, RuntimeConfig(channels_last=False))
    assert unchanged.stem.weight.is_contiguous()


@pytest.mark.parametrize(
    "device, precision, channels, expected",
    [("cpu", "no", 32, True), ("cpu", "bf16", 32, False), ("cpu", "bf16", 64, True), ("cuda", "bf16", 32, True)],
)
def test_auto_stores_channels_last_except_of_narrow_networks_in_bf16_on_a_cpu(
    monkeypatch, device, precision, channels, expected
):
    monkeypatch.setattr("diffunet.core.runtime.default_device", lambda: torch.device(device))
    unet = UNet(UNetConfig(levels=[LevelConfig(channels=channels, blocks=1)] * 2, in_channels=3, out_channels=3))
    prepare_for(unet, RuntimeConfig(mixed_precision=precision))
    assert unet.stem.weight.is_contiguous(memory_format=torch.channels_last) == expected


def test_compile_true_compiles_once_and_copies_are_not_compiled(monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "somewhere")
    calls = []

    class Compiled(nn.Module):
        def compile(self):
            calls.append(self)
            self._compiled_call_impl = "compiled code"

    unet = Compiled()
    for requested in ("auto", False, True, True):
        prepare_for(unet, RuntimeConfig(compile=requested))
    assert calls == [unet]
    assert copy.deepcopy(unet)._compiled_call_impl is None


@pytest.mark.parametrize("deterministic", [True, False])
def test_deterministic_algorithms_are_for_gpus(monkeypatch, deterministic):
    calls = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode, warn_only: calls.append((mode, warn_only)))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", deterministic)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", not deterministic)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # to be restored
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(runtime, "default_device", lambda: torch.device("cpu"))
    runtime.set_deterministic(deterministic)
    assert calls == []
    monkeypatch.setattr(runtime, "default_device", lambda: torch.device("cuda"))
    runtime.set_deterministic(deterministic)
    assert calls == [(deterministic, True)]
    assert torch.backends.cudnn.benchmark is not deterministic
    assert torch.backends.cudnn.deterministic is deterministic
    assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) is deterministic
