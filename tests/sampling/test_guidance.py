import pytest
import torch
from helpers import randomized, small_unet

from diffunet.conditions.label import LabelConfig
from diffunet.models.denoiser import Denoiser
from diffunet.sampling.guidance import Guided

X_T, T = torch.randn(4, 3, 8, 8), torch.tensor(500)
LABEL = torch.tensor([0, 1, 2, 0])


def conditional() -> Denoiser:
    return randomized(Denoiser.from_config(small_unet(), {"label": LabelConfig(num_classes=3)}))


@pytest.fixture
def denoiser():
    return conditional()


def test_classifier_free_guidance_is_the_equation(denoiser):
    kept, dropped = denoiser(X_T, T, label=LABEL), denoiser(X_T, T)
    for scale in (0.0, 1.0, 2.5):
        found = Guided(denoiser, scale)(X_T, T, label=LABEL)
        torch.testing.assert_close(found, dropped + scale * (kept - dropped), atol=1e-5, rtol=1e-5)


def test_autoguidance_is_the_equation_with_the_same_conditions(denoiser):
    guide = conditional()
    better, worse = denoiser(X_T, T, label=LABEL), guide(X_T, T, label=LABEL)
    found = Guided(denoiser, 2.5, guide=guide)(X_T, T, label=LABEL)
    torch.testing.assert_close(found, worse + 2.5 * (better - worse), atol=1e-5, rtol=1e-5)


def test_guidance_is_limited_to_its_interval(denoiser):
    guided = Guided(denoiser, 3.0, interval=(200, 800))
    for t, inside in ((199, False), (200, True), (800, True), (801, False)):
        same = torch.equal(guided(X_T, torch.tensor(t), label=LABEL), denoiser(X_T, torch.tensor(t), label=LABEL))
        assert same != inside


# ── one scale per condition ───────────────────────────────────────────────────────────────────────

ABC = {name: torch.randn(4) for name in "abc"}


class Nonlinear:
    """A model in fp64 with an interaction of all conditions; `calls` lists the sets that it was called with."""

    def __init__(self):
        self.calls = []

    def __call__(self, x_t, t, **conditions):
        self.calls.append("".join(conditions))
        value = sum(torch.sin((ord(name) - 96.5) * given.double()) for name, given in conditions.items())
        return x_t.double() * (1 + torch.as_tensor(value).reshape(-1, 1, 1, 1).exp())


def telescoping(model, scales, **conditions):
    """Return the sum as it is written, with a call for every term."""
    guided, chosen = model(X_T, T), {}
    for name, scale in scales.items():
        before = model(X_T, T, **chosen)
        chosen[name] = conditions[name]
        guided = guided + scale * (model(X_T, T, **chosen) - before)
    return guided


CALLS = {
    (3.0, 1.5, 2.0): ["", "a", "ab", "abc"],
    (3.0, 3.0, 2.0): ["", "ab", "abc"],
    (3.0, 2.0, 2.0): ["", "a", "abc"],
    (1.0, 2.0, 2.0): ["a", "abc"],
    (1.0, 1.0, 2.0): ["ab", "abc"],
    (2.0, 1.0, 1.0): ["", "a", "abc"],
    (2.0, 0.5, 0.0): ["", "a", "ab"],
    (0.0, 0.0, 0.0): [""],
    (1.0, 1.0, 1.0): ["abc"],
    (2.0, 2.0, 2.0): ["", "abc"],
}
"""The sets of conditions that the model has to be called with, by the scales of a, b and c."""


@pytest.mark.parametrize(("scales", "calls"), CALLS.items(), ids=str)
def test_scales_by_condition_telescope_with_the_fewest_calls(scales, calls):
    scales, model = dict(zip("abc", scales, strict=True)), Nonlinear()
    found = Guided(model, scales)(X_T, T, **ABC)
    assert model.calls == calls
    torch.testing.assert_close(found, telescoping(Nonlinear(), scales, **ABC), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.5])
def test_equal_scales_are_one_number_and_ones_are_the_model_to_the_bit(denoiser, scale):
    kept, dropped = denoiser(X_T, T, label=LABEL), denoiser(X_T, T)
    expected = kept if scale == 1 else torch.lerp(dropped, kept, scale)
    for form in (scale, {"label": scale}):
        assert torch.equal(Guided(denoiser, form)(X_T, T, label=LABEL), expected)
    for form in (scale, dict.fromkeys("abc", scale)):
        assert torch.equal(Guided(Nonlinear(), form)(X_T, T, **ABC), Guided(Nonlinear(), scale)(X_T, T, **ABC))


def test_the_order_is_that_of_the_mapping_and_other_conditions_come_first():
    model = Nonlinear()
    found = Guided(model, {"c": 3.0, "a": 2.0})(X_T, T, **ABC)
    assert model.calls == ["b", "bc", "bca"]
    expected = telescoping(Nonlinear(), {"b": 1.0, "c": 3.0, "a": 2.0}, **ABC)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def test_conditions_that_are_not_passed_take_no_part():
    model, scales = Nonlinear(), {"a": 3.0, "b": 1.5, "c": 2.0}
    found = Guided(model, scales)(X_T, T, b=ABC["b"])
    assert model.calls == ["", "b"]
    assert torch.equal(found, Guided(Nonlinear(), 1.5)(X_T, T, b=ABC["b"]))
    for form in (scales, 3.0):
        model = Nonlinear()
        assert torch.equal(Guided(model, form)(X_T, T), X_T.double() * 2)
        assert model.calls == [""]


def test_outside_the_interval_the_model_is_called_once():
    model = Nonlinear()
    found = Guided(model, {"a": 3.0, "b": 1.5}, interval=(600, 800))(X_T, T, **ABC)
    assert model.calls == ["abc"]
    assert torch.equal(found, Nonlinear()(X_T, T, **ABC))


def test_a_guide_takes_one_number(denoiser):
    with pytest.raises(ValueError, match="guidance_scale"):
        Guided(denoiser, {"label": 2.0}, guide=denoiser)
