"""The same network, unchanged, driven by other people's procedures."""

import pytest
import torch
import torch.nn.functional as F
from helpers import randomised, small_unet
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler

from diffunet.models.denoiser import ConditionsConfig, Denoiser
from diffunet.interop.adapters import DiffusersUNet, LucidrainsUNet
from diffunet.sampling.loop import sample
from diffunet.models.unet import LevelConfig, UNet, UNetConfig


@pytest.fixture
def denoiser():
    return randomised(Denoiser.from_config(small_unet(), ConditionsConfig()))


@pytest.mark.parametrize(("pipeline", "scheduler"), [(DDPMPipeline, DDPMScheduler), (DDIMPipeline, DDIMScheduler)])
def test_stock_pipelines_of_diffusers(denoiser, pipeline, scheduler):
    host = pipeline(DiffusersUNet(denoiser, channels=3, size=(8, 12)), scheduler())
    host.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    found = host(batch_size=2, generator=generator, num_inference_steps=5, output_type="np").images

    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 3, 8, 12, generator=generator)
    ours = scheduler()
    ours.set_timesteps(5)
    expected = (sample(denoiser, ours, noise, generator) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert expected.std() > 0.05
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-4, rtol=0)


def test_gaussian_diffusion_of_denoising_diffusion_pytorch(denoiser):
    peer = pytest.importorskip("denoising_diffusion_pytorch", reason="pip install denoising-diffusion-pytorch")
    settings = {"image_size": 8, "timesteps": 50, "sampling_timesteps": 5, "objective": "pred_noise"}
    host = peer.GaussianDiffusion(LucidrainsUNet(denoiser, channels=3), **settings)
    image, noise, t = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8), torch.tensor([0, 10, 30, 49])
    x_t = host.q_sample(image, t, noise)
    expected = F.mse_loss(denoiser(x_t, t), noise)
    torch.testing.assert_close(host.p_losses(image, t, noise=noise), expected, atol=1e-5, rtol=1e-5)

    optimiser = torch.optim.Adam(host.parameters(), lr=3e-3)
    images = torch.rand(1, 3, 8, 8).expand(16, -1, -1, -1)
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        loss = host(images)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    drawn = host.sample(batch_size=2)
    assert drawn.shape == (2, 3, 8, 8)
    assert drawn.isfinite().all()


def test_a_flow_matching_loop():
    """From standard normal noise to data of another mean and spread, which the flow has to find."""
    torch.manual_seed(0)
    levels = (LevelConfig(channels=8, blocks=1), LevelConfig(channels=16, blocks=1))
    config = UNetConfig(levels=levels, in_channels=1, out_channels=1, vector_dim=32, norm_groups=8)
    model = Denoiser.from_config(config, ConditionsConfig())
    optimiser = torch.optim.Adam(model.parameters(), lr=4e-3)
    for _ in range(300):
        image = 0.5 + 0.2 * torch.randn(64, 1, 4, 4)
        noise, t = torch.randn_like(image), torch.rand(64)
        s = t[:, None, None, None]
        loss = F.mse_loss(model((1 - s) * noise + s * image, 1000 * t), image - noise)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    x = torch.randn(512, 1, 4, 4)
    with torch.no_grad():
        for t in torch.arange(20) / 20:
            x = x + model(x, 1000 * t) / 20
    assert x.mean().item() == pytest.approx(0.5, abs=0.08)
    assert x.std().item() == pytest.approx(0.2, abs=0.08)


def test_segmentation_with_cross_entropy_and_places_without_a_label():
    """Bright places are one class; only left halves are annotated, yet right halves come out right too."""
    levels = [LevelConfig(channels=8, from_coarser=8), LevelConfig(channels=16, up=())]
    plain = {"block": "plain", "norm": "batch", "skips": "level", "resampling": "pool", "middle_blocks": 0}
    unet = UNet(UNetConfig(levels=levels, in_channels=1, out_channels=2, **plain))
    optimiser = torch.optim.Adam(unet.parameters(), lr=1e-2)
    for _ in range(150):
        image = torch.rand(4, 1, 20, 30)
        truth = (image[:, 0] > 0.5).long()
        truth[:, :, 15:] = -100
        optimiser.zero_grad()
        F.cross_entropy(unet(image), truth).backward()
        optimiser.step()
    image = torch.rand(4, 1, 20, 30)
    with torch.no_grad():
        found = unet.eval()(image).argmax(dim=1)
    assert (found == (image[:, 0] > 0.5))[:, :, 15:].float().mean() > 0.9
