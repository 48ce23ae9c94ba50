"""Inpainting by a generator of latents against the closed form of Gaussian ones."""

import pytest
import torch
from helpers import gaussian_noise
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from diffunet.core.errors import UserError
from diffunet.data.degradation import Degradation, Step
from diffunet.data.pixels import denormalize
from diffunet.models.denoiser import Denoiser
from diffunet.objectives.ddpm import DDPM, DDPMConfig
from diffunet.objectives.flow import Flow, FlowConfig
from diffunet.sampling.editing import Restore
from diffunet.sampling.generate import SampleBatch, SampleConfig, Sampler

OBJECTIVES = {
    "cosine": DDPM(DDPMConfig(prediction_type="v_prediction", beta_schedule="cosine")),
    "flow": Flow(FlowConfig()),
}
for unlimited in OBJECTIVES.values():
    unlimited.limit = None
SPREAD, LENGTH = 4.0, 8
"""Spread of the latents of an image over that of its pixels, and number of positions."""
MIXING = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(7)))[0]
COVARIANCE = 0.8 ** (torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)).abs().double()
"""Of the positions, in each channel by itself."""


class Orthogonal:
    """A lossless autoencoder: each block of 2×2 pixels is turned into four channels."""

    factor = 2

    def shape(self, size):
        return 4, size[0] // 2, size[1] // 2

    def encode(self, image):
        return SPREAD * torch.einsum("ij,bjhw->bihw", MIXING, pixel_unshuffle(image, 2))

    def decode(self, latent):
        return pixel_shuffle(torch.einsum("ij,bihw->bjhw", MIXING, latent / SPREAD), 2)


class Gaussian(Denoiser):
    """The exact network for latents of COVARIANCE."""

    def __init__(self, objective):
        torch.nn.Module.__init__(self)
        self.objective, self.unet = objective, torch.nn.Linear(1, 1)

    def forward(self, x_t, t, **conditions):
        alpha, sigma = (level.double() for level in self.objective.levels(t))
        of_x = alpha**2 * COVARIANCE + sigma**2 * torch.eye(LENGTH).double()
        clean = x_t.double() @ torch.linalg.solve(of_x, alpha * COVARIANCE)
        return self.objective.prediction(clean, x_t.double(), t).to(x_t)


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_hidden_latents_follow_the_known_ones(objective):
    """A column of position 3 is hidden: 2 to 4 are generated, and of them only that column is not known."""
    generator = torch.Generator().manual_seed(2)
    root = torch.linalg.cholesky(COVARIANCE).float()
    latents = torch.randn(1, 4, 1, LENGTH, generator=generator) @ root.T
    codec = Orthogonal()
    pixels = denormalize(codec.decode(latents), 8)
    image = pixels.float() / 127.5 - 1
    mask = torch.zeros(1, 1, 2, 2 * LENGTH)
    mask[..., 6] = 1
    edit = Restore(
        Degradation([Step(mask=(0, 1))], (1, 2, 2 * LENGTH)),
        torch.cat([image * (1 - mask), mask], dim=1),
        samples=400,
        iterations=4,
    )
    sampler = Sampler(Gaussian(objective), objective, (1, 2, 2 * LENGTH), 8, codec=codec)
    config = SampleConfig(num_images=400, batch_size=400, steps=25, sampler="ancestral")
    found = SampleBatch.concatenate(sampler.sample(config, edit=edit)).pixels
    hidden = mask[0] > 0
    assert torch.equal(found[:, ~hidden], pixels.expand(400, -1, -1, -1)[:, ~hidden])

    known, free = [0, 1, 5, 6, 7], [2, 3, 4]
    gain = torch.linalg.solve(COVARIANCE[known][:, known], COVARIANCE[known][:, free])
    mean = torch.zeros(1, 4, 1, LENGTH)
    mean[..., free] = codec.encode(image)[..., known] @ gain.float()
    variance = (COVARIANCE[free][:, free] - COVARIANCE[free][:, known] @ gain)[1, 1].item()
    column = found[:, 0, :, 6].float() / 127.5 - 1
    expected, std = codec.decode(mean)[0, 0, :, 6], variance**0.5 / SPREAD
    torch.testing.assert_close(column.mean(0), expected, atol=4 * std / 20, rtol=0)
    torch.testing.assert_close(column.std(0), torch.full((2,), std), atol=0, rtol=0.15)
    alone = (image[0, 0, :, 5] + image[0, 0, :, 7]) / 2
    assert (expected - alone).abs().max() > 4 * std / 20, "as good as a mean of neighbors"


def test_margins_are_generated_and_the_rest_is_kept():
    inner = denormalize(0.3 * gaussian_noise(2, 8)[:, :, :2], 8)
    degradation = Degradation([Step(extend=(4, 4, 0, 0))], (1, 2, 2 * LENGTH))
    edit = Restore(degradation, inner.float() / 127.5 - 1)
    sampler = Sampler(Gaussian(OBJECTIVES["flow"]), OBJECTIVES["flow"], (1, 2, 2 * LENGTH), 8, codec=Orthogonal())
    config = SampleConfig(num_images=2, steps=5, sampler="ancestral")
    found = SampleBatch.concatenate(sampler.sample(config, edit=edit)).pixels
    assert torch.equal(found[..., 4:12], inner)
    assert found[..., :4].float().std() > 5


def test_other_restorations_need_pixels():
    edit = Restore(Degradation([Step(downscale=2)], (1, 8, 8)), torch.zeros(1, 1, 4, 4))
    with pytest.raises(UserError, match="degradation: has no counterpart in the latents of this run; use --mask"):
        edit.of_latents(Orthogonal().encode)
