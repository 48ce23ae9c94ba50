"""guided_diffusion.json was recorded from OpenAI's own code: names, shapes, and outputs of its network.

Its weights, and then x, are numpy.random.RandomState(0).standard_normal in the order of the names; weights times 0.1.
"""

import hashlib
import json
from pathlib import Path

import numpy
import pytest
import torch
import torch.nn.functional as F
from helpers import randomized

from diffunet.conditions.label import LabelConfig
from diffunet.core.errors import UserError
from diffunet.interop.guided_diffusion import (
    load_guided_diffusion,
    save_guided_diffusion,
    to_guided_diffusion_tensors,
)
from diffunet.models.conditioning import Conditioning
from diffunet.models.config import LevelConfig, UNetConfig
from diffunet.models.denoiser import Denoiser

RECORDED = json.loads(Path(__file__).with_name("guided_diffusion.json").read_text())
NETWORKS = {
    "new_order": (
        UNetConfig(
            levels=[LevelConfig(channels=32, blocks=1), LevelConfig(channels=64, blocks=1, attention=True)],
            out_channels=6,
            vector_dim=128,
            head_channels=16,
            resampling="residual",
        ),
        {"label": LabelConfig(num_classes=5)},
    ),
    "legacy_order": (
        UNetConfig(
            levels=[
                LevelConfig(channels=32),
                LevelConfig(channels=32, attention=True),
                LevelConfig(channels=64, attention=True),
            ],
            vector_dim=128,
            head_channels=16,
            modulation="shift",
        ),
        {},
    ),
}


def recorded(name):
    """Return a checkpoint's tensors, and the generator from which x follows."""
    generator = numpy.random.RandomState(0)
    tensors = {
        key: torch.from_numpy(generator.standard_normal(shape).astype("float32") * 0.1)
        for key, shape in RECORDED[name]["tensors"]
    }
    return tensors, generator


def recorded_call(name, generator):
    """Return the recorded inputs of the network, and its output."""
    record = RECORDED[name]
    side = record["arguments"]["image_size"]
    x_t = torch.from_numpy(generator.standard_normal((2, 3, side, side)).astype("float32"))
    conditions = {"label": torch.tensor(record["labels"])} if record["labels"] else {}
    output = torch.tensor(record["output"]).reshape(record["output_shape"])
    assert output.std() > 0.05
    return (x_t, torch.tensor(record["timesteps"])), conditions, output


@pytest.mark.parametrize("name", NETWORKS)
def test_output_equals_that_of_openais_code(name, tmp_path):
    tensors, generator = recorded(name)
    torch.save(tensors, tmp_path / "theirs.pt")
    unet, conditions = NETWORKS[name]
    denoiser = load_guided_diffusion(tmp_path / "theirs.pt", unet, name.removesuffix("_order"), conditions)
    inputs, given, expected = recorded_call(name, generator)
    with torch.no_grad():
        found = denoiser(*inputs, **given)
    torch.testing.assert_close(found, expected, atol=5e-6, rtol=0)

    arguments = save_guided_diffusion(denoiser, tmp_path / "ours.pt")
    back = torch.load(tmp_path / "ours.pt", weights_only=True)
    assert back.keys() == tensors.keys()
    for key, tensor in tensors.items():
        if "qkv" not in key or name == "new_order":
            assert torch.equal(back[key], tensor), key
    built = RECORDED[name]["arguments"] | {"use_new_attention_order": True}
    assert {key: built[key] for key in arguments if key in built} == {
        key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items() if key in built
    }
    with torch.no_grad():
        again = load_guided_diffusion(tmp_path / "ours.pt", unet, "new", conditions)(*inputs, **given)
    assert torch.equal(again, found)


def test_number_of_heads_instead_of_channels_per_head(tmp_path):
    """The recorded network attends at one width only, so 16 channels per head and 4 heads are the same network."""
    tensors, generator = recorded("new_order")
    torch.save(tensors, tmp_path / "theirs.pt")
    unet, conditions = NETWORKS["new_order"]
    unet = unet.model_copy(update={"head_channels": None, "heads": 4})
    denoiser = load_guided_diffusion(tmp_path / "theirs.pt", unet, "new", conditions)
    inputs, given, expected = recorded_call("new_order", generator)
    with torch.no_grad():
        torch.testing.assert_close(denoiser(*inputs, **given), expected, atol=5e-6, rtol=0)
    arguments = save_guided_diffusion(denoiser, tmp_path / "ours.pt")
    assert (arguments["num_heads"], arguments["num_head_channels"]) == (4, -1)


def legacy_attention(qkv, heads):
    """Return guided-diffusion's `QKVAttentionLegacy`, from its description: each head has its q, k and v in a row."""
    batch, width, length = qkv.shape
    d = width // (3 * heads)
    q, k, v = qkv.reshape(batch * heads, 3 * d, length).split(d, dim=1)
    weight = torch.einsum("bct,bcs->bts", q, k).div(d**0.5).softmax(dim=-1)
    return torch.einsum("bts,bcs->bct", weight, v).reshape(batch, -1, length)


@pytest.mark.parametrize("heads", [{"heads": 4}, {"head_channels": 16}])
def test_legacy_order_at_two_widths(tmp_path, heads):
    """With a number of heads, as in 128x128_diffusion.pt, heads are wider where there are more channels."""
    levels = [LevelConfig(channels=32, blocks=1, attention=True), LevelConfig(channels=64, blocks=1, attention=True)]
    unet = UNetConfig(levels=levels, vector_dim=128, **heads)
    theirs = to_guided_diffusion_tensors(randomized(Denoiser.from_config(unet)).state_dict(), unet)
    torch.save(theirs, tmp_path / "theirs.pt")
    body = load_guided_diffusion(tmp_path / "theirs.pt", unet, "legacy").unet.body
    for name, block, width in (("input_blocks.1.1", body.down[0][1], 32), ("middle_block.1", body.inner.inner[1], 64)):
        weights = {key.removeprefix(f"{name}."): tensor for key, tensor in theirs.items() if key.startswith(name)}
        x = torch.randn(2, width, 4, 4)
        norm = F.group_norm(x, 32, weights["norm.weight"], weights["norm.bias"], 1e-5).flatten(2)
        qkv = F.conv1d(norm, weights["qkv.weight"], weights["qkv.bias"])
        attended = legacy_attention(qkv, heads.get("heads", width // 16))
        expected = x + F.conv1d(attended, weights["proj_out.weight"], weights["proj_out.bias"]).view_as(x)
        torch.testing.assert_close(block(x, Conditioning()), expected, atol=1e-5, rtol=1e-5)


def test_adm_64_has_the_names_and_shapes_of_imagenet_64():
    record = RECORDED["adm_64"]
    with torch.device("meta"):
        denoiser = Denoiser.from_config(UNetConfig(preset="adm_64"), {"label": LabelConfig(num_classes=1000)})
    tensors = denoiser.state_dict()
    tensors["embeddings.label.table.weight"] = tensors["embeddings.label.table.weight"][:-1]
    theirs = to_guided_diffusion_tensors(tensors, denoiser.unet.config)
    assert sum(tensor.numel() for tensor in theirs.values()) == record["parameters"] == 295_904_454
    assert len(theirs) == record["tensors"]
    lines = "\n".join(sorted(f"{name} {tuple(tensor.shape)}" for name, tensor in theirs.items()))
    assert hashlib.sha256(lines.encode()).hexdigest() == record["sha256"]


def test_null_class_is_exported_as_one_more_class(tmp_path):
    unet, conditions = NETWORKS["new_order"]
    denoiser = randomized(Denoiser.from_config(unet, conditions))
    assert save_guided_diffusion(denoiser, tmp_path / "ours.pt")["num_classes"] == 6
    back = load_guided_diffusion(tmp_path / "ours.pt", unet, "new", conditions)
    x_t, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 700])
    assert torch.equal(back(x_t, t), denoiser(x_t, t))


def test_mismatches_are_named(tmp_path):
    unet, conditions = NETWORKS["new_order"]
    tensors, _ = recorded("new_order")
    path = tmp_path / "theirs.pt"

    def load(changed, **changes):
        torch.save(changed, path)
        return load_guided_diffusion(path, unet.model_copy(update=changes), "new", conditions)

    with pytest.raises(UserError, match="theirs.pt: out.3.weight has no counterpart in the target network"):
        load(tensors | {"out.3.weight": torch.zeros(1)})
    with pytest.raises(UserError, match="unet.stem.bias is missing"):
        load({name: tensor for name, tensor in tensors.items() if name != "input_blocks.0.0.bias"})
    with pytest.raises(UserError, match=r"unet.head.2.weight has shape \(6, 32, 3, 3\) instead of \(3, 32, 3, 3\)"):
        load(tensors, out_channels=3)
    with pytest.raises(UserError, match="unet.skips: guided-diffusion's UNetModel cannot express"):
        load(tensors, skips="level")
    with pytest.raises(UserError, match=r"theirs.pt: an upsampler, .*input_blocks.0.0.weight has 6"):
        load(tensors | {"input_blocks.0.0.weight": torch.zeros(32, 6, 3, 3)})
    with pytest.raises(UserError, match="expected tensors by name"):
        load({"state": {"a": 1}})


def test_conditions_other_than_one_label_are_refused(tmp_path):
    unet, _ = NETWORKS["new_order"]
    two = Denoiser.from_config(unet, {"digit": LabelConfig(num_classes=10), "writer": LabelConfig(num_classes=3)})
    with pytest.raises(UserError, match=r"guided-diffusion's UNetModel has one label condition \(got digit, writer\)"):
        save_guided_diffusion(two, tmp_path / "two.pt")
    other = Denoiser(two.unet, two.time, pose=torch.nn.Linear(3, 128))
    with pytest.raises(UserError, match="conditions.pose: guided-diffusion's UNetModel has no such condition"):
        save_guided_diffusion(other, tmp_path / "other.pt")


class Exploit:
    def __reduce__(self):
        return print, ("executed",)


def test_a_hostile_file_is_not_executed(tmp_path, capsys):
    unet, conditions = NETWORKS["new_order"]
    torch.save({"a": Exploit()}, tmp_path / "hostile.pt")
    with pytest.raises(UserError, match="hostile.pt: not a file of tensors"):
        load_guided_diffusion(tmp_path / "hostile.pt", unet, "new", conditions)
    assert "executed" not in capsys.readouterr().out
    (tmp_path / "text.pt").write_text("no tensors")
    with pytest.raises(UserError, match="text.pt: not a file of tensors"):
        load_guided_diffusion(tmp_path / "text.pt", unet, "new", conditions)
    with pytest.raises(UserError, match="nowhere.pt: no such file"):
        load_guided_diffusion(tmp_path / "nowhere.pt", unet, "new", conditions)
