"""Edits of images with any trained run: restoring, varying, interpolating. Each changes where sampling starts, what the
model knows, or what follows; none needs training.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import UserError
from ..data.degradation import MASKED, Degradation
from ..objectives.base import Objective
from ..objectives.solvers import METHODS, Method, Solver
from .observed import NOISE, Observed

Model = Callable[..., Tensor]
DDIM = Method(order=1, eta=0.0)
"""The probability flow in steps of first order (Song et al. 2021), the one method whose steps are inverted here."""
ENCODING_NOISE = 0.05
"""Standard deviation of known latents that hidden pixels cause from beyond their neighbors: 0.02 to 0.07 in emoji."""
FIXED_POINT_ITERATIONS = 5
"""Per step of `invert`: with three, the round trip of a mixture is exact to 3e-3 of its spread in 50 steps."""


class Edit:
    """Sampling from noise, and the four places where an edit differs. `indices` number the samples of a batch."""

    size: tuple[int, int] | None = None
    """(height, width) of the samples; None: those of the run."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Settings of `SampleConfig` that suit the edit, where those of a run do not."""

    def calls(self, steps: int) -> int:
        """Return the number of network calls of a batch."""
        return steps

    def sampler(self, objective: Objective, name: str, steps: int, size: tuple[int, ...]) -> Any:
        """Return the sampler of images of a size, (height, width), with timesteps set for `steps` calls.

        Raise UserError for one that does not suit.
        """
        return objective.sampler(name, steps, size)

    def start(self, noise: Tensor, sampler: Any, indices: Sequence[int]) -> Tensor:
        """Return what sampling starts from, (B, C, H, W), in the scale of standard normal noise."""
        return noise

    def model(self, model: Model, objective: Objective, indices: Sequence[int]) -> Model:
        """Return the model to sample with."""
        return model

    def finish(self, images: Tensor, indices: Sequence[int]) -> Tensor:
        """Return the finished samples (B, C, H, W)."""
        return images

    def of_latents(self, encode: Callable[[Tensor], Tensor]) -> "Edit":
        """Return the edit of latents that becomes this one of images; `encode` makes the latents of images.

        `finish` remains that of the images. Raise UserError for an edit that has no counterpart.
        """
        return self


FROM_NOISE = Edit()
"""No edit."""


def _check(objective: Objective, steps: int) -> None:
    """Raise UserError for an objective whose network does not estimate a mean, or a number of steps."""
    if objective.methods is not METHODS:
        raise UserError("edit: a run of few steps has no estimate to edit with; edit the run that it was tuned from")
    objective.check_steps(steps)


def _solver(objective: Objective, name: str, times: Tensor, rounds: int = 1) -> Solver:
    """Return the solver of this name. Raise UserError for a sampler of diffusers."""
    if name not in METHODS:
        raise UserError(f"sampler: {name} does not edit this way; use {', '.join(METHODS)}")
    return Solver(objective, times, METHODS[name], rounds, objective.limit)


@dataclass
class Restore(Edit):
    """Samples images whose degradation is known: inpainting, outpainting, undoing blur, gray or a smaller size.

    Known pixels come back bit-equal, and more generally samples agree with what is known to the bit depth, unless the
    degradation has no inverse.
    """

    degradation: Degradation
    measurements: Tensor
    """(M, C', H', W'): what is known of M images, as `Degradation` defines it."""
    samples: int = 1
    """Samples of each image, one after the other."""
    rounds: int = 3
    """Times that each step is made: a sample's parts agree better with more of them (RePaint, Lugmayr et al. 2022)."""
    iterations: int = 3
    """Of GMRES, each with one backward pass; 0: project instead, without gradients (`Observed`)."""
    noise: float = NOISE
    """Standard deviation of the noise on what is known."""
    bit_depth: int | None = 8
    """Integers that samples consist of; None: any values."""
    defaults: ClassVar = {"sampler": "ancestral", "steps": 19}

    def __post_init__(self):
        self.size = self.degradation.shape[1:]
        if not self.iterations and not self.degradation.has_inverse:
            raise UserError("iterations: 0 projects, which a blur does not allow; give at least 1")

    def calls(self, steps: int) -> int:
        return (steps - 1) * self.rounds + 1

    def sampler(self, objective: Objective, name: str, steps: int, size: tuple[int, ...]) -> Any:
        _check(objective, steps)
        if self.rounds == 1:
            return objective.sampler(name, steps, size)
        return _solver(objective, name, objective.falling_times(steps, objective.start(size)), self.rounds)

    def model(self, model: Model, objective: Objective, indices: Sequence[int]) -> Observed:
        y, mask = self.degradation.split(self._of(indices))

        def mask_like(image: Tensor) -> Tensor | None:
            return None if mask is None else mask.to(image)

        return Observed(
            model,
            objective,
            lambda image: self.degradation.apply(image, mask_like(image)),
            y,
            noise=self.noise,
            iterations=self.iterations,
            invert=lambda values: self.degradation.pseudoinverse(values, mask_like(values)),
        )

    def finish(self, images: Tensor, indices: Sequence[int]) -> Tensor:
        if not self.degradation.has_inverse:
            return images
        return self.degradation.project(images, self._of(indices).to(images.device), self.bit_depth)

    def of_latents(self, encode: Callable[[Tensor], Tensor]) -> "Restore":
        """Return the inpainting of latents: those without a hidden pixel among theirs or their neighbors' are known.

        As in Avrahami et al. 2023, "Blended latent diffusion", but with the estimate of the hidden latents.
        """
        if not self.degradation.only_hides:
            raise UserError("degradation: has no counterpart in the latents of this run; use --mask or --extend")
        planes = self.degradation.planes(self.measurements)
        latents, hidden = encode(planes[:, :-1]), planes[:, -1:]
        factor = planes.shape[-1] // latents.shape[-1]
        mask = F.max_pool2d(hidden, 3 * factor, stride=factor, padding=factor).to(latents)
        channels, height, width = latents.shape[1:]
        inpainting = Degradation([MASKED], (channels, height, width))
        measurements = torch.cat([latents * (1 - mask), mask], dim=1)
        noise = max(self.noise, ENCODING_NOISE)
        return replace(self, degradation=inpainting, measurements=measurements, noise=noise)

    @property
    def inputs(self) -> Tensor:
        """What is known of the images, (M, C, h, w) in [-1, 1], 0 where a mask hides."""
        return self.degradation.split(self.measurements)[0]

    def _of(self, indices: Sequence[int]) -> Tensor:
        return self.measurements[[index // self.samples for index in indices]]


@dataclass
class Vary(Edit):
    """Noise of the quantile `strength` is added to images, and removed again: SDEdit (Meng et al. 2022, algorithm 1).

    A strength of 1 is a sample of the run, one near 0 the image. The network is called exactly `steps` times.
    """

    images: Tensor
    """(M, C, H, W) in [-1, 1]."""
    strength: float
    """In (0, 1]: the part of the noise axis u, the one of `guidance_interval`."""
    samples: int = 1
    """Samples of each image, one after the other."""

    def __post_init__(self):
        height, width = self.images.shape[2:]
        self.size = height, width

    @property
    def inputs(self) -> Tensor:
        """The images, (M, C, H, W) in [-1, 1]."""
        return self.images

    def sampler(self, objective: Objective, name: str, steps: int, size: tuple[int, ...]) -> Solver:
        _check(objective, steps)
        if self.strength == 1:
            return _solver(objective, name, objective.falling_times(steps, objective.start(size)))
        alpha, sigma = objective.levels(objective.time_at(torch.tensor([self.strength], dtype=torch.float64)))
        noisiest = float((alpha / sigma).log())
        return _solver(objective, name, objective.falling_times(steps, noisiest))

    def start(self, noise: Tensor, sampler: Solver, indices: Sequence[int]) -> Tensor:
        if self.strength == 1:
            return noise
        alpha, sigma = sampler.levels[0]
        images = self.images[[index // self.samples for index in indices]].to(noise)
        return noise + alpha / sigma * images

    def of_latents(self, encode: Callable[[Tensor], Tensor]) -> "Vary":
        return replace(self, images=encode(self.images))


@dataclass
class Interpolate(Edit):
    """Samples from given noise, along the probability flow: the same noise always gives the same image."""

    noise: Tensor
    """(N, C, H, W), one for each sample, about standard normal."""
    factor: int = 1
    """Side of the pixels of a sample for each position of the noise, that of a run's latents."""
    defaults: ClassVar = {"steps": 50}

    def __post_init__(self):
        height, width = self.noise.shape[2:]
        self.size = self.factor * height, self.factor * width

    def sampler(self, objective: Objective, name: str, steps: int, size: tuple[int, ...]) -> Solver:
        _check(objective, steps)
        return Solver(objective, objective.falling_times(steps, objective.start(size)), DDIM, limit=None)

    def start(self, noise: Tensor, sampler: Solver, indices: Sequence[int]) -> Tensor:
        return self.noise[list(indices)].to(noise)


@torch.no_grad()
def invert(
    model: Model, solver: Solver, images: Tensor, progress: Callable = lambda steps: steps, **conditions: Tensor
) -> Tensor:
    """Return the noise, (B, C, H, W), from which a solver of one order and no noise makes these images.

    Each step x_s = (sigma_s / sigma_t) x_t + c x̂_0(x_t, t) of the solver is solved for x_t by fixed-point iterations
    (Pan et al. 2023), from clean to noisy. Taking x̂_0 at x_s instead, as is usual, loses the image in few steps.
    """
    process, x = solver.process, images
    levels = solver.levels
    for index in progress(range(len(solver.times) - 1, -1, -1)):
        t, (alpha, sigma) = solver.times[index].to(x.device), levels[index]
        next_alpha, next_sigma = levels[index + 1] if index + 1 < len(levels) else (1.0, 0.0)
        target, x = x, alpha / next_alpha * x
        for _ in range(FIXED_POINT_ITERATIONS):
            # The noise of x, n = (x - alpha x̂_0) / sigma, is that of the target: target = alpha' x̂_0 + sigma' n.
            clean = process.clean(model(x, t, **conditions).float()[:, : x.shape[1]], x, t)
            noise = (x - alpha * clean) / sigma
            x = alpha / next_alpha * (target - next_sigma * noise) + sigma * noise
    return x / solver.init_noise_sigma


def slerp(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """Return noise (N, C, H, W) between a and b, (C, H, W), along the arc: weights (N,) are 0 at a and 1 at b.

    Mixed linearly, noise would lose its spread, and images their contrast.
    """
    w = weights.reshape(-1, 1, 1, 1).to(a)
    cosine = (a * b).sum() / (a.norm() * b.norm())
    angle = cosine.clamp(-1, 1).acos()
    if angle.sin() < 1e-4:
        return torch.lerp(a[None], b[None], w)
    return (torch.sin((1 - w) * angle) * a + torch.sin(w * angle) * b) / angle.sin()
