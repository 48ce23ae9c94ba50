"""The published networks: output sizes, exact parameter counts, in every dimension and with either border."""

from itertools import islice, pairwise

import pytest
import torch
import torch.nn.functional as F
import torchvision
from diffusers import UNet2DModel
from helpers import randomized, thinned

from diffunet.conditions.label import LabelConfig
from diffunet.core.settings import docstrings_of
from diffunet.models.conditioning import Conditioning
from diffunet.models.config import UNetConfig
from diffunet.models.denoiser import Denoiser, TimeConfig
from diffunet.models.meta import on_meta
from diffunet.models.presets import PRESETS
from diffunet.models.saving import load_unet, save_unet
from diffunet.models.unet import UNet


def preset(name, **changes) -> UNetConfig:
    return UNetConfig(preset=name, **changes)


def parameters(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def conv(kernel_places: int, *widths: int, bias: bool = True) -> int:
    """Return the parameters of consecutive convolutions through these widths."""
    return sum(kernel_places * n * m + bias * m for n, m in pairwise(widths))


@pytest.fixture
def weightless():
    with on_meta():
        yield


def test_unet2015(weightless):
    """Ronneberger et al. 2015, figure 1; section 2: 23 convolutions, the image size of the figure."""
    unet = UNet(preset("unet2015"))
    assert unet.output_size(572, 572) == (388, 388)
    down = conv(9, 1, 64, 64, 128, 128, 256, 256, 512, 512, 1024, 1024)
    up = sum(conv(4, 2 * n, n) + conv(9, 2 * n, n, n) for n in (512, 256, 128, 64))
    assert parameters(unet) == down + up + conv(1, 64, 2) == 31_030_658
    convolutions = [m for m in unet.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.ConvTranspose2d)]
    assert len(convolutions) == 23


def ronneberger(x, layers):
    """Figure 1, arrow by arrow, with the weights of these convolutions in order of use."""
    layers, kept = iter(layers), []

    def double_convolution(x):
        for layer in islice(layers, 2):
            x = F.relu(F.conv2d(x, layer.weight, layer.bias))
        return x

    for depth in range(5):
        x = double_convolution(F.max_pool2d(x, 2) if depth else x)
        kept.append(x)
    kept.pop()
    for skip in reversed(kept):
        layer = next(layers)
        x = F.conv_transpose2d(x, layer.weight, layer.bias, stride=2)
        spare = [(there - here) // 2 for there, here in zip(skip.shape[2:], x.shape[2:], strict=True)]
        cropped = skip[:, :, spare[0] : spare[0] + x.shape[2], spare[1] : spare[1] + x.shape[3]]
        x = double_convolution(torch.cat([x, cropped], dim=1))
    layer = next(layers)
    return F.conv2d(x, layer.weight, layer.bias)


def test_unet2015_computes_the_figure():
    unet = UNet(thinned(preset("unet2015"), 8)).eval()
    layers = [m for m in unet.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.ConvTranspose2d)]
    x = torch.randn(1, 1, 220, 252)
    with torch.no_grad():
        found, expected = unet(x), ronneberger(x, layers)
    assert found.shape == (1, 2, 36, 68)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_unet3d(weightless):
    """Çiçek et al. 2016, figure 2, and section 2.1: 19,069,955 parameters."""
    unet = UNet(preset("unet3d"))
    assert unet.output_size(132, 132, 116) == (44, 44, 28)
    norms = sum(parameters(m) for m in unet.modules() if isinstance(m, torch.nn.BatchNorm3d))
    down = conv(27, 3, 32, 64, 64, 128, 128, 256, 256, 512)
    up = sum(conv(8, n, n, bias=False) + conv(27, n + n // 2, n // 2, n // 2) for n in (512, 256, 128))
    assert parameters(unet) - norms == down + up + conv(1, 64, 3) == 19_069_955


def test_ternaus11(weightless):
    """Iglovikov & Shvets 2018, figure 1: VGG11, a middle, and five times convolution and transposed convolution."""
    unet = UNet(preset("ternaus11"))
    assert unet.output_size(256, 224) == (256, 224)
    vgg = parameters(torchvision.models.vgg11().features)
    middle = conv(9, 512, 512, 256)
    up = conv(9, 256 + 512, 512, 256) + conv(9, 256 + 512, 512, 128)
    up += conv(9, 128 + 256, 256, 64) + conv(9, 64 + 128, 128, 32) + conv(9, 32 + 64, 32)
    assert parameters(unet) == vgg + middle + up + conv(1, 32, 1) == 22_927_393


def test_ddpm_cifar10_has_the_parameters_of_diffusers(weightless):
    denoiser = Denoiser.from_config(preset("ddpm_cifar10"), time=TimeConfig(freq_shift=1))
    theirs = UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )
    assert parameters(denoiser) == parameters(theirs) == 35_746_307


def test_adm_64(weightless):
    """295,904,454 as OpenAI's code counts (test_guided_diffusion.py), and one row for the null label."""
    denoiser = Denoiser.from_config(preset("adm_64"), {"label": LabelConfig(num_classes=1000)})
    assert parameters(denoiser) == 295_904_454 + 768
    assert denoiser.unet.output_size(64, 64) == (64, 64)


def trainable(name: str, dims: int, padding: str) -> UNetConfig:
    """Return a preset with thin levels of one block: all levels for images, else the two finest of the deep ones."""
    changes = {"resampling": "conv"} if (name, padding) == ("ddpm_cifar10", "valid") else {}
    config = thinned(preset(name, dims=dims, padding=padding, **changes), 16 if dims < 3 else 32)
    cut = (config.block == "residual" and (dims, padding) != (2, "same")) or (dims, padding) == (3, "valid")
    levels = tuple(level.model_copy(update={"blocks": 1}) for level in config.levels)
    return config.model_copy(update={"levels": levels[:2] if cut else levels})


EVERY = [(name, dims, padding) for name in PRESETS for dims in (1, 2, 3) for padding in ("same", "valid")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dims", "padding"), EVERY)
def test_every_preset_trains_compiles_and_round_trips(name, dims, padding, tmp_path):
    config = trainable(name, dims, padding)
    unet = randomized(UNet(config)).train()
    side = unet.min_input_size if padding == "valid" else 2 ** len(config.levels)
    x = torch.randn(2 if padding == "same" else 1, config.in_channels, *[side] * dims)
    cond = Conditioning(vector=torch.randn(1, config.vector_dim)) if config.vector_dim else Conditioning()

    optimizer = torch.optim.SGD(unet.parameters(), lr=1e-4)
    before = {key: parameter.detach().clone() for key, parameter in unet.named_parameters()}
    unet(x, cond).square().mean().backward()
    for key, parameter in unet.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    optimizer.step()
    assert any(not torch.equal(before[key], parameter) for key, parameter in unet.named_parameters())

    unet.eval()
    save_unet(unet, tmp_path / "unet")
    back = load_unet(tmp_path / "unet").eval()
    assert back.config == config
    torch._dynamo.reset()
    compiled = torch.compile(unet, fullgraph=True, backend="eager")
    with torch.no_grad():
        expected = unet(x, cond)
        assert torch.equal(back(x, cond), expected)
        torch.testing.assert_close(compiled(x, cond), expected, atol=1e-5, rtol=1e-5)


def test_keys_override_a_preset_and_unknown_presets_are_errors():
    assert preset("unet2015", padding="same").padding == "same"
    assert preset("unet2015", dims=3).levels == preset("unet2015").levels
    assert all(name in docstrings_of(UNetConfig)["preset"] for name in PRESETS)
    with pytest.raises(ValueError, match="preset unet2016 is not one of .* did you mean unet2015?"):
        preset("unet2016")
