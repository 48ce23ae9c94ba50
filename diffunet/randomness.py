"""Everything random in training, as pure functions of (seed, step, position).

Nothing here has a state to save: a resumed run draws what the uninterrupted one would have drawn,
and the draws for one position of a batch do not depend on how many processes share the batch.
"""

import functools
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


def seed_for(*key: int) -> int:
    """A well-mixed 64-bit seed for a tuple of non-negative integers, by numpy's `SeedSequence`."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


@dataclass(frozen=True)
class Randomness:
    """Random numbers for some positions of one batch.

    Each draw is made for the whole batch and cut to `positions`. Without arguments it is torch's
    global randomness for a batch that nobody shares.
    """

    generator: torch.Generator | None = None
    positions: slice = field(default_factory=lambda: slice(None))
    batch_size: int | None = None
    """Size of the whole batch; None: the rows asked for are the whole batch."""

    @classmethod
    def at(
        cls, seed: int, step: int, positions: slice, batch_size: int, device: torch.device
    ) -> "Randomness":
        """The randomness of training step `step`, as seen by the owner of `positions`."""
        generator = torch.Generator(device).manual_seed(seed_for(seed, step))
        return cls(generator, positions, batch_size)

    def normal_like(self, x: Tensor) -> Tensor:
        """Standard normal fp32 numbers of the shape of x, (B, ...)."""
        shape = (self.batch_size or len(x), *x.shape[1:])
        return torch.randn(shape, generator=self.generator, device=x.device)[self.positions]

    def uniform_like(self, x: Tensor) -> Tensor:
        """One number in [0, 1) for each row of x, (B,)."""
        size = self.batch_size or len(x)
        return torch.rand(size, generator=self.generator, device=x.device)[self.positions]


@dataclass(frozen=True)
class Order:
    """Which example stands where: epochs of `length` examples, each in a fresh order, cut into batches.

    A batch may span two epochs, so every example is seen exactly once an epoch whatever the sizes.
    """

    length: int
    batch_size: int
    seed: int

    def batch(self, step: int) -> Tensor:
        """Indices of the examples of batch `step`, (batch_size,) int64."""
        place = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = place // self.length
        shuffled = [_permutation(self.length, self.seed, int(e)) for e in epochs.unique()]
        return torch.stack(shuffled)[epochs - epochs[0], place % self.length]


@functools.lru_cache(maxsize=4)
def _permutation(length: int, seed: int, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed_for(seed, epoch, 1))
    return torch.randperm(length, generator=generator)
