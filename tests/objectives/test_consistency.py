"""Consistency tuning against closed forms for Gaussian data, with affine students and the paths of every source."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from diffunet.core.errors import UserError
from diffunet.core.rng import BatchRNG
from diffunet.core.settings import settings_from
from diffunet.objectives.consistency import MIDDLE, Consistency, ConsistencyConfig
from diffunet.objectives.ddpm import DDPMConfig
from diffunet.objectives.edm import EDMConfig
from diffunet.objectives.flow import FlowConfig
from diffunet.sampling.loop import sample

SOURCES = {
    "epsilon": DDPMConfig(),
    "v": DDPMConfig(prediction_type="v_prediction", beta_schedule="cosine"),
    "edm": EDMConfig(),
    "flow": FlowConfig(),
}
MEAN, SPREAD = 0.2, 0.5
"""Mean and standard deviation of the data."""


@pytest.fixture(params=SOURCES)
def source(request):
    return SOURCES[request.param]


def gaussian_posterior(x_t, alpha, sigma, std, mean):
    """Return the conditional mean of x_0 ~ N(mean, std²), given x_t = alpha x_0 + sigma noise."""
    return mean + alpha * std**2 * (x_t - alpha * mean) / (alpha**2 * std**2 + sigma**2)


def ratio(objective, t):
    alpha, sigma = objective.levels(t)
    return sigma / alpha


def exactly_distributed() -> tuple[torch.Tensor, torch.Tensor]:
    """Return four images of one pixel and noise, uncorrelated, with the moments of N(MEAN, SPREAD²) and N(0, 1)."""
    image, noise = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]).reshape(4, 2, 1, 1, 1).unbind(1)
    return MEAN + SPREAD * image, noise


class Affine:
    """A network whose estimate of x_0 at each level, sigma / alpha, is a (z - MEAN) + MEAN + b for z = x_t / alpha."""

    def __init__(self, objective):
        self.objective = objective
        self.at: dict[float, torch.Tensor] = {}
        """(a, b) by the time t, to which that of a call is rounded."""

    def __call__(self, x_t, t):
        alpha, _ = self.objective.levels(t)
        nearest = [min(self.at, key=lambda key: abs(key - time)) for time in t.tolist()]
        a, b = torch.stack([self.at[key] for key in nearest]).reshape(-1, 2, 1, 1, 1).unbind(1)
        z = x_t / alpha.reshape(-1, 1, 1, 1)
        return self.objective.prediction(a * (z - MEAN) + MEAN + b, x_t, t)


def fitted(objective, levels) -> list[torch.Tensor]:
    """Return the parameters (a, b) of the affine student with the least loss at each of the rising levels, in turn."""
    image, noise = exactly_distributed()
    student = Affine(objective)
    for r, high in pairwise([0.0, *levels]):
        t = objective.time_of(torch.tensor([-math.log(high)]).double()).float()
        batch = objective.pair(image, noise, t.expand(4), torch.full((4,), r))

        def loss(parameters, batch=batch, t=t):
            student.at[float(t)] = parameters
            return (batch.weight * objective.error(student, batch)).mean() * objective.config.huber

        zero = torch.zeros(2)
        hessian = torch.autograd.functional.hessian(loss, zero)
        gradient = torch.autograd.functional.jacobian(loss, zero)
        student.at[float(t)] = -torch.linalg.solve(hessian, gradient)
    return list(student.at.values())


def recursion(levels) -> list[float]:
    """Return a at each level: a_{i+1} = a_i (s² + t_i t_{i+1}) / (s² + t_{i+1}²), from a = 1 at t = 0."""
    slopes = [1.0]
    for r, t in pairwise([0.0, *levels]):
        slopes.append(slopes[-1] * (SPREAD**2 + r * t) / (SPREAD**2 + t**2))
    return slopes[1:]


def log_spaced(lowest: float, highest: float, number: int) -> list[float]:
    return torch.logspace(math.log10(lowest), math.log10(highest), number, dtype=torch.float64).tolist()


@pytest.mark.parametrize("number", [2, 8, 64])
def test_the_affine_student_follows_the_recursion(source, number):
    """The target is the student itself one level below. `huber` is so large that the loss is the squared error."""
    objective = Consistency(ConsistencyConfig(source=source, huber=100.0))
    levels = log_spaced(0.02, 50.0, number)
    found = torch.stack(fitted(objective, levels))
    torch.testing.assert_close(found[:, 0], torch.tensor(recursion(levels)), rtol=2e-3, atol=0)
    torch.testing.assert_close(found[:, 1], torch.zeros(number), rtol=0, atol=2e-3)


@pytest.mark.parametrize(("number", "expected"), [(8, 0.68), (64, 0.959)])
def test_more_levels_come_closer_to_the_exact_spread(number, expected):
    """One step from sigma = 80 over levels from 0.002; the exact map has the spread 1."""
    objective = Consistency(ConsistencyConfig(source=EDMConfig(), huber=100.0))
    slope = fitted(objective, log_spaced(0.002, 80.0, number))[-1][0].item()
    assert slope * (SPREAD**2 + 80.0**2) ** 0.5 / SPREAD == pytest.approx(expected, abs=3e-3)


def exact_network(objective, mean=MEAN, std=SPREAD):
    """Return the network whose estimate of x_0 is the conditional mean for N(mean, std²)."""

    def network(x_t, t):
        alpha, sigma = (level.reshape(-1, 1, 1, 1) for level in objective.levels(t))
        return objective.prediction(gaussian_posterior(x_t, alpha, sigma, std, mean), x_t, t)

    return network


def test_training_equals_distillation_by_euler_steps(source):
    """Of Gaussians, to the same slopes at each of 8 levels: x_r from the exact network instead of from the data."""
    objective = Consistency(ConsistencyConfig(source=source, huber=100.0))
    objective.teacher = exact_network(objective)
    levels = log_spaced(0.02, 50.0, 8)
    found = torch.stack(fitted(objective, levels))
    torch.testing.assert_close(found[:, 0], torch.tensor(recursion(levels)), rtol=2e-3, atol=0)


def test_the_guidance_of_a_teacher_becomes_part_of_the_student():
    """Data N(c, s²) for a condition c that is N(MEAN, q²): the guided estimate is affine, so its Euler steps are too.

    w (c + k (z - c)) + (1 - w) (MEAN + j (z - MEAN)), with k = s² / (s² + t²), j = (s² + q²) / (s² + q² + t²).
    """
    c, q, w = 0.6, 0.4, 1.7
    objective = Consistency(ConsistencyConfig(source=FlowConfig(), huber=100.0))
    conditional, unconditional = exact_network(objective, c), exact_network(objective, std=(SPREAD**2 + q**2) ** 0.5)
    objective.teacher = lambda x_t, t: torch.lerp(unconditional(x_t, t), conditional(x_t, t), w)
    levels = log_spaced(0.02, 50.0, 8)
    found = torch.stack(fitted(objective, levels))
    slope, offset = 1.0, 0.0  # f(z) = slope (z - MEAN) + MEAN + offset
    for index, (r, t) in enumerate(pairwise([0.0, *levels])):
        k, j = SPREAD**2 / (SPREAD**2 + t**2), (SPREAD**2 + q**2) / (SPREAD**2 + q**2 + t**2)
        d, shift = w * k + (1 - w) * j, w * (1 - k) * (c - MEAN)  # the estimate is d (z - MEAN) + MEAN + shift
        slope, offset = slope * (r / t + (1 - r / t) * d), offset + slope * (1 - r / t) * shift
        torch.testing.assert_close(found[index], torch.tensor([slope, offset]), rtol=5e-3, atol=2e-3)


def test_the_robust_loss_has_the_same_minimum():
    """A Gaussian is symmetric around its mean, so that minimizes the norm as well as the square."""
    objective = Consistency(ConsistencyConfig(source=EDMConfig(), huber=0.001))
    generator = torch.Generator().manual_seed(0)
    image, noise = torch.randn(2, 20_000, 1, 1, 1, generator=generator).unbind(0)
    image = MEAN + SPREAD * image
    t = objective.time_of(torch.tensor(-math.log(2.0))).expand(20_000)
    student, batch = Affine(objective), objective.pair(image, noise, t, torch.full((20_000,), 1.0))
    at_r, at_t = (float(time[0]) for time in (batch.r, batch.t))
    student.at[at_r] = torch.tensor([0.3, 0.0])
    best = 0.3 * (SPREAD**2 + 1.0 * 2.0) / (SPREAD**2 + 4.0)

    def gradient(slope):
        student.at[at_t] = torch.tensor([slope, 0.0], requires_grad=True)
        return torch.autograd.grad(objective.error(student, batch).mean(), student.at[at_t])[0][0]

    assert gradient(best - 0.01) < 0 < gradient(best + 0.01)


def test_the_first_stage_is_the_weighted_task_of_the_source(source):
    """With r = 0 the target is x_0, and the squared loss of x_0 is a multiple of that of the source's own target."""
    objective = Consistency(ConsistencyConfig(source=source, huber=1000.0)).at(0.0)
    image, noise = torch.rand(2, 64, 1, 4, 4)
    batch = objective.add_noise(image, noise, torch.linspace(0.2, 0.99, 64))
    plain = objective.source.noisy(image, noise, batch.t)
    torch.testing.assert_close(batch.x_t, plain.x_t)
    found = objective.error(lambda x_t, t: 0.3 * x_t, batch)
    (alpha, sigma), (a, b) = objective.source.levels(batch.t), objective.source.target(batch.t)
    factor = (sigma / (alpha * b - sigma * a)) ** 2
    expected = objective.source.error(lambda x_t, t: 0.3 * x_t, plain) * factor / (2 * 1000.0)
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-8)
    torch.testing.assert_close(batch.weight, alpha / sigma)


def test_levels_come_closer_with_every_stage(source):
    """r = t (1 - n(t) / q^a), with n = 1 + 8 sigmoid(-t) and a from 0 to 7."""
    objective = Consistency(ConsistencyConfig(source=source))
    assert [objective.at(progress).stage for progress in (0, 0.124, 0.125, 0.5, 0.99, 1)] == [0, 0, 1, 4, 7, 7]
    assert objective.stage == 7
    taught = Consistency(objective.config, teacher=lambda x_t, t: x_t)
    assert [taught.at(progress).stage for progress in (0, 0.125, 1)] == [1, 2, 8]
    assert taught.stage == 8
    t = torch.tensor([0.1, 1.0, 10.0])
    assert objective.at(0).earlier(t).tolist() == [0, 0, 0]
    share = 1 - objective.at(0.5).earlier(t) / t
    torch.testing.assert_close(share, torch.tensor([4.8002, 3.1515, 1.0004]) / 16, rtol=1e-3, atol=0)
    torch.testing.assert_close(1 - objective.earlier(t) / t, share / 8, rtol=1e-3, atol=0)


def test_pairs_lie_on_one_path(source):
    """Both images are made with the same noise, at the levels of the times that the network sees."""
    objective = Consistency(ConsistencyConfig(source=source)).at(0.6)
    image, noise = torch.rand(2, 32, 1, 4, 4)
    batch = objective.add_noise(image, noise, torch.linspace(0.3, 0.9, 32))
    t, r = ratio(objective, batch.t), ratio(objective, batch.r)
    torch.testing.assert_close(r, objective.earlier(t), rtol=1e-4, atol=0)
    torch.testing.assert_close(batch.weight, 1 / (t - r), rtol=1e-2, atol=0)
    for x, time in ((batch.x_t, batch.t), (batch.x_r, batch.r)):
        alpha, sigma = (level.reshape(-1, 1, 1, 1) for level in objective.levels(time))
        torch.testing.assert_close(x, alpha * image + sigma * noise)


def test_without_noise_the_estimate_is_the_input(source):
    """Whatever the network predicts; the boundary condition of consistency models."""
    objective = Consistency(ConsistencyConfig(source=source))
    x = torch.randn(2, 1, 4, 4)
    t = objective.time_of(torch.tensor([12.0, 12.0]))
    largest = 0.01 if isinstance(source, DDPMConfig) else 1e-4  # DDPM's cleanest level has sigma / alpha 0.0064 or 0.01
    alpha, _ = objective.levels(t)
    found = objective.clean(torch.randn(2, 1, 4, 4).clamp(-1, 1), x, t)
    assert (found - x / alpha.reshape(-1, 1, 1, 1)).abs().max() < 2.5 * largest


class Dropping(nn.Module):
    """Dropout of the input, which remembers its masks."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.masks = []

    def forward(self, x_t, t):
        mask = nn.functional.dropout(torch.ones_like(x_t), 0.5)
        self.masks.append(mask)
        return self.scale * mask * x_t


def test_both_estimates_have_the_same_dropout_masks():
    objective = Consistency(ConsistencyConfig(source=SOURCES["v"]))
    model, image = Dropping(), torch.zeros(16, 1, 4, 4)
    for _ in range(2):
        objective.loss(model, image, BatchRNG(torch.Generator().manual_seed(0)))
    first, second, third, fourth = model.masks
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(third, fourth, rtol=0, atol=0)
    assert not torch.equal(first, third)


def test_only_the_estimate_at_t_has_a_gradient():
    """The derivative of |a z_t - a z_r|² / (2 huber) by the first a alone, for f = a z."""
    objective = Consistency(ConsistencyConfig(source=FlowConfig(), huber=100.0))
    image, noise = torch.rand(2, 8, 1, 2, 2)
    batch = objective.pair(image, noise, torch.full((8,), 500.0), torch.full((8,), 0.5))
    slope = torch.tensor(0.7, requires_grad=True)

    def model(x_t, t):
        return objective.prediction(slope * x_t / objective.levels(t)[0].reshape(-1, 1, 1, 1), x_t, t)

    (found,) = torch.autograd.grad(objective.error(model, batch).sum(), slope)
    z_t, z_r = image + noise, image + 0.5 * noise
    expected = (0.7 * (z_t - z_r) * z_t).flatten(1).mean(1).sum() / 100.0
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("steps", MIDDLE)
def test_samples_of_an_affine_student_have_the_spread_of_the_closed_form(source, steps):
    """Each call adds noise, then multiplies by a: the variance v becomes a² (v + t²), from 0 before the first."""
    objective = Consistency(ConsistencyConfig(source=source))
    sampler = objective.sampler("consistency", steps)
    sampler.limit = None
    assert len(sampler.timesteps) == steps
    student = Affine(objective)
    levels = [float(ratio(objective, t)) for t in sampler.timesteps]
    slopes = [SPREAD**2 / (SPREAD**2 + t**2) ** 0.5 / (0.2 + t) for t in levels]
    student.at = {float(t): torch.tensor([a, 0.0]) for t, a in zip(sampler.timesteps, slopes, strict=True)}
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 1, 200, 200, generator=generator)
    found = sample(lambda x_t, t: student(x_t, t.reshape(1)), sampler, noise, generator)
    variance = 0.0
    for t, a in zip(levels, slopes, strict=True):
        variance = a**2 * (variance + t**2)
    assert found.std().item() == pytest.approx(variance**0.5, rel=0.015)


def test_samples_depend_on_their_own_seed_alone():
    objective = Consistency(ConsistencyConfig(source=SOURCES["v"]))

    def draw(seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = torch.stack([torch.randn(1, 4, 4, generator=generator) for generator in generators])
        return sample(lambda x_t, t: 0.3 * x_t, objective.sampler("consistency", 3), noise, generators)

    torch.testing.assert_close(draw([5, 6, 7])[1:2], draw([6]), rtol=0, atol=0)


REFUSED = {
    "prediction_type": ({"source": {"type": "ddpm", "prediction_type": "sample"}}, "prediction_type sample cannot be"),
    "source": ({"source": {"type": "consistency"}}, "consistency is not one of ddpm, edm, flow"),
}


@pytest.mark.parametrize(("values", "message"), REFUSED.values(), ids=REFUSED)
def test_other_sources_are_refused_by_name(values, message):
    with pytest.raises(UserError, match=message):
        settings_from(ConsistencyConfig(source=FlowConfig()), ConsistencyConfig, transform=lambda _: values)


def test_other_samplers_and_numbers_of_steps_are_refused_by_name(source):
    objective = Consistency(ConsistencyConfig(source=source))
    for steps in (0, 5):
        with pytest.raises(UserError, match=f"steps: consistency takes 1 to 4 calls .got {steps}"):
            objective.sampler("consistency", steps)
    with pytest.raises(UserError, match="sampler: dpm\\+\\+ is not one of consistency"):
        objective.sampler("dpm++", 4)
