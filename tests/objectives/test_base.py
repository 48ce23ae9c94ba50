"""What holds for every objective."""

import pytest
import torch

from diffunet.objectives.ddpm import DDPM, DDPMConfig
from diffunet.objectives.edm import EDM, EDMConfig
from diffunet.objectives.flow import Flow, FlowConfig
from diffunet.objectives.base import noise_bins
from diffunet.core.rng import BatchRNG
from diffunet.core.errors import UserError

OBJECTIVES = {"diffusion": (DDPM, DDPMConfig), "edm": (EDM, EDMConfig), "flow": (Flow, FlowConfig)}


@pytest.fixture(params=OBJECTIVES)
def objective(request):
    kind, config = OBJECTIVES[request.param]
    return kind(config())


def test_the_loss_is_fp32_and_split_by_noise(objective):
    dtypes = []

    def model(x_t, t):
        dtypes.append(x_t.dtype)
        return torch.zeros_like(x_t, dtype=torch.bfloat16)

    with torch.autocast("cpu", torch.bfloat16):
        losses = objective.loss(model, torch.zeros(64, 1, 4, 4))
    assert dtypes == [torch.float32]
    assert losses["loss"].dtype == torch.float32
    names = ("loss_noise0-25", "loss_noise25-50", "loss_noise50-75", "loss_noise75-100")
    assert losses.keys() == {"loss", *names}
    bands = torch.stack([losses[name] for name in names])
    assert (bands.isfinite().sum(0) == 1).all()
    torch.testing.assert_close(bands.nan_to_num().sum(0), losses["loss"])


def test_more_u_is_more_noise_and_a_later_time(objective):
    u = torch.linspace(0.001, 0.999, 50)
    image, noise = torch.zeros(50, 1, 64, 64), torch.randn(1, 1, 64, 64).expand(50, -1, -1, -1)
    clean = objective.add_noise(torch.ones_like(image), torch.zeros_like(noise), u)
    noisy = objective.add_noise(image, noise, u)
    share = noisy.x_t.flatten(1).std(1) / clean.x_t.flatten(1).mean(1)
    assert (share.diff() > 0).all()
    assert (noisy.t.diff() > 0).all()
    times = torch.tensor([objective.time(float(place)) for place in u])
    torch.testing.assert_close(times, noisy.t.float(), atol=1.0, rtol=1e-4)    # DDPM's are whole numbers


def test_the_ends_of_the_axis_hold_every_time_of_the_sampler(objective):
    sampler = objective.sampler("dpm++", 20)
    assert objective.time(0.0) <= sampler.timesteps.min()
    assert objective.time(1.0) >= sampler.timesteps.max()


def test_conditions_are_withheld_at_their_rate(objective):
    objective.config = objective.config.model_copy(update={"condition_dropout": 0.25})
    seen = []

    def model(x_t, t, told, label):
        seen.append(told)
        return x_t

    for _ in range(50):
        objective.loss(model, torch.zeros(64, 1, 2, 2), label=torch.zeros(64))
    assert 1 - torch.cat(seen).float().mean().item() == pytest.approx(0.25, abs=0.03)
    objective.loss(lambda x_t, t: x_t, torch.zeros(4, 1, 2, 2))                # nothing to withhold


def test_the_loss_follows_from_the_randomness_it_is_given(objective):
    def losses():
        rng = BatchRNG(torch.Generator().manual_seed(3))
        return objective.loss(lambda x_t, t: 0.5 * x_t, torch.ones(8, 1, 4, 4), rng)["loss"]

    assert torch.equal(losses(), losses())


def test_wrong_samplers_are_refused_with_the_nearest(objective):
    with pytest.raises(UserError, match=r"sampler: dpm\+ is not one of dpm\+\+, .*did you mean dpm\+\+"):
        objective.sampler("dpm+", 20)
    with pytest.raises(UserError, match="steps: 0"):
        objective.sampler("dpm++", 0)


def test_bands_share_the_axis_out():
    bands = noise_bins(torch.tensor([0.0, 0.2499, 0.25, 0.9999]))
    assert [inside.tolist().index(True) if inside.any() else None for inside in bands.values()] == [0, 2, None, 3]
    assert torch.stack(list(bands.values())).sum(0).tolist() == [1, 1, 1, 1]
