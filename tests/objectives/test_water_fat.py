"""The unsupervised loss: zero at the truth, its units and weights, and what its minimum recovers."""

import math

import pytest
import torch

from diffunet.core.complex_channels import to_channels
from diffunet.core.errors import UserError
from diffunet.core.settings import settings_from
from diffunet.core.water_fat import bounded, fat_fraction, signal_of_maps
from diffunet.objectives.water_fat import Signal, SignalConfig

TIMES = (1.2e-3, 2.2e-3, 3.2e-3, 4.2e-3, 5.2e-3)


def config(**values) -> SignalConfig:
    return SignalConfig(**({"echo_times": TIMES, "field_strength": 3.0, "smoothness": 0} | values))


def a_case(size: tuple[int, ...] = (6, 7), examples: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Return maps (B, 6, *S) fp64 with a smooth field, and their echoes (B, 10, *S)."""
    torch.manual_seed(0)
    maps = torch.randn(examples, 6, *size, dtype=torch.float64)
    place = torch.linspace(-1, 1, size[-1], dtype=torch.float64)
    maps[:, 4] = 120 * place + 30 * place**2
    maps[:, 5] = 40 + 30 * torch.rand(examples, *size)
    return maps, to_channels(signal_of_maps(maps, TIMES, 3.0))


@pytest.mark.parametrize("size", [(6, 7), (3, 4, 5)])
def test_the_loss_is_zero_at_the_truth_alone(size):
    maps, echoes = a_case(size)
    assert Signal(config()).loss(lambda image: maps, echoes)["loss"].max() < 1e-20
    for channel, change in enumerate((0.1, 0.1, 0.1, 0.1, 5.0, 5.0)):
        wrong = maps.clone()
        wrong[:, channel] += change
        assert Signal(config()).loss(lambda image, wrong=wrong: wrong, echoes)["loss"].min() > 1e-5


def test_the_loss_is_in_units_of_the_power():
    """Without any water and fat all of the power is left: 1 of the own power, and |S|^2 over a given power."""
    maps, echoes = a_case()
    nothing = maps * torch.tensor([0.0, 0, 0, 0, 1, 1], dtype=torch.float64)[:, None, None]
    found = Signal(config()).loss(lambda image: nothing, echoes)["loss"]
    torch.testing.assert_close(found, torch.ones(2, dtype=torch.float64))
    given = Signal(config(), power=2.0).loss(lambda image: nothing, echoes)["loss"]
    for example in range(2):
        expected = sum(float(echo.square().mean()) for echo in echoes[example]) / len(TIMES) / 2
        assert given[example].item() == pytest.approx(expected)
    error = maps + 0.1 * torch.randn_like(maps)
    once = Signal(config()).loss(lambda image: error, echoes)["loss"]
    scaled = error * torch.tensor([9.0, 9, 9, 9, 1, 1], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(Signal(config()).loss(lambda image: scaled, 9 * echoes)["loss"], once)


def test_each_example_is_alone_and_weight_zero_counts_nowhere():
    maps, echoes = a_case()
    predicted = maps + 0.3 * torch.randn_like(maps)
    objective = Signal(config(smoothness=0.5))
    together = objective.loss(lambda image: predicted, echoes)
    assert together.keys() == {"loss", "loss_residual", "loss_smoothness"}
    for example in range(2):
        one = slice(example, example + 1)
        alone = objective.loss(lambda image, one=one: predicted[one], echoes[one])["loss"]
        torch.testing.assert_close(alone, together["loss"][one])
    weight = torch.ones(2, 6, 7, dtype=torch.float64)
    weight[0, :, 4:] = 0
    weight[1] = 0
    changed, other = predicted.clone(), echoes.clone()
    changed[0, :, :, 4:] += 3
    other[0, :, :, 4:] -= 1
    first = objective.loss(lambda image: predicted, echoes, weight=weight)["loss"]
    second = objective.loss(lambda image: changed, other, weight=weight)["loss"]
    torch.testing.assert_close(first, second)
    assert first[0] > 0
    assert first[1] == 0
    inside = objective.loss(lambda image: predicted[:1, ..., :4], echoes[:1, ..., :4])["loss"]
    torch.testing.assert_close(first[:1], inside)


def test_smoothness_equals_a_loop():
    maps, echoes = a_case((4, 5), 1)
    found = Signal(config(residual=0.0, smoothness=1.0)).loss(lambda image: maps, echoes)["loss"].item()
    power = echoes[0].square().sum(0) / len(TIMES)
    field, total = maps[0, 4], 0.0
    for y in range(4):
        for x in range(5):
            for v, u in ((y + 1, x), (y, x + 1)):
                if v < 4 and u < 5:
                    phase = 2 * math.pi * 1e-3 * float(field[v, u] - field[y, x])
                    total += phase**2 * min(float(power[v, u]), float(power[y, x]))
    assert found == pytest.approx(total / float(power.sum()))


def test_smaller_outputs_are_compared_with_the_center():
    maps, echoes = a_case((8, 9))
    found = Signal(config()).loss(lambda image: maps[..., 2:-2, 2:-2], echoes)["loss"]
    assert found.max() < 1e-20


def test_cases_may_have_their_own_times_and_strength():
    maps, _ = a_case()
    times, strengths = torch.tensor([TIMES[:3], (2e-3, 4e-3, 6e-3)], dtype=torch.float64), torch.tensor([1.5, 3.0])
    echoes = to_channels(signal_of_maps(maps, times, strengths))
    objective = Signal(SignalConfig(smoothness=0.1, field_range=400.0))
    assert (
        objective.loss(lambda image: maps, echoes, echo_times=times, field_strength=strengths)["loss_residual"].max()
        < 1e-20
    )
    swapped = objective.loss(lambda image: maps, echoes, echo_times=times.flip(0), field_strength=strengths.flip(0))
    assert swapped["loss_residual"].min() > 1e-3
    with pytest.raises(UserError, match="neither the config nor the case"):
        objective.loss(lambda image: maps, echoes)


def test_gradients_equal_finite_differences():
    maps, echoes = a_case((2, 3), 1)
    predicted = (maps + 0.1 * torch.randn_like(maps)).requires_grad_()
    objective = Signal(config(smoothness=0.3))
    assert torch.autograd.gradcheck(lambda m: objective.loss(lambda image: m, echoes)["loss"], (predicted,))


def test_its_minimum_recovers_the_fat_fraction():
    """By L-BFGS from a start that is far off, for maps of a tiny image, as in Jafari's training of a single case."""
    maps, echoes = a_case((2, 3), 1)
    raw = torch.zeros(*maps.shape[:1], 7, *maps.shape[2:], dtype=maps.dtype).requires_grad_()
    units = torch.tensor([1.0, 1.0, 50.0], dtype=maps.dtype)[:, None, None]

    def possible(raw: torch.Tensor) -> torch.Tensor:
        return torch.cat([raw[:, :4], bounded(raw[:, 4:] * units, objective.config.field_limit)], dim=1)

    objective = Signal(config(smoothness=1e-6))
    solver = torch.optim.LBFGS(
        [raw], max_iter=400, tolerance_grad=1e-14, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def step() -> torch.Tensor:
        solver.zero_grad()
        loss = objective.loss(lambda image: possible(raw), echoes)["loss"].sum()
        loss.backward()
        return loss

    solver.step(step)
    found = possible(raw.detach())
    assert (fat_fraction(found) - fat_fraction(maps)).abs().max() < 0.01


def test_mistakes_in_the_config(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("echo_times: [2e-3, 1e-3]\nfield_strength: 3\n")
    with pytest.raises(UserError, match="echo times rise"):
        settings_from(file, SignalConfig)
    file.write_text("echo_times: [1.2, 2.2]\nfield_strength: 3\n")
    with pytest.raises(UserError, match="less than 1"):
        settings_from(file, SignalConfig)
    with pytest.raises(UserError, match="5 echoes need 10 channels"):
        Signal(config()).loss(lambda image: image, torch.zeros(1, 6, 4, 4))
    assert config().field_limit == pytest.approx(500)
    with pytest.raises(UserError, match="field_range: needed"):
        _ = SignalConfig().field_limit
