"""A network of fewer positions with more channels, trained on images as they are."""

from dataclasses import replace
from pathlib import Path

import torch
from helpers import train_small
from torch import nn

from diffunet.core.runtime import prepare_for
from diffunet.core.storage import load_tensors
from diffunet.models.conditioning import Conditioning
from diffunet.models.denoiser import Denoiser
from diffunet.models.unet import UNet
from diffunet.runs.config import Config
from diffunet.runs.run import Run
from diffunet.tasks.fit import fit
from diffunet.tasks.generation import generation
from diffunet.tasks.start import begin


class ByHand(nn.Module):
    """A U-Net of 4 C channels around which torch shuffles pixels."""

    def __init__(self, unet: UNet):
        super().__init__()
        self.inner = unet

    def forward(self, x: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        return nn.functional.pixel_shuffle(self.inner(nn.functional.pixel_unshuffle(x, 2), cond), 2)


def test_a_run_equals_that_of_the_reshaped_network_bit_for_bit(small):
    train_small("--unet.unshuffle", "2")
    config = Run("run").config()
    task = generation(config.replace(train={"output": "by_hand"}))

    def build(train) -> Denoiser:
        model = config.build_denoiser()
        plain = {"unshuffle": 1, "in_channels": 4, "out_channels": 4}
        inner = UNet(config.unet.model_copy(update=plain))
        inner.load_state_dict(model.unet.state_dict())
        prepare_for(inner, train.runtime)
        return Denoiser(ByHand(inner), model.time, **model.embeddings)

    assert not fit(replace(task, build_model=build), begin(task.config, False))
    weights = load_tensors(Path("run/model/diffusion_pytorch_model.safetensors"))
    by_hand = load_tensors(Path("by_hand/model/diffusion_pytorch_model.safetensors"))
    assert {name.replace("unet.inner.", "unet.") for name in by_hand} == weights.keys()
    assert all(torch.equal(value, weights[name.replace("unet.inner.", "unet.")]) for name, value in by_hand.items())
    samples = [(Path(folder) / "samples/step_00000012.png").read_bytes() for folder in ("run", "by_hand")]
    assert samples[0] == samples[1]


def test_sizes_follow(small, capsys):
    """The network chosen for a size is that of the smaller one; a sample has the size of the images."""
    train_small("--unet.levels", "auto", "--unet.unshuffle", "2", "--data.resolution", "16", "--train.steps", "1")
    config = Run("run").config(Config)
    assert [level.channels for level in config.unet.levels] == [16, 32]  # those for 8 x 8
    assert config.unet.strides == (4, 4)
    assert Run("run").sample(num_images=1, steps=1).pixels.shape == (1, 1, 16, 16)
