"""Conditioning on observations against the exact posterior of correlated Gaussian data."""

from itertools import product

import pytest
import torch

from diffunet.data.degradation import Degradation, Step
from diffunet.objectives.ddpm import DDPM, DDPMConfig
from diffunet.objectives.edm import EDM, EDMConfig
from diffunet.objectives.flow import Flow, FlowConfig
from diffunet.objectives.solvers import METHODS, Solver
from diffunet.sampling.loop import sample
from diffunet.sampling.observed import Observed, gmres

OBJECTIVES = {
    "linear": DDPM(DDPMConfig()),
    "cosine": DDPM(DDPMConfig(prediction_type="v_prediction", beta_schedule="cosine")),
    "sample": DDPM(DDPMConfig(prediction_type="sample", beta_schedule="cosine")),
    "edm": EDM(EDMConfig()),
    "flow": Flow(FlowConfig()),
}
STEPS = {"dpm++": 25, "sde-dpm++": 40, "ancestral": 300}
MEAN, STD, SIDE = 0.1, 0.2, 4


class GaussianField:
    """Images (C, 4, 4) ~ N(MEAN, covariance), with a correlation of e^(-distance / 2), and of .8 between channels."""

    def __init__(self, channels: int = 1):
        self.shape = channels, SIDE, SIDE
        axis = torch.arange(float(SIDE), dtype=torch.float64)
        points = torch.cartesian_prod(axis, axis)
        spatial = torch.exp(-torch.cdist(points, points) / 2)
        across = torch.full((channels, channels), 0.8, dtype=torch.float64).fill_diagonal_(1)
        self.covariance = STD**2 * torch.kron(across, spatial)
        self.values, self.vectors = torch.linalg.eigh(self.covariance)

    def network(self, objective):
        """Return the exact network."""

        def call(x_t, t):
            alpha, sigma = (level.double() for level in objective.levels(t))
            gain = alpha * self.values / (alpha**2 * self.values + sigma**2)
            centered = x_t.double().flatten(1) - alpha * MEAN
            clean = MEAN + (centered @ self.vectors * gain) @ self.vectors.T
            return objective.prediction(clean.reshape(x_t.shape), x_t, t)

        return call

    def posterior(self, matrix, y, noise):
        """Return the mean and covariance of x given y = matrix x + N(0, noise²)."""
        prior = self.covariance
        gain = prior @ matrix.T @ torch.linalg.inv(matrix @ prior @ matrix.T + noise**2 * torch.eye(len(matrix)))
        mean = MEAN + gain @ (y - matrix @ torch.full((len(prior),), MEAN, dtype=torch.float64))
        return mean, prior - gain @ matrix @ prior


def _mask() -> torch.Tensor:
    mask = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.float64)
    mask[..., 1:3, 1:] = 1
    return mask


CASES = {
    "mask": (1, [], _mask(), 0.01),
    "downscale": (1, [Step(downscale=2)], None, 0.01),
    "gray": (3, [Step(gray=True)], None, 0.01),
    "blur": (1, [Step(blur=0.8)], None, 0.05),
}
"""Channels, steps, mask and noise of the observation."""


def kullback_leibler(mean, covariance, images) -> float:
    """Return KL(N of the images || N(mean, covariance)), less its expected value for that many exact draws."""
    size, count = len(mean), len(images)
    found, off = torch.cov(images.T), images.mean(0) - mean
    inverse = torch.linalg.inv(covariance)
    divergence = 0.5 * ((inverse @ found).trace() + off @ inverse @ off - size + covariance.logdet() - found.logdet())
    return (divergence - (size * (size + 1) / 4 + size / 2) / count).item()


def combinations() -> list:
    """Return every objective, method and observation; the first-order method needs many steps, so most are slow."""
    found = []
    for name, method, case in product(OBJECTIVES, METHODS, CASES):
        slow = method == "ancestral" and (name, case) != ("cosine", "mask")
        found.append(pytest.param(name, method, case, marks=[pytest.mark.slow] * slow))
    return found


@pytest.mark.parametrize(("name", "method", "case"), combinations())
def test_samples_have_the_exact_posterior_of_a_gaussian(name, method, case):
    channels, steps, mask, noise = CASES[case]
    objective, field = OBJECTIVES[name], GaussianField(channels)
    degradation = Degradation(steps, field.shape)

    def observe(image):
        return degradation.apply(image, mask)

    size = field.covariance.shape[0]
    matrix = observe(torch.eye(size, dtype=torch.float64).reshape(size, *field.shape)).flatten(1).T
    matrix = matrix[matrix.abs().sum(1) > 0]
    generator = torch.Generator().manual_seed(0)
    draw = torch.linalg.cholesky(field.covariance) @ torch.randn(size, generator=generator).double()
    truth = (MEAN + draw).reshape(1, *field.shape)
    y = observe(truth)
    mean, covariance = field.posterior(matrix, matrix @ truth.flatten(), noise)
    model = Observed(field.network(objective), objective, observe, y, noise=noise, iterations=6)
    solver = Solver(
        objective, objective.falling_times(STEPS[method], objective.start((8, 8))), METHODS[method], limit=None
    )
    start = torch.randn(1500, *field.shape, generator=generator).double()
    start -= start.mean(0)
    images = sample(model, solver, start, generator).flatten(1)
    # Directions that the observation leaves open: of the others, the spread is that of its noise.
    values, vectors = torch.linalg.eigh(covariance)
    free = vectors[:, values > 4 * noise**2]
    off = ((images.mean(0) - mean) @ free).abs() / values[values > 4 * noise**2].sqrt()
    found = torch.cov(images.T)
    spread = ((free.T @ found @ free).trace() / (free.T @ covariance @ free).trace()).sqrt()
    kl = kullback_leibler(free.T @ mean, free.T @ covariance @ free, images @ free)
    assert off.square().mean().sqrt() < 0.06
    # Ancestral steps lose spread by themselves, 3.5 % in 300 steps; more steps crowd whole timesteps.
    assert spread.item() == pytest.approx(1, abs=0.04 if method == "ancestral" else 0.03)
    assert kl < (0.2 if method == "ancestral" else 0.05)  # that loss in every open direction adds up


def test_gmres_has_the_least_residual_of_the_krylov_space():
    """Against a direct solution in that space, for matrices that are neither symmetric nor positive."""
    matrices = torch.randn(3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    b = torch.randn(3, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def system(z):
        return (matrices @ z.flatten(1)[:, :, None]).reshape(b.shape)

    for iterations in (1, 3):
        columns = [b.flatten(1)]
        for _ in range(iterations):
            columns.append((matrices @ columns[-1][:, :, None])[:, :, 0])
        space, images = torch.stack(columns[:-1], 2), torch.stack(columns[1:], 2)
        expected = space @ torch.linalg.lstsq(images, b.flatten(1)[:, :, None]).solution
        torch.testing.assert_close(gmres(system, b, iterations).flatten(1), expected[:, :, 0], rtol=1e-6, atol=1e-8)
    assert torch.equal(gmres(system, torch.zeros_like(b), 3), torch.zeros_like(b))


def test_the_space_of_an_example_may_end_early():
    """For a multiple of the identity, the first iteration is the solution."""
    b = torch.randn(4, 5)
    torch.testing.assert_close(gmres(lambda z: 3 * z, b, 4), b / 3)
