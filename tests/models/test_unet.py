import itertools

import pytest
import torch
from diffusers import UNet2DModel
from helpers import randomized, small_unet

from diffunet.conditions.label import LabelConfig
from diffunet.core.settings import read_yaml
from diffunet.interop.diffusers import from_diffusers_tensors, to_diffusers_tensors
from diffunet.models import layers
from diffunet.models.conditioning import Conditioning, TimeEmbedding
from diffunet.models.config import LevelConfig, LevelPlan, StackPlan, UNetConfig
from diffunet.models.denoiser import Denoiser, TimeConfig
from diffunet.models.inspection import build_probe
from diffunet.models.inspection import features as inspected
from diffunet.models.unet import UNet

WIDE = (
    LevelConfig(channels=16, blocks=2),
    LevelConfig(channels=32, blocks=2, attention=True),
    LevelConfig(channels=24, blocks=2),
)
THEIRS = {
    "sample_size": 16,
    "block_out_channels": (16, 32, 24),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "time_embedding_dim": 64,
    "norm_num_groups": 8,
    "attn_norm_num_groups": 8,
    "attention_head_dim": None,
    "freq_shift": 1,
}
PARITY = {
    "additive time": ({"modulation": "shift"}, {}),
    "scale and shift": ({"modulation": "scale_shift"}, {"resnet_time_scale_shift": "scale_shift"}),
    "several heads": ({"modulation": "shift", "head_channels": 8}, {"attention_head_dim": 8}),
    "ddpm's downsampling and eps": (
        {"modulation": "shift", "resampling": "conv_end_padded", "norm_eps": 1e-6},
        {"downsample_padding": 0, "norm_eps": 1e-6},
    ),
    "no attention in the middle": ({"modulation": "shift", "middle_attention": False}, {"add_attention": False}),
}


@pytest.mark.parametrize("changes", PARITY.values(), ids=PARITY)
@pytest.mark.parametrize("classes", [0, 3])
def test_equals_unet2dmodel_with_the_same_weights(changes, classes):
    unet = UNetConfig(levels=WIDE, vector_dim=64, norm_groups=8, **changes[0])
    theirs = randomized(UNet2DModel(**{**THEIRS, **changes[1]}, num_class_embeds=classes + 1 if classes else None))
    conditions = {"label": LabelConfig(num_classes=classes)} if classes else {}
    ours = Denoiser.from_config(unet, conditions, TimeConfig(freq_shift=1)).eval()
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


def test_shipped_cifar10_config_is_the_network_of_ddpm(request):
    values, _ = read_yaml(request.config.rootpath / "configs" / "cifar10.yaml")
    unet = UNetConfig.model_validate(values["unet"] | {"vector_dim": 4 * 128})
    denoiser = Denoiser.from_config(unet)
    assert sum(p.numel() for p in denoiser.parameters()) == 35_746_307


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_output_has_the_size_of_the_input(dims):
    unet = randomized(UNet(small_unet(dims=dims, in_channels=2, out_channels=1)))
    for size in ((8, 8, 8), (5, 7, 9), (1, 2, 3)):
        assert unet(torch.randn(2, 2, *size[:dims])).shape == (2, 1, *size[:dims])


@pytest.mark.parametrize("dims", [1, 2])
def test_valid_borders_are_translation_equivariant(dims):
    """Moving the input moves the output, which padding at the border would prevent; without norms over space."""
    levels = (LevelConfig(channels=4, blocks=1), LevelConfig(channels=4, blocks=1))
    unet = UNet(UNetConfig(levels=levels, dims=dims, padding="valid", middle_attention=False, norm_groups=4))
    for module in list(unet.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.GroupNorm):
                setattr(module, name, torch.nn.Identity())
    randomized(unet)
    x = torch.randn(1, 3, *[96] * dims)
    whole = unet(x)
    part = unet(x[(..., *[slice(2, 94)] * dims)])
    spare = whole.shape[-1] - part.shape[-1]
    assert part.shape[-1] > 4
    assert spare == 4
    torch.testing.assert_close(part, whole[(..., *[slice(2, -2)] * dims)], atol=1e-5, rtol=1e-5)


def test_initial_output_is_zero_and_every_parameter_has_a_gradient():
    unet = UNet(small_unet(token_dim=5, plane_channels=1))
    x = torch.randn(2, 3, 8, 8)
    cond = Conditioning(vector=torch.randn(2, 32), tokens=torch.randn(2, 4, 5), planes=torch.randn(2, 1, 8, 8))
    assert not unet(x, cond).any()
    randomized(unet)(x, cond).square().mean().backward()
    for name, parameter in unet.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or "to_qkv.bias" in name or "to_kv.bias" in name, name


@pytest.mark.parametrize("route", ["vector", "tokens", "planes"])
def test_each_route_changes_the_output(route):
    unet = randomized(UNet(small_unet(token_dim=5, plane_channels=1)))
    x = torch.randn(2, 3, 8, 8)
    given = {"vector": torch.randn(2, 32), "tokens": torch.randn(2, 4, 5), "planes": torch.randn(2, 1, 8, 8)}
    other = given | {route: given[route] + 1}
    assert not torch.allclose(unet(x, Conditioning(**given)), unet(x, Conditioning(**other)), atol=1e-4)


def test_unconditional_without_a_vector():
    unet = randomized(UNet(small_unet(vector_dim=0)))
    assert unet(torch.randn(1, 3, 8, 8)).shape == (1, 3, 8, 8)


def test_inner_level_is_a_unet_itself():
    unet = randomized(UNet(small_unet()))
    inner = unet.levels[1]
    assert inner is unet.body.inner
    assert inner(torch.randn(1, 8, 8, 8), Conditioning()).shape == (1, 16, 8, 8)


def test_gradient_checkpointing_changes_only_the_memory():
    plain = UNet(small_unet(dropout=0.5))
    levels = tuple(level.model_copy(update={"gradient_checkpointing": True}) for level in plain.config.levels)
    saving = UNet(small_unet(dropout=0.5, levels=levels))
    randomized(plain)
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


def test_inputs_that_do_not_fit_are_errors():
    unet, x = UNet(small_unet()), torch.randn(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"x: expected shape \(B, 3, H, W\), got \(2, 1, 8, 8\)"):
        unet(x[:, :1])
    with pytest.raises(ValueError, match=r"vector: expected width 32, got shape \(2, 31\)"):
        unet(x, Conditioning(vector=torch.zeros(2, 31)))
    with pytest.raises(ValueError, match="tokens: expected width 0"):
        unet(x, Conditioning(tokens=torch.zeros(2, 1, 4)))
    with pytest.raises(ValueError, match="planes: expected shape None"):
        unet(x, Conditioning(planes=x))
    with pytest.raises(ValueError, match="head_channels: 5 does not divide 16"):
        small_unet(head_channels=5)
    with pytest.raises(ValueError, match="at least one level"):
        UNet(UNetConfig())


def test_too_small_an_input_is_an_error_with_the_smallest_size():
    unet = UNet(UNetConfig(preset="unet2015", levels=[LevelConfig(channels=4), LevelConfig(channels=4, up=())]))
    assert unet.min_input_size == 18
    assert unet.output_size(18, 31) == (2, 14)
    assert unet(torch.randn(1, 1, 18, 30)).shape == (1, 2, 2, 14)
    for too_small in (lambda: unet(torch.randn(1, 1, 20, 17)), lambda: unet.output_size(17, 20)):
        with pytest.raises(ValueError, match="too small; each side needs 18"):
            too_small()


LEVELS = {
    "one": (LevelConfig(channels=4, blocks=1),),
    "two": (LevelConfig(channels=4, blocks=2), LevelConfig(channels=4, blocks=1)),
    "uneven": (LevelConfig(channels=4, up=(4,)), LevelConfig(channels=4, down=(4,)), LevelConfig(channels=4, up=())),
    "four": (LevelConfig(channels=4, blocks=1),) * 4,
}


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("resampling", ["conv", "pool", "pool_relu", "average", "residual"])
def test_size_arithmetic_matches_the_network(levels, resampling):
    """The oracle is the network itself, along one axis, on sides around the smallest that it accepts."""
    for block, skips, middle in itertools.product(("residual", "plain"), ("block", "level", "none"), (0, 1)):
        kind = {"block": block, "skips": skips, "middle_blocks": middle, "resampling": resampling}
        unet = build_probe(UNetConfig(levels=LEVELS[levels], padding="valid", norm_groups=1, **kind))
        (least,), unet.min_input_sizes = unet.min_input_sizes, (0,)
        for side in (least - 2, least - 1, *range(least, least + 9)):
            x = torch.zeros(1, 1, max(side, 0), dtype=torch.float64)
            if side < least:
                with pytest.raises(RuntimeError), torch.no_grad():
                    unet(x)
            else:
                with torch.no_grad():
                    assert (unet(x).shape[-1],) == unet.output_size(side)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("resampling", ["conv", "conv_end_padded", "pool", "pool_relu", "average", "residual"])
def test_a_level_halves_only_its_axes(resampling, padding):
    """Sizes of the real network; along an axis that no level halves, shifting the input shifts every feature."""
    if (resampling, padding) == ("conv_end_padded", "valid"):
        return
    levels = (LevelConfig(channels=2, blocks=1), LevelConfig(channels=2, blocks=1, halves=("x",)))
    levels += (LevelConfig(channels=2, blocks=1, halves=("y", "x")),)
    for block, skips in itertools.product(("residual", "plain"), ("block", "level", "none")):
        config = UNetConfig(
            levels=levels, dims=3, in_channels=1, out_channels=1, norm="none", middle_attention=False,
            block=block, skips=skips, resampling=resampling, padding=padding,
        )  # fmt: skip
        assert config.strides == (1, 2, 4) and config.max_stride == 4
        unet = randomized(UNet(config))
        assert unet.min_input_sizes[0] <= unet.min_input_sizes[1] <= unet.min_input_sizes[2]
        least = unet.min_input_sizes
        size = [side + spare for side, spare in zip(least, (3, 2, 5), strict=True)]
        x = torch.randn(1, 1, *size)
        with torch.no_grad():
            output, features = unet(x), inspected(unet, x)
        assert tuple(output.shape[2:]) == unet.output_size(*size)
        depth, height, width = features["down.2"].shape[2:]
        if padding == "same":
            assert (depth, height, width) == (size[0], -(-size[1] // 2), -(-size[2] // 4))
        for axis in range(3):
            smaller = [side - (number == axis) for number, side in enumerate(least)]
            with pytest.raises(ValueError, match="too small"):
                unet.output_size(*smaller)
            if padding == "valid":
                with pytest.raises(RuntimeError), torch.no_grad():
                    unet.head(unet.body(unet.stem(torch.zeros(1, 1, *smaller)), Conditioning()))
        if padding == "valid":
            with torch.no_grad():
                shifted = unet(x[:, :, 1:])
            torch.testing.assert_close(shifted, output[:, :, 1:], atol=1e-5, rtol=1e-4)


def test_axes_to_halve_exist():
    fine, coarse = LevelConfig(channels=4), LevelConfig(channels=4, halves=("z",))
    with pytest.raises(ValueError, match="levels.1.halves: no axis z; choose from y, x"):
        UNetConfig(levels=(fine, coarse), norm_groups=4)
    with pytest.raises(ValueError, match="levels.0.halves: there is no finer level"):
        UNetConfig(levels=(coarse, fine), dims=3, norm_groups=4)
    every = LevelConfig(channels=4, halves=("y", "x"))
    named, plain = (randomized(UNet(UNetConfig(levels=(fine, level), norm_groups=4))) for level in (every, fine))
    named.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 12, 9)
    assert torch.equal(named(x), plain(x))


def test_plan_lists_the_channels_of_every_block():
    levels = (LevelConfig(channels=8, blocks=2, from_coarser=6), LevelConfig(channels=16, down=(12, 20)))
    config = UNetConfig(levels=levels, plane_channels=1, norm_groups=4)
    fine, coarse = config.plan()
    assert fine == LevelPlan(
        in_channels=8,
        down=(StackPlan(8, 0, (8,)), StackPlan(8, 0, (8,))),
        inner_channels=6,
        up=(StackPlan(6, 8, (8,)), StackPlan(8, 8, (8,)), StackPlan(8, 8, (8,))),
    )
    assert coarse.up == (StackPlan(20, 20, (16,)), StackPlan(16, 12, (16,)), StackPlan(16, 8, (16,)))
    assert (coarse.in_channels, coarse.down_channels, coarse.out_channels) == (8, 20, 16)
    assert list(coarse.up[0].blocks()) == [(40, 16)]
    one_skip = UNetConfig(levels=levels, skips="level", block="plain").plan()
    assert one_skip[0].down == (StackPlan(3, 0, (8, 8)),)
    assert one_skip[1].up == (StackPlan(20, 20, (16, 16)),)
    without = UNetConfig(levels=levels, skips="none", block="plain").plan()
    assert without[1].up == (StackPlan(20, 0, (16, 16)),)


@pytest.mark.parametrize("skips", ["level", "none"])
def test_without_skips_everything_passes_through_the_coarser_level(skips):
    """If the coarser level gives 0, only a skip can lead from the input to the output."""
    levels = [LevelConfig(channels=4, blocks=1), LevelConfig(channels=4, blocks=1)]
    unet = UNet(UNetConfig(levels=levels, skips=skips, block="plain", norm="none", middle_blocks=0))
    unet.levels[0].inner.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    same = torch.equal(unet(torch.randn(1, 3, 8, 8)), unet(torch.randn(1, 3, 8, 8)))
    assert same == (skips == "none")


def test_number_of_heads_is_the_same_at_every_level():
    levels = [LevelConfig(channels=8, blocks=1, attention=True), LevelConfig(channels=16, blocks=1, attention=True)]
    by_number, by_width = UNetConfig(levels=levels, heads=4), UNetConfig(levels=levels, head_channels=4)
    heads = [[m.heads for m in UNet(c).modules() if hasattr(m, "heads")] for c in (by_number, by_width)]
    assert set(heads[0]) == {4}
    assert set(heads[1]) == {2, 4}
    assert by_number.attention_channels() == {8, 16}


def test_building_a_network_is_reproducible_with_valid_borders():
    torch.manual_seed(0)
    UNet(UNetConfig(levels=[LevelConfig(channels=7)], padding="valid", norm_groups=1))
    first = torch.rand(1)
    torch.manual_seed(0)
    UNet(UNetConfig(levels=[LevelConfig(channels=7)], padding="valid", norm_groups=1))
    assert torch.equal(first, torch.rand(1))


WRONG = {
    r"heads: given with head_channels \(4, 8\)": {"heads": 4, "head_channels": 8},
    "heads: 3 does not divide 16 channels": {"levels": [LevelConfig(channels=16, attention=True)], "heads": 3},
    "only 2 skips": {"levels": [LevelConfig(channels=4, down=(4,), up=(4, 4, 4))]},
    "resampling average cannot change the channels": {
        "levels": [LevelConfig(channels=4, from_coarser=2), LevelConfig(channels=4)],
        "resampling": "average",
    },
    "conv_end_padded needs padding": {"padding": "valid", "resampling": "conv_end_padded"},
}


@pytest.mark.parametrize("reason", WRONG)
def test_inconsistent_settings_are_errors(reason):
    with pytest.raises(ValueError, match=reason):
        UNetConfig(**WRONG[reason])


@pytest.mark.parametrize("dims", [2, 3])
def test_instance_norm_is_batch_norm_of_one_example(dims):
    """By the statistics of its batch, as of the 3D U-Net where it predicts (Çiçek et al. 2016)."""
    levels = (LevelConfig(channels=4, blocks=1), LevelConfig(channels=6, blocks=1))
    config = UNetConfig(dims=dims, block="plain", levels=levels, middle_attention=False, norm="batch")
    batch, instance = UNet(config).train(), UNet(config.model_copy(update={"norm": "instance"})).eval()
    named = dict(instance.named_parameters())
    with torch.no_grad():
        for name, parameter in batch.named_parameters():
            named[name].copy_(parameter.normal_(std=0.3))
        for seed in range(2):
            image = 3 + torch.randn(1, 3, *[8] * dims, generator=torch.Generator().manual_seed(seed))
            torch.testing.assert_close(instance(image), batch(image), atol=1e-4, rtol=1e-4)
        two = torch.cat([image, 5 * image])
        assert (instance(two) - batch(two)).abs().max() > 1e-2


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_unshuffled_is_the_network_of_the_blocks_as_channels(dims):
    """Bit for bit, with planes and with sizes that do not divide."""
    levels = (LevelConfig(channels=8, blocks=1), LevelConfig(channels=8, blocks=1))
    common = {"levels": levels, "dims": dims, "norm_groups": 4}
    whole = randomized(UNet(UNetConfig(**common, in_channels=2, plane_channels=1, out_channels=3, unshuffle=2)))
    inner = UNet(UNetConfig(**common, in_channels=3 * 2**dims, out_channels=3 * 2**dims))
    inner.load_state_dict(whole.state_dict())
    x, planes = torch.randn(2, 2, *[12] * dims), torch.randn(2, 1, *[12] * dims)
    with torch.no_grad():
        expected = layers.shuffle(inner(layers.unshuffle(torch.cat([x, planes], dim=1), 2)), 2)
        assert torch.equal(whole(x, Conditioning(planes=planes)), expected)
        assert whole(x[..., :9], Conditioning(planes=planes[..., :9])).shape == (2, 3, *[12] * (dims - 1), 9)


def test_unshuffle_is_that_of_torch_and_loses_nothing():
    x = torch.randn(2, 3, 12, 18)
    assert torch.equal(layers.unshuffle(x, 3), torch.nn.functional.pixel_unshuffle(x, 3))
    assert torch.equal(layers.shuffle(layers.unshuffle(x, 3), 3), x)


def test_unshuffle_needs_padding():
    with pytest.raises(ValueError, match="unshuffle: 2 needs padding"):
        UNetConfig(padding="valid", unshuffle=2)


def test_mixed_precision_leaves_the_time_and_the_output_exact():
    time = TimeEmbedding(32, 64)
    t = torch.tensor([500.0, 500.4])
    with torch.autocast("cpu", torch.bfloat16):
        vector = time(t).vector
    assert torch.equal(vector, time(t).vector)
    unet = randomized(UNet(small_unet(in_channels=1, out_channels=1)))
    with torch.autocast("cpu", torch.bfloat16):
        output = unet(torch.randn(2, 1, 8, 8), Conditioning(vector=vector))
    assert output.dtype == torch.float32
    assert not torch.equal(output, output.bfloat16().float()), "the last convolution computed in 16 bits"
