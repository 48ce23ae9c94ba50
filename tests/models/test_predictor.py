"""Predictors: normalization, tiles, averages over views and over networks."""

import numpy as np
import pytest
import torch
from helpers import randomized
from rotations import rotate_volume
from torch import nn

from diffunet.models.averaging import Averaged, Ensemble, Probabilities, mean_and_std, mirrors, rotations, turns
from diffunet.models.config import LevelConfig, UNetConfig
from diffunet.models.predictor import Predictor
from diffunet.models.tiling import valid_tile_sizes
from diffunet.models.unet import UNet

LEVELS = (LevelConfig(channels=4, blocks=1), LevelConfig(channels=8, blocks=1))
STATISTICS = {
    "input_mean": torch.tensor([100.0, -2.0]),
    "input_std": torch.tensor([50.0, 0.5]),
    "output_mean": torch.tensor([3.0, 0.0, -7.0]),
    "output_std": torch.tensor([2.0, 1.0, 0.25]),
}


def predictor(**changes) -> Predictor:
    """Return a predictor of three channels from two."""
    config = {"levels": LEVELS, "in_channels": 2, "out_channels": 3, "norm": "none", "middle_attention": False}
    return randomized(Predictor(UNet(UNetConfig(**(config | changes)))))


def an_image(*size: int) -> torch.Tensor:
    return 100 + 50 * torch.randn(1, 2, *size)


# ── one network ───────────────────────────────────────────────────────────────────────────────────


def test_normalization_is_part_of_the_weights():
    plain, image = predictor(), an_image(16, 12)
    with torch.no_grad():
        assert torch.equal(plain(image), plain.unet(image))
        column = {name: values.reshape(1, -1, 1, 1) for name, values in STATISTICS.items()}
        scaled = (image - column["input_mean"]) / column["input_std"]
        expected = column["output_mean"] + column["output_std"] * plain.unet(scaled)
        assert plain.normalized(**STATISTICS) is plain
        torch.testing.assert_close(plain(image), expected)
        loaded = predictor()
        loaded.load_state_dict(plain.state_dict())
        assert torch.equal(loaded(image), plain(image))
    assert plain.state_dict().keys() == {*STATISTICS, "linear", *(f"unet.{name}" for name in plain.unet.state_dict())}
    assert not set(STATISTICS) & {name for name, _ in plain.named_parameters()}


def test_integers_are_predicted_as_numbers():
    plain = predictor().normalized(**STATISTICS)
    image = torch.randint(0, 255, (1, 2, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        assert plain(image).dtype == torch.float32
        assert torch.equal(plain(image), plain(image.float()))


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_the_linear_part_is_added_in_full_precision(padding):
    plain, image = predictor(padding=padding, block="plain"), an_image(43, 43) + 1000
    with torch.no_grad():
        before, linear = plain(image), torch.randn(3, 2)
        size = before.shape[-1]
        inside = slice((43 - size) // 2, (43 - size) // 2 + size)
        expected = torch.tensordot(linear, image[0, :, inside, inside], 1)
        torch.testing.assert_close(
            plain.normalized(linear=linear)(image)[0], before[0] + expected, rtol=1e-5, atol=1e-2
        )
        with torch.autocast("cpu", torch.bfloat16):
            mixed = plain(image)[0] - expected
    assert (mixed - before[0]).abs().max() < 0.1 * before.abs().max() + 1e-2  # of values around 1,000


def test_tiles_of_a_valid_network_equal_the_whole_reflected_image():
    plain, image = predictor(padding="valid", block="plain").normalized(**STATISTICS), an_image(70, 51)
    border = 31 - plain.unet.output_size(31, 31)[0]
    sides = [next(n for n in range(side + border, 200) if valid_tile_sizes(plain.unet, n, n)) for side in (70, 51)]
    width = [(border // 2, n - side - border // 2) for n, side in zip(sides, (70, 51), strict=True)]
    with torch.no_grad():
        found = plain.tiled((43, 55))(image)
        whole = plain(torch.from_numpy(np.pad(image.numpy(), [(0, 0), (0, 0), *width], mode="reflect")))
    assert found.shape == (1, 3, 70, 51)
    torch.testing.assert_close(found, whole[..., :70, :51], rtol=1e-5, atol=1e-4)


def test_a_tiled_predictor_shares_weights_and_buffers():
    plain = predictor()
    tiled = plain.tiled(16)
    plain.normalized(**STATISTICS)
    assert {id(p) for p in tiled.parameters()} == {id(p) for p in plain.parameters()}
    image = an_image(16, 16)
    with torch.no_grad():
        torch.testing.assert_close(tiled(image), plain(image))
        integers = image.round().to(torch.int16)  # each tile is normalized, never the image
        torch.testing.assert_close(tiled(integers), plain(integers))


# ── averages ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("turned", [False, True])
def test_the_average_is_as_symmetric_as_its_views(turned):
    model, image = Averaged(predictor(), turns() if turned else mirrors(2)), an_image(8, 8)
    with torch.no_grad():
        predicted = model(image)
        views = [lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.flip(-1, -2)]
        for view in views + [lambda x: x.transpose(-1, -2), lambda x: x.rot90(1, (-2, -1))] * turned:
            torch.testing.assert_close(model(view(image)), view(predicted), rtol=1e-5, atol=1e-4)
            assert (predictor()(view(image)) - view(predictor()(image))).abs().max() > 1e-2
        if not turned:
            assert (model(image.mT) - predicted.mT).abs().max() > 1e-2


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("turned", [False, True])
def test_a_box_of_the_average_is_that_of_the_whole(turned, padding):
    plain = predictor(padding=padding, block="plain").normalized(**STATISTICS)
    model, image = (
        Averaged(plain.tiled(32 if padding == "same" else 43), turns() if turned else mirrors(2)),
        an_image(61, 47),
    )
    with torch.no_grad():
        whole = model(image)
        for rows, columns in (((0, 61), (0, 47)), ((0, 1), (0, 47)), ((20, 45), (3, 30)), ((60, 61), (46, 47))):
            expected = whole[..., slice(*rows), slice(*columns)]
            assert torch.equal(model(image, [rows, columns]), expected)


VIEWS = {"mirrors 1": mirrors(1), "mirrors 2": mirrors(2), "turns": turns(), "mirrors 3": mirrors(3)}
VIEWS |= {"rotations": rotations()}


@pytest.mark.parametrize(("name", "count"), [*zip(VIEWS, (2, 4, 8, 8, 24), strict=True)])
def test_one_member_for_each_view(name, count):
    seen = []

    def model(image):
        seen.append(image)
        return image

    averaged = Averaged(_Called(model), VIEWS[name])
    image = torch.randn(1, 1, *[5] * len(VIEWS[name][0].axes))
    members = list(averaged.members(image))
    assert len(members) == len(seen) == count
    assert all(torch.equal(member, image) for member in members)  # each is mapped back
    assert len({view.numpy().tobytes() for view in seen}) == count  # and all views are different


def test_the_rotations_are_those_of_a_cube():
    """As by the matrices of determinant 1 that permute the axes."""
    volume = torch.randn(4, 4, 4)
    expected = {rotate_volume(volume, number).numpy().tobytes() for number in range(24)}
    assert {view.of(volume).contiguous().numpy().tobytes() for view in rotations()} == expected


@pytest.mark.parametrize("name", ["mirrors 3", "rotations"])
def test_an_average_of_a_volume_is_equivariant_and_has_boxes(name):
    config = UNetConfig(
        dims=3,
        in_channels=2,
        out_channels=2,
        levels=(LevelConfig(channels=4, blocks=1), LevelConfig(channels=4, blocks=1)),
        middle_attention=False,
        norm_groups=2,
    )
    plain = Predictor(randomized(UNet(config)))
    model, image = Averaged(plain, VIEWS[name]), torch.randn(1, 2, 8, 8, 8)
    mirrored, turned = (lambda x: x.flip(-1)), (lambda x: x.rot90(1, (-3, -1)))
    own, other = (mirrored, turned) if name == "mirrors 3" else (turned, mirrored)
    with torch.no_grad():
        predicted = model(image)
        torch.testing.assert_close(model(own(image)), own(predicted), rtol=1e-5, atol=1e-6)
        assert (model(other(image)) - other(predicted)).abs().max() > 0.02 * predicted.std()
        tiled = Averaged(plain.tiled(8), VIEWS[name])
        image = torch.randn(1, 2, 11, 9, 14)
        box = [(3, 8), (0, 9), (6, 11)]
        assert torch.equal(tiled(image, box), tiled(image)[..., 3:8, 0:9, 6:11])


class _Called(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, image):
        return self.function(image)


def test_the_mean_of_several_models_and_their_deviation():
    members = [torch.randn(2, 3, 4, 4) * 10 + 1000 for _ in range(5)]
    mean, std = mean_and_std(iter(members))
    stacked = torch.stack(members)
    torch.testing.assert_close(mean, stacked.mean(0))
    torch.testing.assert_close(std, stacked.double().std(0, correction=0).float(), rtol=1e-3, atol=1e-4)
    mean, std = mean_and_std(members[:1])
    assert torch.equal(mean, members[0])
    assert not std.any()


def test_an_ensemble_has_the_members_of_its_members():
    models = [_Called(lambda image, factor=factor: factor * image) for factor in (1, 2, 6)]
    image = torch.ones(1, 1, 2, 2)
    nested = Ensemble([Averaged(models[0], mirrors(2)), Ensemble(models[1:])])
    assert [member.mean().item() for member in nested.members(image)] == [1, 1, 1, 1, 2, 6]
    assert Ensemble(models)(image).unique().tolist() == [3]


def test_probabilities_are_averaged_rather_than_logits():
    logits = [torch.tensor([4.0, 0.0]).reshape(1, 2, 1, 1), torch.tensor([-1.0, 0.0]).reshape(1, 2, 1, 1)]
    models = [Probabilities(_Called(lambda image, each=each: each)) for each in logits]
    found = Ensemble(models)(torch.zeros(1, 1, 1, 1)).flatten()
    expected = (torch.sigmoid(torch.tensor(4.0)) + torch.sigmoid(torch.tensor(-1.0))) / 2
    torch.testing.assert_close(found, torch.stack([expected, 1 - expected]))
