"""The loss of autoencoders against probabilistic PCA, and its terms against their definitions."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from diffunet.core.rng import BatchRNG
from diffunet.objectives.autoencoding import Autoencoding, AutoencodingConfig, Transformed

DIMS, LATENT, BETA = 7, 2, 0.3


class Linear(nn.Module):
    """Of vectors as images of one pixel; a variance that does not depend on the vector."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(DIMS, LATENT, dtype=torch.float64)
        self.decoder = nn.Linear(LATENT, DIMS, dtype=torch.float64)
        self.log_variance = nn.Parameter(torch.zeros(LATENT, dtype=torch.float64))

    def forward(self, image, sample):
        mean = self.encoder(image[..., 0, 0])[..., None, None]
        log_variance = self.log_variance[:, None, None].expand_as(mean)
        return mean, log_variance, [self.decoder(z[..., 0, 0])[..., None, None] for z in sample(mean, log_variance)]


@dataclass(frozen=True)
class SigmaPoints(BatchRNG):
    """Noise whose mean and covariance are exactly those of the normal distribution: +-sqrt(k) along each of k axes."""

    def normal_like(self, x: Tensor) -> Tensor:
        points = LATENT**0.5 * torch.cat([torch.eye(LATENT), -torch.eye(LATENT)]).double()
        return points.repeat_interleave(len(x) // len(points), 0)[..., None, None]


def test_a_linear_autoencoder_reaches_probabilistic_pca():
    """The subspace, the length of each axis and the loss (Lucas et al. 2019, with the factor beta)."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(60, DIMS, generator=generator, dtype=torch.float64)
    data = data @ torch.diag(torch.tensor([3, 2, 1, 0.7, 0.5, 0.4, 0.3]).double()) + 1
    covariance = torch.cov(data.T, correction=0)
    values, vectors = torch.linalg.eigh(covariance)
    kept, axes = values[-LATENT:], vectors[:, -LATENT:]
    torch.manual_seed(0)
    model = Linear()
    objective = Autoencoding(AutoencodingConfig(l1=0, l2=1, kl=BETA, equivariance=0))
    batch = data.repeat(2 * LATENT, 1)[..., None, None]  # every vector with every sigma point: the exact expectation
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2000, tolerance_grad=1e-12, tolerance_change=1e-16,
                                  history_size=50, line_search_fn="strong_wolfe")  # fmt: skip

    def closure():
        optimizer.zero_grad()
        loss = objective.loss(model, batch, SigmaPoints())["loss"].mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    lost = values[:-LATENT].sum()
    expected = lost + BETA * 0.5 * (2 * kept / BETA).log().sum() + LATENT * BETA / 2
    assert abs(DIMS * closure().item() - expected.item()) < 1e-6
    weight = model.decoder.weight.detach()
    torch.testing.assert_close(weight @ weight.T, axes @ torch.diag(kept - BETA / 2) @ axes.T, atol=1e-5, rtol=0)
    projection = weight @ torch.linalg.pinv(weight)
    torch.testing.assert_close(projection, axes @ axes.T, atol=1e-5, rtol=0)


class Pooling(nn.Module):
    """Latents that are means of 2 x 2 pixels, decoded by repetition: it follows turns, and scales of smooth images."""

    def __init__(self, log_variance: float = -60.0, bias: float = 0.0):
        super().__init__()
        self.log_variance, self.bias = log_variance, bias

    def forward(self, image, sample):
        mean = nn.functional.avg_pool2d(image, 2) + self.bias * torch.arange(image.shape[-1] // 2)
        log_variance = torch.full_like(mean, self.log_variance)
        return mean, log_variance, [nn.functional.interpolate(z, scale_factor=2.0) for z in sample(mean, log_variance)]


def test_the_divergence_is_that_of_torch_and_is_summed_over_the_latent():
    image = torch.randn(5, 3, 8, 8)
    found = Autoencoding(AutoencodingConfig(kl=0.1, equivariance=0)).loss(Pooling(-1.0), image)
    mean = nn.functional.avg_pool2d(image, 2)
    own = torch.distributions.Normal(mean, torch.full_like(mean, -1.0).div(2).exp())
    expected = torch.distributions.kl_divergence(own, torch.distributions.Normal(0.0, 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(found["kl"], expected)
    torch.testing.assert_close(found["loss"], found["loss_l1"] + 0.1 * expected / (3 * 8 * 8))


def test_the_divergence_counts_more_and_more():
    objective = Autoencoding(AutoencodingConfig(kl=0.4, kl_warmup=0.5))
    assert [objective.at(share).kl for share in (0, 0.25, 0.5, 1)] == pytest.approx([0, 0.2, 0.4, 0.4])
    assert Autoencoding(AutoencodingConfig(kl=0.4, kl_warmup=0)).at(0).kl == 0.4


@pytest.mark.parametrize("step", range(8))
def test_latents_that_follow_turns_and_scales_have_no_further_error(step):
    """And latents that do not, have one: here they depend on the column."""
    image = torch.randn(6, 1, 1, 1).expand(6, 3, 16, 16).contiguous()  # one color each, which scales exactly
    rng = BatchRNG.at(0, step, slice(0, 6), 6, torch.device("cpu"))
    objective = Autoencoding(AutoencodingConfig(kl=0, equivariance=1))
    assert objective.loss(Pooling(), image, rng)["loss"].max() < 1e-6
    fixed = Autoencoding(AutoencodingConfig(kl=0, equivariance=0)).loss(Pooling(bias=0.1), image)["loss"]
    rng = BatchRNG.at(0, step, slice(0, 6), 6, torch.device("cpu"))
    turned = objective.loss(Pooling(bias=0.1), image, rng)["loss"]
    assert turned.shape == fixed.shape and turned.min() > 0.1


def test_turns_are_of_image_and_latent_alike():
    image = torch.randn(4, 3, 8, 12)
    latent = nn.functional.avg_pool2d(image, 2)
    for turns in range(4):
        group = Transformed(torch.tensor([2, 0]), turns)
        torch.testing.assert_close(nn.functional.avg_pool2d(group(image, 2), 2), group(latent))
    half = Transformed(torch.arange(4), 0, 0.5)
    assert half(image, 2).shape == (4, 3, 4, 6) and half(latent).shape == (4, 3, 2, 3)


def test_a_shared_batch_has_the_losses_of_the_whole():
    image = torch.randn(6, 3, 8, 8)
    objective = Autoencoding(AutoencodingConfig())

    def losses(positions: slice) -> Tensor:
        rng = BatchRNG.at(1, 5, positions, 6, torch.device("cpu"))
        return objective.loss(Pooling(-2.0), image[positions], rng)["loss"]

    torch.testing.assert_close(torch.cat([losses(slice(0, 2)), losses(slice(2, 6))]), losses(slice(0, 6)))


def test_a_loss_without_an_error_is_refused():
    with pytest.raises(ValueError, match="l1, l2 and perceptual: all 0"):
        AutoencodingConfig(l1=0)
