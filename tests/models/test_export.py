"""The network as one graph: compiled, exported, and in onnxruntime."""

import pytest
import torch
from helpers import randomized, small_unet

from diffunet.models.conditioning import Conditioning, LabelEmbedding, PlaneEmbedding, TimeEmbedding, TokenEmbedding
from diffunet.models.config import LevelConfig
from diffunet.models.denoiser import Denoiser
from diffunet.models.unet import UNet


@pytest.fixture(params=[2, 3])
def example(request):
    """A denoiser with conditions on every route, and the arguments of a call."""
    dims = request.param
    unet = UNet(small_unet(dims=dims, token_dim=6, plane_channels=2, head_channels=4))
    model = Denoiser(
        unet,
        TimeEmbedding(32, 8),
        label=LabelEmbedding(32, num_classes=3),
        text=TokenEmbedding(6, width=5),
        sketch=PlaneEmbedding(channels=1, dims=dims),
    )
    size = (8,) * dims
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    text, sketch = (torch.randn(2, 3, 5), mask), torch.randn(2, 1, *size)
    conditions = {"label": torch.tensor([0, 2]), "text": text, "sketch": sketch}
    return randomized(model), (torch.randn(2, 3, *size), torch.tensor([3, 700])), conditions


@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_unet_compiles_without_graph_break(checkpointing):
    levels = (LevelConfig(channels=4, blocks=1, gradient_checkpointing=checkpointing),)
    unet = randomized(UNet(small_unet(levels=levels, norm_groups=2, middle_blocks=0)))
    x, cond = torch.randn(2, 3, 8, 8), Conditioning(vector=torch.randn(2, 32))
    traced = torch.compile(unet, fullgraph=True, backend="eager")
    with torch.set_grad_enabled(checkpointing):
        torch.testing.assert_close(traced(x, cond), unet(x, cond), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_denoiser_compiles_without_graph_break(example):
    model, arguments, conditions = example
    expected = model(*arguments, **conditions)
    traced = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(traced(*arguments, **conditions), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_inductor_output_matches_eager():
    """Through the real compiler: the smallest network with all parts."""
    levels = (LevelConfig(channels=4, blocks=1, attention=True), LevelConfig(channels=4, up=(4,)))
    unet = randomized(UNet(small_unet(levels=levels, token_dim=5, norm_groups=2, middle_blocks=0)))
    x, cond = torch.randn(2, 3, 8, 8), Conditioning(vector=torch.randn(2, 32), tokens=torch.randn(2, 3, 5))
    compiled = torch.compile(unet, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, cond), unet(x, cond), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_exported_program_matches(example):
    model, arguments, conditions = example
    program = torch.export.export(model, arguments, conditions)
    expected = model(*arguments, **conditions)
    torch.testing.assert_close(program.module()(*arguments, **conditions), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_onnxruntime_output_matches(example, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install onnxruntime")
    pytest.importorskip("onnxscript", reason="pip install onnx onnxscript")
    model, arguments, conditions = example
    torch.onnx.export(model, arguments, tmp_path / "unet.onnx", kwargs=conditions, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "unet.onnx", providers=["CPUExecutionProvider"])
    given = [*arguments, conditions["label"], *conditions["text"], conditions["sketch"]]
    inputs = {place.name: value.numpy() for place, value in zip(session.get_inputs(), given, strict=True)}
    expected = model(*arguments, **conditions).detach()
    assert expected.std() > 0.05
    torch.testing.assert_close(torch.from_numpy(session.run(None, inputs)[0]), expected, atol=1e-4, rtol=0)
