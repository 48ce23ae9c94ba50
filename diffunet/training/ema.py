"""Exponential moving averages (EMA) of the weights, of a length chosen before or after the training.

The EMA of `train.ema_decay` has its length from the start. Beside it two averages with power functions of the time are
kept, with snapshots; from those an average of any length is reconstructed afterwards by least squares (Karras et al.
2024, "Analyzing and improving the training dynamics of diffusion models", section 3.1). The length `ema_std` is the
standard deviation of an average's profile relative to the length of the training (sigma_rel there).
"""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.storage import atomic_write, load_tensors, save_tensors

STDS = (0.05, 0.10)
"""The lengths that are kept during training."""
MIN_STD, MAX_STD = 0.02, 0.25
"""The lengths that can be reconstructed from their snapshots."""


def copy_of(model: nn.Module) -> nn.Module:
    """Return a copy for evaluation. Buffers outside the state dict are constants, which both models share."""
    return copy.deepcopy(model, constants_of(model)).requires_grad_(False).eval()


def constants_of(model: nn.Module) -> dict[int, Tensor]:
    """Return the buffers outside the state dict by their id, for `copy.deepcopy` to share them."""
    saved = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    return {id(buffer): buffer for buffer in model.buffers() if id(buffer) not in saved}


class EMA:
    """A copy of a model that follows its weights; its buffers are the model's."""

    def __init__(
        self,
        model: nn.Module,
        rate_at: Callable[[int], float],
        copy_of: Callable[[nn.Module], nn.Module] = copy_of,
    ):
        """At step 0, 1, ... the average moves by `rate_at(step)` of the way to the model."""
        self.model = copy_of(model)
        self.rate_at = rate_at
        self._averaged, self._followed = list(self.model.parameters()), list(model.parameters())
        self._buffers = list(zip(self.model.buffers(), model.buffers(), strict=True))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights after step 0, 1, ..."""
        torch._foreach_lerp_(self._averaged, self._followed, self.rate_at(step))
        for kept, buffer in self._buffers:
            kept.copy_(buffer)


class LeastLoss(nn.Module):
    """A copy of the EMA weights at the least validation loss so far; its state dict is part of the checkpoints."""

    loss: Tensor
    step: Tensor

    def __init__(self, ema: nn.Module):
        super().__init__()
        self.model = copy_of(ema)
        self.register_buffer("loss", torch.tensor(torch.inf, dtype=torch.float64))
        self.register_buffer("step", torch.tensor(0))

    def update(self, ema: nn.Module, step: int, loss: float) -> None:
        """Keep the weights of this step if their loss is less than any before."""
        if loss < self.loss:
            self.model.load_state_dict(ema.state_dict())
            self.loss.fill_(loss)
            self.step.fill_(step)


def std_to_gamma(std: float) -> float:
    """Return the gamma of the profile t^gamma with this standard deviation.

    On [0, 1] its variance is (gamma + 1) / ((gamma + 2)² (gamma + 3)) (EDM2, appendix C).
    """
    inverse = std**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def power_ema_rate(std: float) -> Callable[[int], float]:
    """Return the rate of a power-function EMA of this length at step 0, 1, ... (EDM2, appendix C)."""
    gamma = std_to_gamma(std)
    return lambda step: 1 - (1 - 1 / (step + 1)) ** (gamma + 1)


def posthoc_coefficients(steps: list[int], last: int, std: float) -> dict[tuple[int, float], float]:
    """Return the coefficient of each snapshot, `(step, its length)`, for an average of length `std` over `last` steps.

    This is the least-squares fit of the profiles with coefficients that sum to 1 (EDM2, algorithm 3).
    """
    parts = [(step, kept) for step in steps for kept in STDS]
    gamma = np.array([std_to_gamma(kept) for _, kept in parts])
    end = np.array([step for step, _ in parts]) / last
    among = _profile_dot_product(gamma[:, None], end[:, None], gamma, end)
    target = _profile_dot_product(gamma, end, std_to_gamma(std), 1.0)
    # Lagrange's condition: among @ coefficients + multiplier = target, sum of coefficients = 1.
    border = np.ones((len(parts), 1))
    system = np.block([[among, border], [border.T, np.zeros((1, 1))]])
    coefficients = np.linalg.lstsq(system, np.append(target, 1.0), rcond=None)[0][:-1]
    return dict(zip(parts, coefficients.tolist(), strict=True))


def _profile_dot_product(gamma_a, end_a, gamma_b, end_b):
    """Return the integral of the product of two profiles (gamma + 1) t^gamma / end^(gamma + 1) on [0, end]."""
    both = gamma_a + gamma_b + 1
    scale = (gamma_a + 1) * (gamma_b + 1) / both
    common = np.minimum(end_a, end_b)
    return scale * (common / end_a) ** (gamma_a + 1) * (common / end_b) ** (gamma_b + 1) / common


# ── snapshots of a run ────────────────────────────────────────────────────────────────────────────


def save_snapshot(folder: Path, step: int, averages: Mapping[float, Mapping[str, Tensor]]) -> None:
    """Write the state dicts of the averages at this step, in half precision, to RUN/ema_snapshots."""
    tensors = {
        f"{std}:{name}": tensor.half() if tensor.is_floating_point() else tensor
        for std, average in averages.items()
        for name, tensor in average.items()
    }
    with atomic_write(folder / "ema_snapshots" / f"step_{step:08d}.safetensors") as file:
        save_tensors(file, tensors)


def list_snapshots(folder: Path) -> dict[int, Path]:
    """Return the snapshots of a run folder by step, oldest first. Format 1 has them in RUN/averages."""
    found = sorted((folder / "ema_snapshots").glob("step_*")) or sorted((folder / "averages").glob("step_*"))
    return {int(file.stem.removeprefix("step_")): file for file in found}


def posthoc_ema(folder: Path, std: float, until: float = 1.0) -> dict[str, Tensor]:
    """Return the weights of a run averaged with length `std`, as of the share `until` of the training so far.

    Raise UserError if the run has no snapshots, or the length is out of range.
    """
    if not MIN_STD <= std <= MAX_STD:
        raise UserError(f"ema length: {std} is not between {MIN_STD} and {MAX_STD} of the training")
    snapshots = list_snapshots(folder)
    if not snapshots:
        raise UserError(f"{folder}/ema_snapshots: no snapshots; train with --train.snapshots 16")
    last = _nearest(snapshots, until)
    snapshots = {step: file for step, file in snapshots.items() if step <= last}
    mixed: dict[str, Tensor] = {}
    for (step, kept), coefficient in posthoc_coefficients(list(snapshots), last, std).items():
        for name, tensor in _of_length(snapshots[step], kept).items():
            if tensor.is_floating_point():
                mixed[name] = mixed.get(name, 0) + coefficient * tensor.double()
            else:
                mixed[name] = tensor
    return _in_fp32(mixed)


def snapshot_near(folder: Path, share: float) -> dict[str, Tensor] | None:
    """Return the shorter average closest to this share of the training so far; None before the first snapshot."""
    snapshots = list_snapshots(folder)
    return _in_fp32(_of_length(snapshots[_nearest(snapshots, share)], min(STDS))) if snapshots else None


def _nearest(snapshots: dict[int, Path], share: float) -> int:
    return min(snapshots, key=lambda step: abs(step - share * max(snapshots)))


def _of_length(snapshot: Path, std: float) -> dict[str, Tensor]:
    tensors, prefix = load_tensors(snapshot), f"{std}:"
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _in_fp32(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
