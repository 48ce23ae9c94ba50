"""Encoders from files: the same features from each format, and files that are none."""

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from helpers import thinned
from safetensors.torch import save_file
from torch import nn
from torchvision.models import VGG11_Weights
from torchvision.models.vgg import make_layers

from diffunet.core.errors import UserError
from diffunet.interop.tensor_files import load_encoder
from diffunet.models.config import UNetConfig
from diffunet.models.inspection import features
from diffunet.models.pretrained import match_encoder
from diffunet.models.unet import UNet

VGG11 = (8, "M", 16, "M", 32, 32, "M", 64, 64, "M", 64, 64, "M")
"""The layers of VGG11 with an eighth of their channels."""


class Code:
    """Leaves a file behind if it is unpickled."""

    def __reduce__(self):
        return exec, ("open('executed', 'w')",)


def narrow_vgg11() -> nn.Module:
    """Return torchvision's network, narrow, with a small classifier."""
    classifier = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    return nn.ModuleDict({"features": make_layers(list(VGG11)), "classifier": classifier}).eval()


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_a_file_of_torchvisions_vgg11_gives_its_features(tmp_path, suffix):
    """To the bit, although safetensors sorts features.10 before features.2 and the classifier before both."""
    vgg, file = narrow_vgg11(), str(tmp_path / f"vgg{suffix}")
    save = save_file if suffix == ".safetensors" else torch.save
    save(vgg.state_dict(), file)
    unet = UNet(thinned(UNetConfig(preset="ternaus11"), 8)).eval()
    found, left_out = match_encoder(unet, load_encoder(file))
    assert sorted(left_out) == [f"classifier.{index}.{kind}" for index in (0, 2) for kind in ("bias", "weight")]
    unet.load_state_dict(unet.state_dict() | found)
    x, depth = torch.randn(1, 3, 64, 64), 0
    with torch.no_grad():
        maps, h = features(unet, x), x
        for layer in vgg["features"]:
            if isinstance(layer, nn.MaxPool2d):
                assert torch.equal(maps[f"down.{depth}"], h)
                depth += 1
            h = layer(h)
    assert depth == 5


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("vgg12", "vgg12: neither a network of torchvision nor a file of tensors; did you mean vgg1"),
        (
            "weights.h5",
            "weights.h5: neither .*; use one of vgg11, .*, or a file .safetensors, .pth, .pt",
        ),
        ("gone.pth", "gone.pth: no such file"),
        ("gone.safetensors", "gone.safetensors: missing"),
        ("code.pth", "code.pth: not a file of tensors alone; write it with torch.save"),
        ("damaged.pth", "damaged.pth: not a file of tensors"),
        ("damaged.safetensors", "damaged.safetensors: damaged or not safetensors"),
        ("list.pt", "list.pt: expected tensors by name; write it with torch.save"),
        ("nested.pt", "nested.pt: expected tensors by name"),
    ],
)
def test_files_that_are_none_are_one_line(in_a_new_folder, name, line):
    """Code in a file is refused instead of executed."""
    torch.save({"0.weight": Code()}, "code.pth")
    torch.save([torch.zeros(1)], "list.pt")
    torch.save({"state_dict": {"0.weight": torch.zeros(1)}}, "nested.pt")
    for damaged in ("damaged.pth", "damaged.safetensors"):
        Path(damaged).write_bytes(Path("list.pt").read_bytes()[:200])
    with pytest.raises(UserError, match=line) as raised:
        load_encoder(name)
    assert "\n" not in str(raised.value)
    assert not Path("executed").exists()


def test_without_a_network_there_is_one_line(monkeypatch):
    def offline(self, *args, **options):
        raise URLError("Name or service not known")

    monkeypatch.setattr(VGG11_Weights, "get_state_dict", offline)
    with pytest.raises(UserError, match="vgg11: no download .*not known.*; fetch https://.*/vgg11-8a719046.pth"):
        load_encoder("vgg11")
