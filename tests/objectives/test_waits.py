"""No step waits for the device: everything runs on meta tensors, which have no values, so that a look at one fails."""

import pytest
import torch
from helpers import small_unet

from diffunet.conditions.label import LabelConfig
from diffunet.core.errors import UserError
from diffunet.core.rng import BatchRNG
from diffunet.models.denoiser import Denoiser
from diffunet.objectives.ddpm import DDPM, DDPMConfig
from diffunet.objectives.edm import EDM, EDMConfig
from diffunet.objectives.flow import Flow, FlowConfig
from diffunet.sampling.guidance import Guided
from diffunet.sampling.loop import sample
from diffunet.training.log import Log

OBJECTIVES = {
    "ddpm": DDPM(DDPMConfig(prediction_type="v_prediction")),
    "weighted ddpm": DDPM(DDPMConfig(min_snr_gamma=5.0)),
    "edm": EDM(EDMConfig()),
    "flow": Flow(FlowConfig()),
}
OF_DIFFUSERS = {"unipc", "euler-a"}
"""Samplers that look at their numbers on the device."""


def on_meta() -> Denoiser:
    label = LabelConfig(num_classes=10, class_names=tuple("0123456789"))
    return Denoiser.from_config(small_unet(in_channels=1, out_channels=1), {"label": label}).to("meta")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_loss_and_its_gradient_are_queued_without_a_look(name, tmp_path):
    model = on_meta()
    images, label = torch.empty(4, 1, 8, 8, device="meta"), torch.zeros(4, dtype=torch.int64, device="meta")
    losses = OBJECTIVES[name].loss(model, rng=BatchRNG(), image=images, label=label)
    losses["loss"].mean().backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    log = Log(tmp_path / "log.jsonl")
    for key, values in {**losses, "grad_norm": norm.reshape(1)}.items():
        log.count(key, values.detach())
    with pytest.raises((RuntimeError, NotImplementedError)):
        losses["loss"].mean().item()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_samplers_of_ours_are_queued_without_a_look(name):
    objective, model, sampled = OBJECTIVES[name], on_meta(), []
    noise, label = torch.empty(2, 1, 8, 8, device="meta"), torch.zeros(2, dtype=torch.int64, device="meta")
    for kind in sorted(set(objective.samplers()) - OF_DIFFUSERS):
        try:
            sampler = objective.sampler(kind, 4)
        except UserError:  # not of this objective
            continue
        generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
        images = sample(Guided(model, 1.5), sampler, noise, generators, label=label)
        assert images.shape == noise.shape
        assert images.device.type == "meta"
        sampled.append(kind)
    assert "dpm++" in sampled
    with pytest.raises((RuntimeError, NotImplementedError)):  # an interval has to know the time
        sample(Guided(model, 1.5, (0.0, 1.0)), objective.sampler("dpm++", 4), noise, label=label)
