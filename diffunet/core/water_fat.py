"""The signal of water and fat in gradient echoes of magnetic resonance.

    S(t) = (W + F sum_p a_p exp(2 pi i f_p t)) exp(2 pi i psi t) exp(-R2* t)

(Hernando et al. 2010, Magn Reson Med 63:79, equation 1, with several peaks of fat after Yu et al. 2008, Magn Reson Med
60:1122, and one R2* for both species). The sign is that of data whose phase grows with the field ("precession is
clockwise" in the ISMRM challenge of 2012); the others are conjugated first.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MAPS = ("water_real", "water_imag", "fat_real", "fat_imag", "field", "r2star")
"""The channels of maps: complex water W and fat F in the unit of the images, the field psi in Hz, R2* in 1/s."""
GAMMA = 42.577478518
"""Larmor frequency of protons in MHz per tesla (CODATA 2018)."""
DECAY = 50.0
"""R2* in 1/s below which `bounded` bends an output towards 0."""


class FatModel(NamedTuple):
    """The spectrum of fat."""

    shifts: tuple[float, ...]
    """Of the peaks from water, in ppm."""
    amplitudes: tuple[float, ...]
    """Of the peaks; only their ratios count."""


FatModelName = Literal["hamilton2011", "single"]
FAT_MODELS: dict[FatModelName, FatModel] = {
    "hamilton2011": FatModel((-3.80, -3.40, -2.60, -1.94, -0.39, 0.60), (0.087, 0.693, 0.128, 0.004, 0.039, 0.048)),
    "single": FatModel((-3.40,), (1.0,)),
}
"""hamilton2011: six peaks of the fat in human livers (Hamilton et al. 2011, NMR Biomed 24:784), as in the fat-water
toolbox of the ISMRM (Hernando). single: the methylene peak alone."""

HAMILTON = FAT_MODELS["hamilton2011"]
Times = Tensor | Sequence[float]
Strength = Tensor | float


def fat_phasor(echo_times: Times, field_strength: Strength, fat_model: FatModel = HAMILTON) -> Tensor:
    """Return sum_p a_p exp(2 pi i f_p t), the signal of a unit of fat that is on resonance, (E,) or (B, E) complex128.

    echo_times: seconds, (E,) or (B, E). field_strength: tesla, one or (B,). The a_p have the sum 1, and f_p is the
    shift in ppm times the Larmor frequency.
    """
    times = torch.as_tensor(echo_times, dtype=torch.float64)
    larmor = GAMMA * torch.as_tensor(field_strength, dtype=torch.float64, device=times.device)  # Hz per ppm
    amplitudes = times.new_tensor(fat_model.amplitudes)
    turns = larmor[..., None, None] * times[..., None] * times.new_tensor(fat_model.shifts)
    return (amplitudes / amplitudes.sum() * torch.exp(2j * math.pi * turns)).sum(-1)


def signal(
    water: Tensor,
    fat: Tensor,
    field: Tensor,
    r2star: Tensor,
    echo_times: Times,
    field_strength: Strength,
    fat_model: FatModel = HAMILTON,
) -> Tensor:
    """Return the echoes (B, E, *S), complex, of water and fat (B, *S), complex.

    field: (B, *S), Hz. r2star: (B, *S), 1/s. echo_times: seconds, (E,), or (B, E) of each example. field_strength:
    tesla, one or (B,).
    """
    phasor = fat_phasor(echo_times, field_strength, fat_model)
    shape = (-1, phasor.shape[-1], *[1] * (field.ndim - 1))  # one row, or one for each example
    phasor = phasor.reshape(shape).to(water.device, water.dtype)
    times = torch.as_tensor(echo_times, dtype=torch.float64).reshape(shape).to(field.device, field.dtype)
    turns = 2 * math.pi * field[:, None] * times
    decay = torch.exp(-r2star[:, None] * times)
    return (water[:, None] + fat[:, None] * phasor) * torch.polar(decay, turns)


def signal_of_maps(maps: Tensor, echo_times: Times, field_strength: Strength, fat_model: FatModel = HAMILTON) -> Tensor:
    """Return the echoes (B, E, *S), complex, of the maps MAPS, (B, 6, *S); times and strength as in `signal`."""
    water, fat = torch.complex(maps[:, 0], maps[:, 1]), torch.complex(maps[:, 2], maps[:, 3])
    return signal(water, fat, maps[:, 4], maps[:, 5], echo_times, field_strength, fat_model)


def fat_fraction(maps: Tensor) -> Tensor:
    """Return |F| / (|W| + |F|) of the maps (B, 6, *S), in [0, 1], (B, *S); 0 where both vanish.

    It is the signal fat fraction: that of protons if the flip angle is low enough for T1 not to matter.
    """
    water, fat = torch.hypot(maps[:, 0], maps[:, 1]), torch.hypot(maps[:, 2], maps[:, 3])
    total = water + fat
    return torch.where(total > 0, fat / torch.where(total > 0, total, 1), 0.0)


def field_period(echo_times: Times) -> float:
    """Return the shift of the field in Hz that turns the phase between the two nearest echoes once.

    Fields that differ by it give the same echoes if the times are evenly spaced, but for the phase of W and F. Of a
    single echo it is 1 / t.
    """
    times = torch.as_tensor(echo_times, dtype=torch.float64)
    spacing = times.diff() if times.shape[-1] > 1 else times
    return 1 / float(spacing.abs().min())


def bounded(outputs: Tensor, field_range: Strength) -> Tensor:
    """Return field and R2*, (B, 2, *S), of any x, y, r (B, 3, *S): the field within +-field_range in Hz, R2* > 0.

    psi = range / pi times the angle of (1 + x, y), and R2* = DECAY log(1 + exp(r / DECAY)), about r where it is large.
    The ends of the range are one place on a circle: if they are a `field_period` apart, they have the same echoes, and
    a field that passes them is smooth.
    """
    field = field_range / math.pi * torch.atan2(outputs[:, 1:2], 1 + outputs[:, :1])
    return torch.cat([field, DECAY * F.softplus(outputs[:, 2:3] / DECAY)], dim=1)


def species(echoes: Tensor, field: Tensor, r2star: Tensor, times: Tensor, phasor: Tensor) -> tuple[Tensor, Tensor]:
    """Return the complex water and fat (B, *S) that fit echoes (B, E, *S) best, at a given field and R2*, (B, *S).

    times: seconds, (E,). phasor: `fat_phasor` of these, (E,). The solution of two normal equations for each place.
    """
    shape = (1, -1, *[1] * (field.ndim - 1))
    times, phasor = times.reshape(shape).to(field), phasor.reshape(shape).to(echoes)
    decay = torch.exp(-r2star[:, None] * times)
    # The turn by the field is taken out of the echoes; what remains are columns decay and decay * phasor.
    straight = echoes * torch.polar(decay, -2 * math.pi * field[:, None] * times)
    power = decay.square()
    aa, bb, ab = power.sum(1), (power * phasor.abs().square()).sum(1), (power * phasor).sum(1)
    left, right = straight.sum(1), (straight * phasor.conj()).sum(1)
    determinant = (aa * bb - ab.abs().square()).clamp(min=torch.finfo(field.dtype).tiny)
    return (bb * left - ab * right) / determinant, (aa * right - ab.conj() * left) / determinant
