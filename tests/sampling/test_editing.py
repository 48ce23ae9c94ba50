"""Edits against closed forms, for every objective."""

import pytest
import torch
from helpers import gaussian_noise

from diffunet.core.errors import UserError
from diffunet.data.degradation import Degradation, Step
from diffunet.data.pixels import denormalize
from diffunet.models.denoiser import Denoiser
from diffunet.objectives.consistency import Consistency, ConsistencyConfig
from diffunet.objectives.ddpm import DDPM, DDPMConfig
from diffunet.objectives.edm import EDM, EDMConfig
from diffunet.objectives.flow import Flow, FlowConfig
from diffunet.sampling.editing import FROM_NOISE, Edit, Interpolate, Restore, Vary, invert, slerp
from diffunet.sampling.generate import SampleBatch, SampleConfig, Sampler
from diffunet.sampling.loop import sample

OBJECTIVES = {
    "linear": DDPM(DDPMConfig()),
    "cosine": DDPM(DDPMConfig(prediction_type="v_prediction", beta_schedule="cosine")),
    "edm": EDM(EDMConfig()),
    "flow": Flow(FlowConfig()),
}
MEANS, STD, SHARES = (-0.5, 0.3), 0.15, (0.3, 0.7)
"""Two kinds of images, of constant brightness but for independent noise: a mixture of two Gaussians per image."""


@pytest.fixture(params=OBJECTIVES)
def objective(request):
    return OBJECTIVES[request.param]


class Mixture(Denoiser):
    """The exact network for images that are, with probability SHARES, N(MEANS, STD²) in all pixels."""

    def __init__(self, objective):
        torch.nn.Module.__init__(self)
        self.objective, self.unet = objective, torch.nn.Linear(1, 1)

    def forward(self, x_t, t, **conditions):
        alpha, sigma = (level.double() for level in self.objective.levels(t))
        variance = alpha**2 * STD**2 + sigma**2
        means, x = x_t.new_tensor(MEANS, dtype=torch.float64), x_t.double()
        off = x[..., None] - alpha * means
        log_odds = torch.tensor(SHARES).double().log() - 0.5 * (off**2 / variance).sum((1, 2, 3))
        share = log_odds.softmax(1)[:, None, None, None]
        clean = (share * (means + alpha * STD**2 / variance * off)).sum(-1)
        return self.objective.prediction(clean, x, t).to(x_t)


def gaussian(objective, mean, std):
    """Return the exact network for independent pixels N(mean, std²)."""

    def call(x_t, t):
        alpha, sigma = (level.double() for level in objective.levels(t))
        clean = mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (x_t.double() - alpha * mean)
        return objective.prediction(clean, x_t.double(), t).to(x_t)

    return call


def sampler_of(objective, shape=(1, 4, 4)) -> Sampler:
    return Sampler(Mixture(objective), objective, shape, 8)


def edited(objective, edit, **settings) -> torch.Tensor:
    config = SampleConfig(**{"steps": 10, "sampler": "ancestral", **settings})
    return SampleBatch.concatenate(sampler_of(objective, (1, *edit.size)).sample(config, edit=edit)).pixels


# ── restoring ─────────────────────────────────────────────────────────────────────────────────────

STEPS = {
    "mask": [Step(mask=(0, 1))],
    "extend": [Step(extend=(2, 1, 0, 3))],
    "downscale": [Step(downscale=2)],
}


def restoration(case: str, count: int = 3, **settings) -> tuple[Restore, torch.Tensor]:
    """Return the restoration of some images of the mixture, and their pixels."""
    pixels = (torch.tensor(MEANS)[torch.arange(count) % 2].reshape(-1, 1, 1, 1) + STD * gaussian_noise(count, 8)).clamp(
        -1, 1
    )
    pixels = denormalize(pixels, 8)
    degradation = Degradation(STEPS[case], (1, 8, 8))
    images = pixels.float() / 127.5 - 1
    mask = (torch.rand(count, 1, 8, 8) < 0.5).float() if case == "mask" else None
    values = degradation.apply(images, mask)
    measurement = values if mask is None else torch.cat([values, mask], 1)
    return Restore(degradation, measurement, **settings), pixels


@pytest.mark.parametrize("iterations", [0, 3])
def test_known_pixels_come_back_bit_equal(objective, iterations):
    for case in ("mask", "extend"):
        edit, pixels = restoration(case, iterations=iterations, samples=2, rounds=2)
        found = edited(objective, edit, num_images=6)
        kept = edit.degradation.apply(torch.ones(3, 1, 8, 8), edit.degradation.split(edit.measurements)[1])
        known = edit.degradation.adjoint(kept).repeat_interleave(2, 0) > 0
        assert 0 < known.float().mean() < 1
        assert torch.equal(found[known], pixels.repeat_interleave(2, 0)[known])
        assert not torch.equal(found[::2], found[1::2])


def test_samples_degrade_to_what_is_known(objective):
    edit, _ = restoration("downscale")
    found = edited(objective, edit, num_images=3).float() / 127.5 - 1
    off = (edit.degradation.apply(found) - edit.measurements).abs().max().item()
    assert off < 1.01 / 255


def test_the_network_is_called_once_per_step_and_round(objective):
    for rounds, expected in ((1, 5), (3, 13)):
        calls = []
        edit, _ = restoration("mask", rounds=rounds)
        config = SampleConfig(steps=5, sampler="ancestral", num_images=3)
        list(sampler_of(objective, (1, 8, 8)).sample(config, edit=edit, watch=calls.append))
        assert len(calls) == expected == edit.calls(5)
        assert calls[0].shape == (3, 1, 8, 8)


def test_an_edit_does_not_depend_on_its_batch(objective):
    edit, _ = restoration("mask", samples=2)
    whole = edited(objective, edit, num_images=6, batch_size=6)
    alone = edited(objective, edit, num_images=6, batch_size=1)
    assert (whole.int() - alone.int()).abs().max() <= 1
    assert (whole != alone).float().mean() < 0.01


@pytest.mark.parametrize("name", ["cosine", "flow"])
def test_rounds_find_the_right_share_of_two_modes(name):
    """Two pixels of three known, between the modes: the posterior share of each is known (research: 25 steps × 4)."""
    objective, known, noise = OBJECTIVES[name], -0.12, 0.02
    degradation = Degradation([Step(mask=(0, 1))], (1, 2, 2))
    mask = torch.tensor([[[[0.0, 1.0], [1.0, 1.0]]]])
    measurement = torch.cat([known * (1 - mask), mask], 1)
    odds = [torch.tensor(-0.5 * (known - mean) ** 2 / (STD**2 + noise**2)).exp() for mean in MEANS]
    weights = [share * odd for share, odd in zip(SHARES, odds, strict=True)]
    truth = (weights[1] / sum(weights)).item()
    assert 0.4 < truth < 0.9
    edit = Restore(degradation, measurement, samples=600, rounds=4, noise=noise)
    found = edited(objective, edit, num_images=600, steps=25, batch_size=600).float() / 127.5 - 1
    bright = (found.flatten(1)[:, 1:].mean(1) > sum(MEANS) / 2).float().mean().item()
    assert bright == pytest.approx(truth, abs=0.1)


def test_a_blur_needs_gradients():
    with pytest.raises(UserError, match="iterations: 0 projects, which a blur does not allow"):
        Restore(Degradation([Step(blur=1.0)], (1, 8, 8)), torch.zeros(1, 1, 8, 8), iterations=0)


def test_other_samplers_have_no_rounds():
    edit, _ = restoration("mask", rounds=2)
    with pytest.raises(UserError, match="sampler: ddim does not edit this way; use dpm"):
        edit.sampler(OBJECTIVES["linear"], "ddim", 10, (8, 8))
    edit.rounds = 1
    assert type(edit.sampler(OBJECTIVES["linear"], "ddim", 10, (8, 8))).__name__ == "DDIMScheduler"


def test_a_consistency_run_is_refused_by_name():
    config = ConsistencyConfig(source=EDMConfig())
    edits = restoration("mask")[0], Vary(torch.zeros(1, 1, 4, 4), 0.5), Interpolate(torch.zeros(1, 1, 4, 4))
    for edit in edits:
        with pytest.raises(UserError, match="edit: a run of few steps .* edit the run that it was tuned from"):
            edit.sampler(Consistency(config), "ancestral", 2, (4, 4))


# ── varying ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("strength", [0.3, 0.6])
@pytest.mark.parametrize("method", ["dpm++", "sde-dpm++"])
def test_varied_gaussian_images_have_their_closed_form(objective, method, strength):
    """x_t = alpha image + sigma noise, and the probability flow of N(m, s²) back: an affine map."""
    mean, std, value = 0.1, 0.4, 0.7
    edit = Vary(torch.full((1, 1, 96, 96), value), strength)
    solver = edit.sampler(objective, method, 40, (8, 8))
    solver.limit = None
    start = edit.start(gaussian_noise(1, 96), solver, [0])
    found = sample(
        gaussian(objective, mean, std), solver, start, torch.Generator().manual_seed(1)
    )  # not the seed of gaussian_noise
    alpha, sigma = (float(level) for level in objective.levels(objective.time_at(torch.tensor(strength))))
    variance = alpha**2 * std**2 + sigma**2
    if method == "dpm++":
        expected = mean + std * alpha / variance**0.5 * (value - mean), std * sigma / variance**0.5
    else:  # a draw of the posterior of x_0: its mean at x_t, and its own spread
        gain = alpha * std**2 / variance
        expected = mean + gain * alpha * (value - mean), ((gain * sigma) ** 2 + std**2 * sigma**2 / variance) ** 0.5
    assert len(solver.timesteps) == 40
    assert found.mean().item() == pytest.approx(expected[0], abs=0.012)
    assert found.std().item() == pytest.approx(expected[1], rel=0.03)


def test_full_strength_is_a_sample_and_none_is_the_image(objective):
    images = torch.tensor(MEANS).reshape(2, 1, 1, 1) + STD * gaussian_noise(2, 4)
    strong = edited(objective, Vary(images, 1.0), num_images=2, sampler="dpm++", steps=10)
    plain = edited(objective, type("Plain", (Edit,), {"size": (4, 4)})(), num_images=2, sampler="dpm++", steps=10)
    assert torch.equal(strong, plain)
    weak = edited(objective, Vary(images, 0.002), num_images=2, sampler="dpm++", steps=3)
    assert (weak.int() - denormalize(images, 8).int()).abs().max() <= 6


# ── interpolating ─────────────────────────────────────────────────────────────────────────────────


def test_inversion_and_sampling_come_back_to_the_image(objective):
    """Of a mixture, whose flow bends; Euler's usual inversion is off ten times as far."""
    model = Mixture(objective)
    chosen = torch.tensor([0, 1] * 10).reshape(-1, 1, 1, 1)
    images = torch.tensor(MEANS)[chosen] + STD * gaussian_noise(20, 4)
    noise = invert(model, Interpolate(images).sampler(objective, "dpm++", 50, (4, 4)), images)
    back = sample(model, Interpolate(images).sampler(objective, "dpm++", 50, (4, 4)), noise)
    assert (back - images).square().mean().sqrt() < 3e-3
    assert noise.std().item() == pytest.approx(1, abs=0.35)  # first-order steps; 1 in the limit
    exact = invert(model, Interpolate(images).sampler(objective, "dpm++", 400, (4, 4)), images)
    assert exact.std().item() == pytest.approx(1, abs=0.1)


def test_slerp_keeps_the_length_and_meets_its_ends():
    a, b = torch.randn(2, 3, 64, 64)
    between = slerp(a, b, torch.linspace(0, 1, 5))
    torch.testing.assert_close(between[0], a)
    torch.testing.assert_close(between[-1], b)
    torch.testing.assert_close(between.std((1, 2, 3)), torch.ones(5), atol=0.02, rtol=0)
    torch.testing.assert_close(slerp(a, a, torch.tensor([0.3]))[0], a)


def test_the_same_noise_gives_the_same_image(objective):
    noise = gaussian_noise(1, 4).repeat(3, 1, 1, 1)
    images = edited(objective, Interpolate(noise), num_images=3, seed=5)
    assert torch.equal(images[0], images[2])


def test_no_edit_changes_nothing():
    noise = gaussian_noise(2, 4)
    assert FROM_NOISE.start(noise, None, [0, 1]) is noise
    assert FROM_NOISE.finish(noise, [0, 1]) is noise
