import copy

import pytest
import torch
from helpers import randomised, small_unet
from torch import nn

from diffunet.core.runtime import RuntimeConfig, autocast, precision, ready
from diffunet.core.errors import UserError
from diffunet.models.unet import UNet

CPU = torch.device("cpu")


@pytest.mark.parametrize(("flags", "chosen"), [({}, "no"), ({"avx512_f": True}, "no"), ({"avx512_bf16": True}, "bf16")])
def test_auto_is_bf16_where_the_hardware_has_it(flags, chosen, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    assert precision("auto", CPU) == chosen
    assert precision("no", CPU) == "no"
    assert precision("bf16", CPU) == "bf16"


def test_a_gpu_is_asked_for_bf16_without_emulation(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    assert precision("auto", torch.device("cuda")) == "bf16"


def test_fp16_needs_a_gpu():
    with pytest.raises(UserError, match="fp16 needs a GPU; use no or bf16"):
        precision("fp16", CPU)
    assert precision("fp16", torch.device("cuda")) == "fp16"


def test_within_it_is_bf16_and_around_it_fp32():
    unet, seen = randomised(UNet(small_unet(vector_dim=0))), []
    unet.stem.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    x = torch.randn(2, 3, 8, 8)
    exact, rounded = unet(x), autocast(unet, "bf16", CPU)(x)
    assert seen == [torch.float32, torch.bfloat16]
    assert rounded.dtype == torch.float32
    error = (rounded - exact).norm() / exact.norm()
    assert 1e-4 < error < 0.05  # 8 bits of a fraction, through two levels
    assert autocast(unet, "no", CPU) is unet


def test_the_order_of_memory_changes_nothing_else():
    unet = randomised(UNet(small_unet(vector_dim=0)))
    arranged = copy.deepcopy(unet)
    ready(arranged, RuntimeConfig())
    assert arranged.stem.weight.is_contiguous(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 9, 8)
    torch.testing.assert_close(arranged(x), unet(x), rtol=1e-4, atol=1e-5)
    for name, tensor in unet.state_dict().items():
        assert torch.equal(arranged.state_dict()[name], tensor)
    left = copy.deepcopy(unet)
    ready(left, RuntimeConfig(channels_last=False))
    assert left.stem.weight.is_contiguous()


def test_only_true_compiles_and_only_once_and_not_the_copies(monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "somewhere")
    calls = []

    class Compiled(nn.Module):
        def compile(self):
            calls.append(self)
            self._compiled_call_impl = "compiled code"

    unet = Compiled()
    for wish in ("auto", False, True, True):
        ready(unet, RuntimeConfig(compile=wish))
    assert calls == [unet]
    assert copy.deepcopy(unet)._compiled_call_impl is None
