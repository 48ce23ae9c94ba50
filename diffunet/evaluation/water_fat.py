"""Water and fat by least squares with a smooth field, without a network, and scores of maps.

    maps = separate(echoes, echo_times, field_strength)             # (6, *S), core.water_fat.MAPS

For given field and R2* the best water and fat are linear (variable projection, Hernando et al. 2008, Magn Reson Med
59:571). So each voxel has a cost over a grid of fields, whose few minima are candidates. Which one a voxel has is
decided for all together, by the smoothness of the field (Hernando et al. 2010, Magn Reson Med 63:79) through belief
propagation in sweeps along the axes (Tappen & Freeman 2003; Szeliski et al. 2008, IEEE TPAMI 30:1068) instead of graph
cuts. Last, field and R2* are refined by Gauss-Newton in each voxel.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..core.errors import UserError
from ..core.water_fat import HAMILTON, FatModel, fat_phasor, field_period, signal_of_maps
from .overlap import Array, as_array, check_shapes

R2STAR_GRID = (0.0, 40.0, 90.0, 160.0, 260.0, 400.0)
"""R2* in 1/s of the grid."""
POINTS = 20
"""Points of the grid of fields for each turn of the phase between the first echo and the last."""
CANDIDATES = 4
"""Minima of the cost, at most, that compete for a voxel."""
BLOCK = 16_384
"""Voxels whose costs are computed together."""
REFINEMENTS = 20
"""Steps of Gauss-Newton, at most."""


@dataclass(frozen=True)
class _Echoes:
    """Voxels with what their echoes have in common."""

    values: np.ndarray
    """(N, E) complex."""
    times: np.ndarray
    """(E,) seconds."""
    species: np.ndarray
    """(E, 2) complex: water and fat on resonance."""


def separate(
    echoes: Array,
    echo_times: Sequence[float],
    field_strength: float,
    fat_model: FatModel = HAMILTON,
    field_range: float | None = None,
    max_r2star: float | None = None,
    smoothness: float = 0.1,
    sweeps: int = 20,
) -> np.ndarray:
    """Return the maps `core.water_fat.MAPS` of complex echoes (E, *S), float64 (6, *S), in 1 to 3 dimensions.

    echo_times: seconds. field_strength: tesla. field_range: largest field in Hz of either sign; None: half the
    `field_period`, beyond which evenly spaced echoes repeat: the field is then one of many a period apart, with the
    phases of W and F that belong to it. max_r2star: in 1/s; None: 500 of four echoes or more, 200 of three, which have
    no more numbers than maps do. smoothness: factor of the squared difference of the phase between neighbors and two
    echoes, in units of the signal's power. sweeps: over all axes, at most. Raise UserError for fewer than three echoes,
    or times that do not fit.
    """
    signal = as_array(echoes)
    times = np.asarray(echo_times, np.float64)
    if len(signal) != len(times) or len(times) < 3:
        raise UserError(
            f"echo_times: three echoes or more, with a time each (got {len(signal)} echoes and {len(times)} times); "
            "add some"
        )
    size, even = signal.shape[1:], np.allclose(np.diff(times), np.diff(times)[0], rtol=0.02)
    power = (np.abs(signal) ** 2).mean()
    species = np.stack([np.ones(len(times)), fat_phasor(times.tolist(), field_strength, fat_model).numpy()], axis=1)
    voxels = _Echoes(np.moveaxis(signal, 0, -1).reshape(-1, len(times)).astype(np.complex128), times, species)
    period = field_period(times.tolist())
    reach = period / 2 if field_range is None else field_range
    circular = even and field_range is None
    number = max(math.ceil(2 * reach * (times[-1] - times[0]) * POINTS), 8)
    grid = np.linspace(-reach, reach, number, endpoint=False)
    limit = (500.0 if len(times) > 3 else 200.0) if max_r2star is None else max_r2star
    decays = np.array([r for r in R2STAR_GRID if r <= limit])

    found = [
        _candidates(voxels, slice(i, i + BLOCK), grid, decays, circular) for i in range(0, len(voxels.values), BLOCK)
    ]
    cost, field, decay = (np.concatenate(parts).reshape(*size, CANDIDATES) for parts in zip(*found, strict=True))
    strength = (np.abs(signal) ** 2).mean(0) / max(power, 1e-30)
    radians = 2 * np.pi * float(np.diff(times).min())
    turn = radians * period if circular else math.inf
    chosen = _smooth_choice(cost / max(power, 1e-30), radians * field, strength, smoothness, turn, sweeps)
    start, rate = (np.take_along_axis(part, chosen[..., None], -1).reshape(-1) for part in (field, decay))
    maps = _refine(voxels, start, rate, limit, step=2 * reach / number)
    return maps.reshape(6, *size)


def _candidates(
    voxels: _Echoes, block: slice, grid: np.ndarray, decays: np.ndarray, circular: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the least local minima of the cost over the fields, for n voxels: cost, field and R2*, (n, CANDIDATES).

    The cost is the power that no water and fat explain, divided by the number of echoes, infinite where there are fewer
    minima; the best R2* of the grid is taken at each field.
    """
    times, signal = voxels.times, voxels.values[block].astype(np.complex64)
    bases = [np.linalg.qr(np.exp(-decay * times)[:, None] * voxels.species)[0] for decay in decays]
    total = (np.abs(signal) ** 2).sum(1)
    cost, best = np.empty((len(grid), len(signal)), np.float32), np.empty((len(grid), len(signal)), np.int8)
    for place, field in enumerate(grid):
        turned = np.concatenate([np.exp(2j * np.pi * field * times)[:, None] * basis for basis in bases], axis=1)
        explained = np.abs(signal @ turned.conj().astype(np.complex64)).reshape(-1, len(decays), 2)
        explained = np.square(explained).sum(2)
        best[place] = explained.argmax(1)
        cost[place] = total - explained.max(1)
    if circular:
        before, after = np.roll(cost, 1, axis=0), np.roll(cost, -1, axis=0)
    else:
        edge = np.full_like(cost[:1], np.inf)
        before, after = np.concatenate([edge, cost[:-1]]), np.concatenate([cost[1:], edge])
    minima = np.where((cost < before) & (cost <= after), cost, np.inf)
    order = np.argpartition(minima, CANDIDATES, axis=0)[:CANDIDATES]
    # The vertex of the parabola through a minimum and its neighbors.
    here, left, right = (np.take_along_axis(values, order, 0) for values in (minima, before, after))
    with np.errstate(invalid="ignore", divide="ignore"):
        shift = np.nan_to_num((left - right) / (2 * (left + right - 2 * here)), posinf=0, neginf=0).clip(-0.5, 0.5)
        lowered = np.where(np.isfinite(here), np.maximum(here - (left - right) * shift / 4, 0), np.inf)
    field = grid[order] + shift * (grid[1] - grid[0])
    decay = decays[np.take_along_axis(best, order, 0)]
    lowered[0] = np.where(np.isinf(lowered).all(0), 0, lowered[0])  # a voxel without any signal
    return (lowered / len(times)).T, field.T, decay.T


# ── one field for all voxels ──────────────────────────────────────────────────────────────────────


def _smooth_choice(
    cost: np.ndarray, radians: np.ndarray, strength: np.ndarray, smoothness: float, turn: float, sweeps: int
) -> np.ndarray:
    """Return the candidate of each voxel, (*S), with the least sum of costs and squared differences of neighbors.

    cost, radians: (*S, K). An edge has the weight smoothness times the lesser strength (*S) of its two voxels;
    differences are modulo `turn`. Beliefs pass along the lines of one axis at once, so each sweep is exact for a line.
    """
    cost, axes = cost.astype(np.float32), range(strength.ndim)
    pair = [_pairwise(np.moveaxis(radians, a, 0), np.moveaxis(strength, a, 0) * smoothness, turn) for a in axes]
    messages = [np.zeros((2, *np.moveaxis(cost, a, 0).shape), np.float32) for a in axes]
    belief = lambda: cost + sum(np.moveaxis(m.sum(0), 0, a) for a, m in zip(axes, messages, strict=True))  # noqa: E731
    best, least = cost.argmin(-1), math.inf
    for _ in range(sweeps):
        for axis in axes:
            message = messages[axis]
            base = np.moveaxis(belief(), axis, 0) - message.sum(0)
            for place in range(1, len(base)):
                towards = base[place - 1] + message[0, place - 1]
                message[0, place] = _passed(towards, pair[axis][place - 1])
            for place in range(len(base) - 2, -1, -1):
                towards = base[place + 1] + message[1, place + 1]
                message[1, place] = _passed(towards, pair[axis][place].swapaxes(-1, -2))
        chosen = belief().argmin(-1)
        energy = _energy(chosen, cost, pair)
        if energy >= least * (1 - 1e-6):
            break
        best, least = chosen, energy
    return best


def _pairwise(radians: np.ndarray, strength: np.ndarray, turn: float) -> np.ndarray:
    """Return the cost of each two candidates of neighbors along the first axis, (n - 1, ..., K, K)."""
    apart = radians[1:, ..., None, :] - radians[:-1, ..., None]
    if math.isfinite(turn):
        apart -= turn * np.round(apart / turn)
    return (np.minimum(strength[1:], strength[:-1])[..., None, None] * apart**2).astype(np.float32)


def _passed(belief: np.ndarray, pair: np.ndarray) -> np.ndarray:
    """Return the message (..., K) of neighbors with beliefs (..., K), its least value 0."""
    message = (belief[..., None] + pair).min(-2)
    return message - message.min(-1, keepdims=True)


def _energy(chosen: np.ndarray, cost: np.ndarray, pair: list[np.ndarray]) -> float:
    """Return the sum of the costs of a choice and its edges."""
    total = float(np.take_along_axis(cost, chosen[..., None], -1).sum(dtype=np.float64))
    for axis, costs in enumerate(pair):
        labels = np.moveaxis(chosen, axis, 0)
        rows = np.take_along_axis(costs, labels[:-1, ..., None, None], -2)
        total += float(np.take_along_axis(rows, labels[1:, ..., None, None], -1).sum(dtype=np.float64))
    return total


# ── one voxel ─────────────────────────────────────────────────────────────────────────────────────


def _fit(voxels: _Echoes, field: np.ndarray, decay: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return water and fat by least squares (N, 2), the residual (N, E), and the direction of field and R2*, (N, E).

    The direction is t times the modelled signal, without its part that water and fat explain.
    """
    turn = np.exp((2j * np.pi * field - decay)[:, None] * voxels.times)
    columns = turn[..., None] * voxels.species  # (N, E, 2)
    a, b = columns[..., 0], columns[..., 1]
    aa, bb, ab = (np.abs(a) ** 2).sum(1), (np.abs(b) ** 2).sum(1), (a.conj() * b).sum(1)
    determinant = aa * bb - np.abs(ab) ** 2

    def solve(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        left, right = (a.conj() * values).sum(1), (b.conj() * values).sum(1)
        parts = np.stack([bb * left - ab * right, aa * right - ab.conj() * left], axis=1) / determinant[:, None]
        return parts, values - parts[:, :1] * a - parts[:, 1:] * b

    parts, residual = solve(voxels.values)
    _, direction = solve(voxels.times * (voxels.values - residual))
    return parts, residual, direction


def _refine(voxels: _Echoes, field: np.ndarray, decay: np.ndarray, max_decay: float, step: float) -> np.ndarray:
    """Return the maps (6, N) at the nearest minimum of the residual, from fields and R2* (N,).

    Gauss-Newton with the projected direction (Kaufman 1975): field and R2* are the imaginary and the real part of one
    complex number (Yu et al. 2007, J Magn Reson Imaging 26:1153). Steps are at most `step` in Hz, and halved where they
    do not help.
    """
    damping = np.ones_like(field)
    parts, residual, direction = _fit(voxels, field, decay)
    power = (np.abs(residual) ** 2).sum(1)
    for _ in range(REFINEMENTS):
        norm = (np.abs(direction) ** 2).sum(1)
        change = (direction.conj() * residual).sum(1) / np.where(norm > 0, norm, 1) * damping
        new_field = field + np.clip(change.imag / (2 * np.pi), -step, step)
        new_decay = np.clip(decay - change.real, 0, max_decay)
        fitted = _fit(voxels, new_field, new_decay)
        new_power = (np.abs(fitted[1]) ** 2).sum(1)
        better = new_power < power
        if not better.any():
            break
        field, decay, power = (
            np.where(better, *two) for two in ((new_field, field), (new_decay, decay), (new_power, power))
        )
        parts, residual, direction = (
            np.where(better[:, None], *two) for two in zip(fitted, (parts, residual, direction), strict=True)
        )
        damping = np.where(better, np.minimum(2 * damping, 1), damping / 2)
    real, imag = np.real(parts), np.imag(parts)
    return np.stack([real[:, 0], imag[:, 0], real[:, 1], imag[:, 1], field, decay])


# ── scores ────────────────────────────────────────────────────────────────────────────────────────


def fat_fraction_error(predicted: Array, truth: Array, known: Array | None = None) -> float:
    """Return the mean absolute error of the fat fraction where it is known, in [0, 1]; NaN where it is nowhere.

    predicted, truth: (*S), truth NaN where unknown; known: (*S) bool, in addition.
    """
    found, expected = _known(predicted, truth, known)
    return float(np.abs(found - expected).mean()) if expected.size else float("nan")


def swapped_share(predicted: Array, truth: Array, known: Array | None = None, least: float = 0.3) -> float:
    """Return the share of voxels in which water and fat changed places, in [0, 1]; NaN without known ones.

    A voxel counts if its fraction is nearer to one minus the true one than to the true one, and off by more than
    `least`, so that errors about one half are no swaps. Parameters as in `fat_fraction_error`.
    """
    found, expected = _known(predicted, truth, known)
    error = np.abs(found - expected)
    swapped = (np.abs(found - (1 - expected)) < error) & (error > least)
    return float(swapped.mean()) if expected.size else float("nan")


def _known(predicted: Array, truth: Array, known: Array | None) -> tuple[np.ndarray, np.ndarray]:
    """Return both fractions at the known voxels, (P,)."""
    found, expected = as_array(predicted, np.float64), as_array(truth, np.float64)
    check_shapes(found, expected)
    keep = ~np.isnan(expected) & (True if known is None else as_array(known, bool))
    return found[keep], expected[keep]


def signal_residual(
    maps: Array,
    echoes: Array,
    echo_times: Sequence[float],
    field_strength: float,
    known: Array | None = None,
    fat_model: FatModel = HAMILTON,
) -> float:
    """Return sum |S - S(maps)|^2 / sum |S|^2 over known voxels, the share of the power that maps leave; NaN without it.

    maps: `core.water_fat.MAPS`, (6, *S); echoes: complex (E, *S); known: (*S) bool.
    """
    signal = as_array(echoes)
    modelled = signal_of_maps(torch.as_tensor(as_array(maps, np.float64))[None], echo_times, field_strength, fat_model)
    modelled = modelled[0].numpy()
    check_shapes(modelled, signal)
    keep = np.isfinite(modelled).all(0) & (True if known is None else as_array(known, bool))
    power = float((np.abs(signal[:, keep]) ** 2).sum())
    return float((np.abs(signal - modelled)[:, keep] ** 2).sum() / power) if power else float("nan")
