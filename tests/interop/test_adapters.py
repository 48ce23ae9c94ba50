"""The same network, unchanged, driven by the loops of other libraries."""

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler
from helpers import randomized, small_unet

from diffunet.interop.adapters import DiffusersUNet, LucidrainsUNet
from diffunet.models.config import LevelConfig, UNetConfig
from diffunet.models.denoiser import Denoiser
from diffunet.models.unet import UNet
from diffunet.sampling.loop import sample


@pytest.fixture
def denoiser():
    return randomized(Denoiser.from_config(small_unet()))


@pytest.mark.parametrize(
    ("pipeline", "scheduler", "options"),
    [(DDPMPipeline, DDPMScheduler, {}), (DDIMPipeline, DDIMScheduler, {"use_clipped_model_output": True})],
)
def test_diffusers_pipelines_sample_as_our_loop_does(denoiser, pipeline, scheduler, options):
    host = pipeline(DiffusersUNet(denoiser, channels=3, size=(8, 12)), scheduler())
    host.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    found = host(batch_size=2, generator=generator, num_inference_steps=5, output_type="np", **options).images

    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 3, 8, 12, generator=generator)
    ours = scheduler()
    ours.set_timesteps(5)
    expected = (sample(denoiser, ours, noise, generator) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert expected.std() > 0.05
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-4, rtol=0)


def test_diffusers_adapter_returns_a_tuple_on_request(denoiser):
    x_t, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 700])
    adapter = DiffusersUNet(denoiser, channels=3, size=8)
    (output,) = adapter(x_t, t, return_dict=False)
    assert torch.equal(output, adapter(x_t, t).sample)


@pytest.mark.slow
def test_gaussian_diffusion_of_denoising_diffusion_pytorch(denoiser):
    peer = pytest.importorskip("denoising_diffusion_pytorch", reason="pip install denoising-diffusion-pytorch")
    settings = {"image_size": 8, "timesteps": 50, "sampling_timesteps": 5, "objective": "pred_noise"}
    host = peer.GaussianDiffusion(LucidrainsUNet(denoiser, channels=3), **settings)
    image, noise, t = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8), torch.tensor([0, 10, 30, 49])
    x_t = host.q_sample(image, t, noise)
    expected = F.mse_loss(denoiser(x_t, t), noise)
    torch.testing.assert_close(host.p_losses(image, t, noise=noise), expected, atol=1e-5, rtol=1e-5)

    optimizer = torch.optim.Adam(host.parameters(), lr=3e-3)
    images = torch.rand(1, 3, 8, 8).expand(16, -1, -1, -1)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = host(images)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    samples = host.sample(batch_size=2)
    assert samples.shape == (2, 3, 8, 8)
    assert samples.isfinite().all()


@pytest.mark.slow
def test_flow_matching_loop_learns_mean_and_spread():
    """A hand-written loop transports standard normal noise to data of another mean and standard deviation."""
    torch.manual_seed(0)
    levels = (LevelConfig(channels=8, blocks=1), LevelConfig(channels=16, blocks=1))
    config = UNetConfig(levels=levels, in_channels=1, out_channels=1, vector_dim=32, norm_groups=8)
    model = Denoiser.from_config(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    for _ in range(300):
        image = 0.5 + 0.2 * torch.randn(64, 1, 4, 4)
        noise, t = torch.randn_like(image), torch.rand(64)
        s = t[:, None, None, None]
        loss = F.mse_loss(model((1 - s) * noise + s * image, 1000 * t), image - noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = torch.randn(512, 1, 4, 4)
    with torch.no_grad():
        for t in torch.arange(20) / 20:
            x = x + model(x, 1000 * t) / 20
    assert x.mean().item() == pytest.approx(0.5, abs=0.08)
    assert x.std().item() == pytest.approx(0.2, abs=0.08)


@pytest.mark.slow
def test_segmentation_with_cross_entropy_and_unlabeled_pixels():
    """Bright pixels are one class; only left halves are annotated, and right halves are segmented correctly, too."""
    levels = [LevelConfig(channels=8, from_coarser=8), LevelConfig(channels=16, up=())]
    original = {"block": "plain", "norm": "batch", "skips": "level", "resampling": "pool", "middle_blocks": 0}
    unet = UNet(UNetConfig(levels=levels, in_channels=1, out_channels=2, **original))
    optimizer = torch.optim.Adam(unet.parameters(), lr=1e-2)
    for _ in range(150):
        image = torch.rand(4, 1, 20, 30)
        target = (image[:, 0] > 0.5).long()
        target[:, :, 15:] = -100
        optimizer.zero_grad()
        F.cross_entropy(unet(image), target).backward()
        optimizer.step()
    image = torch.rand(4, 1, 20, 30)
    with torch.no_grad():
        found = unet.eval()(image).argmax(dim=1)
    assert (found == (image[:, 0] > 0.5))[:, :, 15:].float().mean() > 0.9
