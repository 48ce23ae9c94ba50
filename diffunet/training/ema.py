"""Averages of the weights over the training, of a length chosen before it or after.

The moving average of `train.ema_decay` has its length from the start. Beside it two averages with power
functions of the time are kept, and snapshots of them; from those follows, by least squares, the average of
any length at the end (Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion
models", section 3.1). A length is the spread of an average's profile as a share of the training.
"""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.storage import load_tensors, save_tensors, atomic_write

LENGTHS = (0.05, 0.10)
"""The lengths that are kept while training."""
SHORTEST, LONGEST = 0.02, 0.25
"""The lengths that their snapshots can make."""


class EMA:
    """A copy of a model that follows its weights; its buffers are the model's."""

    def __init__(self, model: nn.Module, share_at: Callable[[int], float]):
        """At step 0, 1, ... the average goes by `share_at(step)` of the way to the model."""
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.share_at = share_at

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        averaged, current = list(self.model.parameters()), list(model.parameters())
        torch._foreach_lerp_(averaged, current, self.share_at(step))
        for kept, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            kept.copy_(buffer)


def std_to_gamma(length: float) -> float:
    """The gamma of the profile t^gamma whose spread is `length`.

    Of such a profile on [0, 1] the variance is (gamma + 1) / ((gamma + 2)² (gamma + 3)) (EDM2, appendix C).
    """
    inverse = length**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def power_ema_rate(length: float) -> Callable[[int], float]:
    """How far the average of this length goes towards the weights at step 0, 1, ... (EDM2, appendix C)."""
    gamma = std_to_gamma(length)
    return lambda step: 1 - (1 - 1 / (step + 1)) ** (gamma + 1)


def posthoc_coefficients(steps: list[int], last: int, length: float) -> dict[tuple[int, float], float]:
    """How much to take of each snapshot, `(step, its length)`, for the average of `length` over `last` steps.

    The least squares between the profiles, with shares that add up to 1.
    """
    parts = [(step, kept) for step in steps for kept in LENGTHS]
    gamma = np.array([std_to_gamma(kept) for _, kept in parts])
    end = np.array([step for step, _ in parts]) / last
    among = _overlap(gamma[:, None], end[:, None], gamma, end)
    wanted = _overlap(gamma, end, std_to_gamma(length), 1.0)
    # Lagrange's condition: among @ shares + multiplier = wanted, sum of shares = 1.
    border = np.ones((len(parts), 1))
    system = np.block([[among, border], [border.T, np.zeros((1, 1))]])
    shares = np.linalg.lstsq(system, np.append(wanted, 1.0), rcond=None)[0][:-1]
    return dict(zip(parts, shares.tolist(), strict=True))


def _overlap(gamma_a, end_a, gamma_b, end_b):
    """The integral of the product of two profiles (gamma + 1) t^gamma / end^(gamma + 1) on [0, end]."""
    both = gamma_a + gamma_b + 1
    scale = (gamma_a + 1) * (gamma_b + 1) / both
    common = np.minimum(end_a, end_b)
    return scale * (common / end_a) ** (gamma_a + 1) * (common / end_b) ** (gamma_b + 1) / common


# ── snapshots of a run ────────────────────────────────────────────────────────────────────────────


def save_snapshot(folder: Path, step: int, averages: dict[float, EMA]) -> None:
    """Writes the averages at this step, in half precision, to RUN/averages."""
    tensors = {
        f"{length}:{name}": tensor.half() if tensor.is_floating_point() else tensor
        for length, average in averages.items()
        for name, tensor in average.model.state_dict().items()
    }
    with atomic_write(folder / "averages" / f"step_{step:08d}.safetensors") as file:
        save_tensors(file, tensors)


def list_snapshots(folder: Path) -> dict[int, Path]:
    """The snapshots of a run folder by their step, oldest first."""
    return {int(file.stem.removeprefix("step_")): file for file in sorted((folder / "averages").glob("step_*"))}


def posthoc_ema(folder: Path, length: float, until: float = 1.0) -> dict[str, Tensor]:
    """The weights of a run averaged with this length, as of this share of the training so far.

    UserError if it has no snapshots to make it of.
    """
    if not SHORTEST <= length <= LONGEST:
        raise UserError(f"an average's length is from {SHORTEST} to {LONGEST} of the training, not {length}")
    snapshots = list_snapshots(folder)
    if not snapshots:
        raise UserError(f"{folder}/averages: no snapshots; train with --train.snapshots 16")
    last = _nearest(snapshots, until)
    snapshots = {step: file for step, file in snapshots.items() if step <= last}
    mixed: dict[str, Tensor] = {}
    for (step, kept), share in posthoc_coefficients(list(snapshots), last, length).items():
        for name, tensor in _of_length(snapshots[step], kept).items():
            if tensor.is_floating_point():
                mixed[name] = mixed.get(name, 0) + share * tensor.double()
            else:
                mixed[name] = tensor
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in mixed.items()}


def snapshot_near(folder: Path, share: float) -> dict[str, Tensor] | None:
    """The shorter average as it was nearest to this share of the training so far; None before the first snapshot."""
    snapshots = list_snapshots(folder)
    if not snapshots:
        return None
    found = _of_length(snapshots[_nearest(snapshots, share)], min(LENGTHS))
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in found.items()}


def _nearest(snapshots: dict[int, Path], share: float) -> int:
    return min(snapshots, key=lambda step: abs(step - share * max(snapshots)))


def _of_length(snapshot: Path, length: float) -> dict[str, Tensor]:
    mark = f"{length}:"
    return {
        name.removeprefix(mark): tensor for name, tensor in load_tensors(snapshot).items() if name.startswith(mark)
    }
