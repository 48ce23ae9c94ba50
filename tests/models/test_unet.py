import pytest
import torch
from helpers import randomised, small_unet
from diffusers import UNet2DModel

from diffunet.models.conditioning import Conditioning
from diffunet.runs.config import Config
from diffunet.models.denoiser import ConditionsConfig, Denoiser
from diffunet.core.settings import settings_from
from diffunet.interop.diffusers import diffusers_config, from_diffusers_tensors, to_diffusers_tensors
from diffunet.models.unet import LevelConfig, UNet, UNetConfig, levels_for

CIFAR10 = "configs/cifar10.yaml"


def settled(unet: UNetConfig, **conditions) -> Config:
    config = Config(unet=unet, conditions=ConditionsConfig(**conditions))
    return config.model_copy(update={"data": config.data.model_copy(update={"resolution": 16})})


WIDE = (
    LevelConfig(channels=16, blocks=2),
    LevelConfig(channels=32, blocks=2, attention=True),
    LevelConfig(channels=24, blocks=2),
)
PARITY = {
    "additive time": {"modulation": "shift"},
    "scale and shift": {"modulation": "scale_shift"},
    "several heads": {"head_channels": 8},
    "ddpm's downsampling and eps": {"modulation": "shift", "resampling": "conv_end_padded", "norm_eps": 1e-6},
    "no attention in the middle": {"middle_attention": False},
}


@pytest.mark.parametrize("changes", PARITY.values(), ids=PARITY)
@pytest.mark.parametrize("classes", [0, 3])
def test_equals_unet2dmodel_with_the_same_weights(changes, classes):
    unet = UNetConfig(levels=WIDE, vector_dim=64, norm_groups=8, **changes)
    config = settled(unet, classes=classes, time_freq_shift=1)
    theirs = randomised(UNet2DModel(**diffusers_config(config, classes + 1 if classes else None)))
    ours = Denoiser.from_config(unet, config.conditions).eval()
    ours.load_state_dict(from_diffusers_tensors(theirs.state_dict(), unet))
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())

    x_t, t = torch.randn(3, 3, 16, 16), torch.tensor([0, 400, 999])
    label = torch.tensor([0, 1, 2]) if classes else None
    with torch.no_grad():
        expected = theirs(x_t, t, class_labels=label).sample
        found = ours(x_t, t, **({"label": label} if classes else {}))
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    back = to_diffusers_tensors(ours.state_dict(), unet)
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in theirs.state_dict().items())


def test_cifar10_is_the_network_of_ddpm(request):
    config = settings_from(request.config.rootpath / CIFAR10, Config)
    unet = config.unet.model_copy(update={"vector_dim": 4 * 128})
    denoiser = Denoiser.from_config(unet, config.conditions)
    assert sum(p.numel() for p in denoiser.parameters()) == 35_746_307


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_any_size_comes_back(dims):
    unet = randomised(UNet(small_unet(dims=dims, in_channels=2, out_channels=1)))
    for size in ((8, 8, 8), (5, 7, 9), (1, 2, 3)):
        assert unet(torch.randn(2, 2, *size[:dims])).shape == (2, 1, *size[:dims])


@pytest.mark.parametrize("dims", [1, 2])
def test_valid_borders_invent_nothing(dims):
    """Moving the input moves the output, which padding at the border would prevent; without norms over space."""
    levels = (LevelConfig(channels=4, blocks=1), LevelConfig(channels=4, blocks=1))
    unet = UNet(UNetConfig(levels=levels, dims=dims, padding="valid", middle_attention=False, norm_groups=4))
    for module in list(unet.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.GroupNorm):
                setattr(module, name, torch.nn.Identity())
    randomised(unet)
    x = torch.randn(1, 3, *[96] * dims)
    whole = unet(x)
    part = unet(x[(..., *[slice(2, 94)] * dims)])
    spare = whole.shape[-1] - part.shape[-1]
    assert part.shape[-1] > 4
    assert spare == 4
    torch.testing.assert_close(part, whole[(..., *[slice(2, -2)] * dims)], atol=1e-5, rtol=1e-5)


def test_starts_at_zero_and_every_parameter_learns():
    unet = UNet(small_unet(token_dim=5, plane_channels=1))
    x = torch.randn(2, 3, 8, 8)
    cond = Conditioning(vector=torch.randn(2, 32), tokens=torch.randn(2, 4, 5), planes=torch.randn(2, 1, 8, 8))
    assert not unet(x, cond).any()
    randomised(unet)(x, cond).square().mean().backward()
    for name, parameter in unet.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or "to_qkv.bias" in name or "to_kv.bias" in name, name


@pytest.mark.parametrize("route", ["vector", "tokens", "planes"])
def test_each_route_is_heard(route):
    unet = randomised(UNet(small_unet(token_dim=5, plane_channels=1)))
    x = torch.randn(2, 3, 8, 8)
    told = {"vector": torch.randn(2, 32), "tokens": torch.randn(2, 4, 5), "planes": torch.randn(2, 1, 8, 8)}
    other = told | {route: told[route] + 1}
    assert not torch.allclose(unet(x, Conditioning(**told)), unet(x, Conditioning(**other)), atol=1e-4)


def test_told_nothing_it_is_a_plain_unet():
    unet = randomised(UNet(small_unet(vector_dim=0)))
    assert unet(torch.randn(1, 3, 8, 8)).shape == (1, 3, 8, 8)


def test_the_coarser_level_is_a_unet_itself():
    unet = randomised(UNet(small_unet()))
    inner = unet.levels[1]
    assert inner is unet.body.inner
    assert inner(torch.randn(1, 8, 8, 8), Conditioning()).shape == (1, 16, 8, 8)


def test_checkpointing_changes_only_the_memory():
    plain = UNet(small_unet(dropout=0.5))
    levels = tuple(level.model_copy(update={"gradient_checkpointing": True}) for level in plain.config.levels)
    saving = UNet(small_unet(dropout=0.5, levels=levels))
    randomised(plain)
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 8, 8)
    kept = {}
    for name, unet in (("plain", plain), ("saving", saving)):
        torch.manual_seed(1)
        saved = kept[name] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t) or t, lambda t: t):
            loss = unet.train()(x).square().mean()
        loss.backward()
    assert len(kept["saving"]) < len(kept["plain"]) / 2
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.equal(a.grad, b.grad)


def test_what_it_was_not_built_for_is_refused_by_name():
    unet, x = UNet(small_unet()), torch.randn(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"expected x of shape \(B, 3, H, W\), got \(2, 1, 8, 8\)"):
        unet(x[:, :1])
    with pytest.raises(ValueError, match="vector of width 32"):
        unet(x, Conditioning(vector=torch.zeros(2, 31)))
    with pytest.raises(ValueError, match="tokens of width 0"):
        unet(x, Conditioning(tokens=torch.zeros(2, 1, 4)))
    with pytest.raises(ValueError, match="planes of shape None"):
        unet(x, Conditioning(planes=x))
    with pytest.raises(ValueError, match="head_channels 5 does not divide 16"):
        small_unet(head_channels=5)
    with pytest.raises(ValueError, match="at least one level"):
        UNet(UNetConfig())


def test_too_small_an_input_without_borders_is_refused_with_what_it_needs():
    unet = UNet(UNetConfig(preset="unet2015", levels=[LevelConfig(channels=4), LevelConfig(channels=4, up=())]))
    assert unet.min_input_size == 18
    assert unet.output_size(18, 31) == (2, 14)
    assert unet(torch.randn(1, 1, 18, 30)).shape == (1, 2, 2, 14)
    for refused in (lambda: unet(torch.randn(1, 1, 20, 17)), lambda: unet.output_size(17, 20)):
        with pytest.raises(ValueError, match="too small; each side needs 18"):
            refused()


def test_building_one_network_leaves_the_next_ones_start_as_it_was():
    torch.manual_seed(0)
    UNet(UNetConfig(levels=[LevelConfig(channels=7)], padding="valid", norm_groups=1))
    first = torch.rand(1)
    torch.manual_seed(0)
    UNet(UNetConfig(levels=[LevelConfig(channels=7)], padding="valid", norm_groups=1))
    assert torch.equal(first, torch.rand(1))


WRONG = {
    "only 2 skips": {"levels": [LevelConfig(channels=4, down=(4,), up=(4, 4, 4))]},
    "resampling average cannot change the channels": {
        "levels": [LevelConfig(channels=4, from_coarser=2), LevelConfig(channels=4)],
        "resampling": "average",
    },
    "conv_end_padded invents a border": {"padding": "valid", "resampling": "conv_end_padded"},
}


@pytest.mark.parametrize("reason", WRONG)
def test_parts_that_do_not_go_together_are_refused(reason):
    with pytest.raises(ValueError, match=reason):
        UNetConfig(**WRONG[reason])


@pytest.mark.parametrize("size", [8, 16, 28, 32, 48, 64, 128, 256])
def test_levels_for_a_resolution(size):
    levels = levels_for(size)
    coarsest = size / 2 ** (len(levels) - 1)
    assert 3 <= coarsest <= 16
    assert any(level.attention for level in levels)
    attended = [size / 2**depth for depth, level in enumerate(levels) if level.attention]
    assert max(attended) <= 16
