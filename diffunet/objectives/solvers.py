"""Solvers of the reverse process for any objective: DPM-Solver++ 2M, its stochastic form, and ancestral sampling.

They need nothing of an objective but its `levels` and its estimate `clean`, and they step between times that the
network was trained at. A solver has the interface of diffusers' schedulers.
"""

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class NoiseProcess(Protocol):
    """The part of an objective that a solver needs, for x_t = alpha x_0 + sigma noise."""

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma at the times t."""
        ...

    def clean(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the estimate of x_0 that a prediction of the network implies."""
        ...


class Method(NamedTuple):
    """A way to step from one noise level to the next."""

    order: int
    """1: with the newest estimate of x_0 alone; 2: extrapolated from the newest two."""
    eta: float
    """Share of the noise that is drawn anew: 0 is the probability flow, 1 the reverse diffusion."""


METHODS: dict[str, Method] = {
    "dpm++": Method(order=2, eta=0.0),
    "sde-dpm++": Method(order=2, eta=1.0),
    "ancestral": Method(order=1, eta=1.0),
}
"""DPM-Solver++ 2M and SDE-DPM-Solver++ 2M (Lu et al. 2022), and the posterior of DDPM (Ho et al. 2020, equation 7)."""


@dataclass
class Solver:
    """A method along falling times, with `rounds` of each step: after all but the last, noise is added again.

    Rounds are the resampling of RePaint (Lugmayr et al. 2022): they let constraints on x_0 reach all of the image.
    """

    process: NoiseProcess
    times: Tensor
    """(N,), t of the network calls, from noisy to clean."""
    method: Method
    rounds: int = 1
    limit: float | None = 1.0
    """Estimates of x_0 are clipped to [-limit, limit]; None: not clipped."""

    def __post_init__(self):
        self.timesteps = torch.cat([self.times[:-1].repeat_interleave(self.rounds), self.times[-1:]])
        alpha, sigma = self.process.levels(self.times)
        self.levels = list(zip(alpha.double().tolist(), sigma.double().tolist(), strict=True))
        """(alpha, sigma) at each of the times."""
        self._log_snr = (alpha.double() / sigma.double()).clamp(min=1e-9).log().tolist()  # 0: no signal at all
        self.init_noise_sigma = self.levels[0][1]
        self._calls = 0
        self._previous: Tensor | None = None

    def scale_model_input(self, x: Tensor, t: Tensor) -> Tensor:
        """Return x: it already has the scale that the network sees."""
        return x

    def step(
        self,
        prediction: Tensor,
        t: Tensor,
        x: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> Any:
        """Return x at the next level as `prev_sample`, (B, C, *S), after the network's prediction for x at t."""
        level, again = divmod(self._calls, self.rounds)
        self._calls += 1
        clean = self.process.clean(prediction, x, t)
        if self.limit is not None:
            clean = clean.clamp(-self.limit, self.limit)
        if level == len(self.times) - 1:
            return SimpleNamespace(prev_sample=clean)
        x = self._reverse(x, clean, level, generator)
        if again < self.rounds - 1:
            x = self._add_noise_again(x, level, generator)
        else:
            self._previous = clean
        return SimpleNamespace(prev_sample=x)

    def _reverse(self, x: Tensor, clean: Tensor, level: int, generator: Any) -> Tensor:
        """Return x at the next level: the exact solution for an x_0 that is linear in log-SNR (Lu et al., equation 14).

        With h the step in log-SNR: x' = (sigma' / sigma) e^(-eta h) x + alpha' (1 - e^(-(1 + eta) h)) x_0
        + sigma' sqrt(1 - e^(-2 eta h)) noise.
        """
        order, eta = self.method
        h = self._log_snr[level + 1] - self._log_snr[level]
        if order == 2 and self._previous is not None:
            clean = clean + 0.5 * h / (self._log_snr[level] - self._log_snr[level - 1]) * (clean - self._previous)
        decay, kept = math.exp(-eta * h), -math.expm1(-(1 + eta) * h)
        (_, former), (alpha, sigma) = self.levels[level : level + 2]
        x = sigma / former * decay * x + alpha * kept * clean
        return x + sigma * (-math.expm1(-2 * eta * h)) ** 0.5 * _noise_like(x, generator) if eta else x

    def _add_noise_again(self, x: Tensor, level: int, generator: Any) -> Tensor:
        """Return x moved from the next level back to this one by the forward process."""
        (alpha, sigma), (next_alpha, next_sigma) = self.levels[level : level + 2]
        ratio = alpha / next_alpha
        added = (sigma**2 - (ratio * next_sigma) ** 2) ** 0.5
        return ratio * x + added * _noise_like(x, generator)


def _noise_like(x: Tensor, generator: torch.Generator | list[torch.Generator] | None) -> Tensor:
    """Return standard normal noise (B, C, *S), drawn on the CPU; from one generator per image if there is a list."""
    if isinstance(generator, list):
        return torch.stack([torch.randn(x.shape[1:], generator=each) for each in generator]).to(x)
    return torch.randn(x.shape, generator=generator).to(x)
