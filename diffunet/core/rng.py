"""Everything random in training, as pure functions of (seed, step, position).

There is no state to save: a resumed run draws the same numbers as an uninterrupted one, and the numbers for one
position of a batch do not depend on how many processes share the batch.
"""

import functools
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


def seed_for(*key: int) -> int:
    """Return a well-mixed 64-bit seed for a tuple of non-negative integers, by numpy's `SeedSequence`."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


def fixed_subset(number: int, limit: int, seed: int = 0) -> Tensor:
    """Return at most `limit` of the indices 0 to number - 1 in random order, the same ones every time, int64."""
    return torch.randperm(number, generator=torch.Generator().manual_seed(seed))[:limit]


@dataclass(frozen=True)
class BatchRNG:
    """Random numbers for some positions of one batch.

    Numbers are drawn for the whole batch and cut to `positions`. Without arguments this is torch's global generator,
    for a batch that is not shared between processes.
    """

    generator: torch.Generator | None = None
    positions: slice = field(default_factory=lambda: slice(None))
    batch_size: int | None = None
    """Size of the whole batch; None: the rows at hand are the whole batch."""

    @classmethod
    def at(cls, seed: int, step: int, positions: slice, batch_size: int, device: torch.device) -> "BatchRNG":
        """Return the random numbers of training step `step` for the process that has `positions`."""
        return cls(torch.Generator(device).manual_seed(seed_for(seed, step)), positions, batch_size)

    def normal_like(self, x: Tensor) -> Tensor:
        """Return standard normal fp32 numbers in the shape of x, (B, ...)."""
        shape = (self.batch_size or len(x), *x.shape[1:])
        return torch.randn(shape, generator=self.generator, device=x.device)[self.positions]

    def uniform(self) -> float:
        """Return one number in [0, 1) for the whole batch."""
        device = self.generator.device if self.generator else None
        return float(torch.rand((), generator=self.generator, device=device))

    def uniform_like(self, x: Tensor) -> Tensor:
        """Return one number in [0, 1) for each row of x, (B,)."""
        size = self.batch_size or len(x)
        return torch.rand(size, generator=self.generator, device=x.device)[self.positions]


@dataclass(frozen=True)
class EpochShuffle:
    """The order of the data: epochs of `length` examples, each in a fresh order, cut into batches.

    A batch may span two epochs, so every example is seen exactly once an epoch, whatever the sizes.
    """

    length: int
    batch_size: int
    seed: int

    def batch(self, step: int) -> Tensor:
        """Return the indices of the examples in batch `step`, (batch_size,) int64."""
        position = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = position // self.length
        parts = [(int(epoch), position[epochs == epoch] % self.length) for epoch in epochs.unique()]
        return torch.cat([_permutation(self.length, self.seed, epoch)[places] for epoch, places in parts])


@functools.lru_cache(maxsize=4)
def _permutation(length: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed_for(seed, epoch, 1)))
