"""Properties of every objective."""

import pytest
import torch

from diffunet.core.errors import UserError
from diffunet.core.rng import BatchRNG
from diffunet.objectives.base import noise_bins
from diffunet.objectives.ddpm import DDPM, DDPMConfig
from diffunet.objectives.edm import EDM, EDMConfig
from diffunet.objectives.flow import Flow, FlowConfig

OBJECTIVES = {"ddpm": (DDPM, DDPMConfig), "edm": (EDM, EDMConfig), "flow": (Flow, FlowConfig)}


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
    bins = torch.stack([losses[name] for name in names])
    assert (bins.isfinite().sum(0) == 1).all()
    torch.testing.assert_close(bins.nan_to_num().sum(0), losses["loss"])


def test_a_larger_u_is_more_noise_and_a_later_timestep(objective):
    u = torch.linspace(0.001, 0.999, 50)
    image, noise = torch.zeros(50, 1, 64, 64), torch.randn(1, 1, 64, 64).expand(50, -1, -1, -1)
    clean = objective.add_noise(torch.ones_like(image), torch.zeros_like(noise), u)
    noisy = objective.add_noise(image, noise, u)
    ratio = noisy.x_t.flatten(1).std(1) / clean.x_t.flatten(1).mean(1)
    assert (ratio.diff() > 0).all()
    assert (noisy.t.diff() > 0).all()


def test_the_time_of_a_noise_level_has_that_level(objective):
    log_snr = torch.linspace(-3.9, 4.5, 60, dtype=torch.float64)
    t = objective.time_of(log_snr)
    alpha, sigma = objective.levels(t)
    torch.testing.assert_close((alpha / sigma).log(), log_snr, atol=1e-6, rtol=0)
    assert (t.diff() < 0).all()


def test_timesteps_of_samplers_lie_between_the_ends_of_the_axis(objective):
    sampler = objective.sampler("dpm++", 20)
    lowest, highest = objective.time_at(torch.tensor([0.0, 1.0]))
    assert lowest <= sampler.timesteps.min()
    assert highest >= sampler.timesteps.max()


def test_all_conditions_of_an_example_are_dropped_together_at_their_rate(objective):
    objective.config = objective.config.model_copy(update={"condition_dropout": 0.25})
    masks = []

    def model(x_t, t, keep_masks, label, caption):
        assert keep_masks.keys() == {"label", "caption"}
        assert torch.equal(keep_masks["label"], keep_masks["caption"])
        masks.append(keep_masks["label"])
        return x_t

    for _ in range(50):
        objective.loss(model, torch.zeros(64, 1, 2, 2), label=torch.zeros(64), caption=torch.zeros(64))
    assert 1 - torch.cat(masks).float().mean().item() == pytest.approx(0.25, abs=0.03)
    objective.loss(lambda x_t, t: x_t, torch.zeros(4, 1, 2, 2))  # no conditions, no masks
    objective.config = objective.config.model_copy(update={"condition_dropout": 0.0})
    objective.loss(lambda x_t, t, label: x_t, torch.zeros(4, 1, 2, 2), label=torch.zeros(4))


def test_random_numbers_are_drawn_for_u_noise_and_dropout_in_this_order(objective):
    """Resumed runs depend on the order."""
    image, seen = torch.randn(8, 1, 2, 2), {}

    def model(x_t, t, keep_masks, label):
        seen.update(x_t=x_t, t=t, keep=keep_masks["label"])
        return x_t

    objective.loss(model, image, BatchRNG(torch.Generator().manual_seed(3)), label=torch.zeros(8))
    generator = torch.Generator().manual_seed(3)
    u, noise = torch.rand(8, generator=generator), torch.randn(8, 1, 2, 2, generator=generator)
    noisy = objective.add_noise(image, noise, u)
    assert torch.equal(seen["x_t"], noisy.x_t)
    assert torch.equal(seen["t"], noisy.t)
    assert torch.equal(seen["keep"], torch.rand(8, generator=generator) >= objective.config.condition_dropout)


def test_a_condition_with_a_dropout_of_its_own_is_also_dropped_alone(objective):
    objective = type(objective)(objective.config, dropout={"caption": 0.4, "label": 0.0})
    masks = []

    def model(x_t, t, keep_masks, label, caption, source):
        assert torch.equal(keep_masks["label"], keep_masks["source"])
        masks.append(torch.stack([keep_masks["label"], keep_masks["caption"]]))
        return x_t

    for _ in range(60):
        objective.loss(
            model, torch.zeros(64, 1, 2, 2), **dict.fromkeys(("label", "caption", "source"), torch.zeros(64))
        )
    label, caption = torch.cat(masks, dim=1)
    assert not (caption & ~label).any()
    assert label.float().mean().item() == pytest.approx(0.9, abs=0.03)
    assert caption[label].float().mean().item() == pytest.approx(0.6, abs=0.04)


def test_own_dropout_is_drawn_after_the_common_one_whatever_the_batch_has(objective):
    """One number per condition in the order of the mapping, also for a condition that the batch lacks."""
    dropout = {"a": 0.5, "none": 0.0, "missing": 0.5, "b": 0.3}
    for common in (0.25, 0.0):
        config = objective.config.model_copy(update={"condition_dropout": common})
        found = {}

        def model(x_t, t, keep_masks, found=found, **conditions):
            found.update(keep_masks)
            return x_t

        generator = torch.Generator().manual_seed(3)
        conditions = {"b": torch.zeros(64), "a": torch.zeros(64), "c": torch.zeros(64)}
        type(objective)(config, dropout).loss(model, torch.zeros(64, 1, 2, 2), BatchRNG(generator), **conditions)
        expected = torch.Generator().manual_seed(3)
        torch.rand(64, generator=expected), torch.randn(64, 1, 2, 2, generator=expected)
        keep = torch.rand(64, generator=expected) >= common if common else torch.ones(64, dtype=torch.bool)
        a, _, b = (
            torch.rand(64, generator=expected),
            torch.rand(64, generator=expected),
            torch.rand(64, generator=expected),
        )
        assert torch.equal(found.pop("a"), keep & (a >= 0.5))
        assert torch.equal(found.pop("b"), keep & (b >= 0.3))
        assert torch.equal(found.pop("c", keep), keep)
        assert not found
        assert torch.equal(generator.get_state(), expected.get_state())


def test_the_loss_is_a_function_of_the_random_numbers(objective):
    def losses():
        rng = BatchRNG(torch.Generator().manual_seed(3))
        return objective.loss(lambda x_t, t: 0.5 * x_t, torch.ones(8, 1, 4, 4), rng)["loss"]

    assert torch.equal(losses(), losses())


def test_an_unknown_sampler_is_an_error_with_the_closest_match(objective):
    with pytest.raises(UserError, match=r"sampler: dpm\+ is not one of dpm\+\+, .*did you mean dpm\+\+"):
        objective.sampler("dpm+", 20)
    with pytest.raises(UserError, match="steps: .*0"):
        objective.sampler("dpm++", 0)


def test_noise_bins_partition_the_axis():
    bins = noise_bins(torch.tensor([0.0, 0.2499, 0.25, 0.9999]))
    assert [inside.tolist().index(True) if inside.any() else None for inside in bins.values()] == [0, 2, None, 3]
    assert torch.stack(list(bins.values())).sum(0).tolist() == [1, 1, 1, 1]
