"""guided_diffusion.json was recorded from OpenAI's own code: names, shapes, and what the network answers.

Its weights, and then x, are numpy.random.RandomState(0).standard_normal in the order of the names; weights times 0.1.
"""

import hashlib
import json
from pathlib import Path

import numpy
import pytest
import torch
from helpers import randomised

from diffunet.models.denoiser import ConditionsConfig, Denoiser
from diffunet.interop.guided_diffusion import (
    load_guided_diffusion,
    save_guided_diffusion,
    to_guided_diffusion_tensors,
)
from diffunet.core.errors import UserError
from diffunet.models.unet import LevelConfig, UNetConfig

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
        ConditionsConfig(classes=5),
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
        ConditionsConfig(),
    ),
}


def recorded(name):
    """A checkpoint's tensors, and arrays as they continue."""
    generator = numpy.random.RandomState(0)
    tensors = {
        key: torch.from_numpy(generator.standard_normal(shape).astype("float32") * 0.1)
        for key, shape in RECORDED[name]["tensors"]
    }
    return tensors, generator


@pytest.mark.parametrize("name", NETWORKS)
def test_answers_as_openais_own_code(name, tmp_path):
    said = RECORDED[name]
    tensors, generator = recorded(name)
    torch.save(tensors, tmp_path / "theirs.pt")
    unet, conditions = NETWORKS[name]
    denoiser = load_guided_diffusion(tmp_path / "theirs.pt", unet, name.removesuffix("_order"), conditions)

    side = said["arguments"]["image_size"]
    x_t = torch.from_numpy(generator.standard_normal((2, 3, side, side)).astype("float32"))
    told = {"label": torch.tensor(said["labels"])} if said["labels"] else {}
    with torch.no_grad():
        found = denoiser(x_t, torch.tensor(said["timesteps"]), **told)
    expected = torch.tensor(said["output"]).reshape(said["output_shape"])
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, atol=5e-6, rtol=0)

    arguments = save_guided_diffusion(denoiser, tmp_path / "ours.pt")
    back = torch.load(tmp_path / "ours.pt", weights_only=True)
    assert back.keys() == tensors.keys()
    for key, tensor in tensors.items():
        if "qkv" not in key or name == "new_order":
            assert torch.equal(back[key], tensor), key
    built = said["arguments"] | {"use_new_attention_order": True}
    assert {key: built[key] for key in arguments if key in built} == {
        key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items() if key in built
    }
    with torch.no_grad():
        again = load_guided_diffusion(tmp_path / "ours.pt", unet, "new", conditions)(
            x_t, torch.tensor(said["timesteps"]), **told
        )
    assert torch.equal(again, found)


def test_adm_64_has_the_names_and_shapes_of_imagenet_64():
    said = RECORDED["adm_64"]
    with torch.device("meta"):
        denoiser = Denoiser.from_config(UNetConfig(preset="adm_64"), ConditionsConfig(classes=1000))
    tensors = denoiser.state_dict()
    tensors["embeddings.label.table.weight"] = tensors["embeddings.label.table.weight"][:-1]
    theirs = to_guided_diffusion_tensors(tensors, denoiser.unet.config)
    assert sum(tensor.numel() for tensor in theirs.values()) == said["parameters"] == 295_904_454
    assert len(theirs) == said["tensors"]
    lines = "\n".join(sorted(f"{name} {tuple(tensor.shape)}" for name, tensor in theirs.items()))
    assert hashlib.sha256(lines.encode()).hexdigest() == said["sha256"]


def test_a_class_of_its_own_for_not_told(tmp_path):
    unet, conditions = NETWORKS["new_order"]
    denoiser = randomised(Denoiser.from_config(unet, conditions))
    assert save_guided_diffusion(denoiser, tmp_path / "ours.pt")["num_classes"] == 6
    back = load_guided_diffusion(tmp_path / "ours.pt", unet, "new", conditions)
    x_t, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 700])
    assert torch.equal(back(x_t, t), denoiser(x_t, t))


def test_what_does_not_fit_is_named(tmp_path):
    unet, conditions = NETWORKS["new_order"]
    tensors, _ = recorded("new_order")
    path = tmp_path / "theirs.pt"

    def load(changed, **changes):
        torch.save(changed, path)
        return load_guided_diffusion(path, unet.model_copy(update=changes), "new", conditions)

    with pytest.raises(UserError, match="theirs.pt: out.3.weight has no place in this U-Net"):
        load(tensors | {"out.3.weight": torch.zeros(1)})
    with pytest.raises(UserError, match="unet.stem.bias is missing"):
        load({name: tensor for name, tensor in tensors.items() if name != "input_blocks.0.0.bias"})
    with pytest.raises(UserError, match=r"unet.head.2.weight has shape \(6, 32, 3, 3\) instead of \(3, 32, 3, 3\)"):
        load(tensors, out_channels=3)
    with pytest.raises(UserError, match="unet.skips: guided-diffusion's UNetModel cannot express"):
        load(tensors, skips="level")
    with pytest.raises(UserError, match="expected tensors by name"):
        load({"state": {"a": 1}})


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
