"""Water and fat without targets: the network's maps have to reproduce the echoes that it was given."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field, Strict, field_validator
from torch import Tensor

from ..core.complex_channels import to_complex
from ..core.errors import UserError
from ..core.rng import BatchRNG
from ..core.water_fat import FAT_MODELS, FatModelName, field_period, signal_of_maps
from .supervised import Supervised, SupervisedConfig

Seconds = Annotated[float, Field(gt=0, lt=1)]


class SignalConfig(SupervisedConfig):
    """Water, fat, field and R2* of gradient echoes, by the signal equation alone (Jafari et al. 2021)."""

    terms = "residual", "smoothness"

    type: Literal["signal"] = "signal"
    echo_times: Annotated[tuple[Seconds, ...], Strict(False)] | None = None
    """Echo times in seconds, rising; null: those of each case."""
    field_strength: float | None = Field(None, gt=0, le=30)
    """Field strength in tesla; null: that of each case."""
    fat_model: FatModelName = "hamilton2011"
    """Spectrum of fat: the six peaks of Hamilton et al. 2011, or a single one."""
    field_range: float | None = Field(None, gt=0, le=10_000)
    """Largest field in Hz, of either sign; null: half the shift that turns the phase between two echoes once, whose two
    ends are the same for evenly spaced echoes."""
    residual: float = Field(1.0, ge=0)
    """Factor of the squared difference between the echoes and those of the predicted maps, in units of their power."""
    smoothness: float = Field(0.2, ge=0)
    """Factor of the squared difference of the field between neighbors, as a phase in radians between two echoes, which
    is weighted by the power of the signal. It keeps water and fat from being swapped in places: of a scan that has no
    swapped voxel with 0.2, a third was swapped with 0.05."""

    @field_validator("echo_times")
    @classmethod
    def _rising(cls, times: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if times is not None and (not times or any(later <= earlier for earlier, later in pairwise(times))):
            raise ValueError(f"echo times rise from echo to echo (got {list(times)}); sort them, in seconds")
        return times

    @property
    def field_limit(self) -> float:
        """The largest field in Hz. Raise UserError without echo times and without `field_range`."""
        if self.field_range is None and self.echo_times is None:
            raise UserError("objective.field_range: needed where each case has its own echo times; give it in Hz")
        return self.field_range or field_period(self.echo_times or ()) / 2


class Signal(Supervised):
    """Terms of maps (B, 6, *S), `core.water_fat.MAPS`, against echoes (B, 2E, *S): real_1, imag_1, real_2, ..."""

    config: SignalConfig

    def __init__(
        self,
        config: SignalConfig,
        power: float | None = None,
        echo_times: Tensor | None = None,
        field_strength: Tensor | None = None,
    ):
        """power: mean |S|^2 of the training set, the unit of the losses; None: that of each example.

        echo_times, field_strength: (B, E) and (B,) of the examples of one batch, instead of the config's.
        """
        super().__init__(config)
        self.power, self.fat_model = power, FAT_MODELS[config.fat_model]
        self.echo_times = config.echo_times if echo_times is None else echo_times
        self.field_strength = config.field_strength if field_strength is None else field_strength

    def loss(
        self,
        model: Callable[[Tensor], Tensor],
        image: Tensor,
        target: Tensor | None = None,
        weight: Tensor | None = None,
        rng: BatchRNG | None = None,
        echo_times: Tensor | None = None,
        field_strength: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return `loss` and its terms, (B,) each.

        image: (B, 2E, *S); weight: (B, *S), of each place, or None; target: without effect. echo_times (B, E) in
        seconds and field_strength (B,) in tesla, if the cases differ. Raise UserError where neither those nor the
        config's are given, or the number of echoes differs.
        """
        if echo_times is not None or field_strength is not None:
            here = Signal(self.config, self.power, echo_times, field_strength)
            return here.loss(model, image, target, weight, rng)
        if self.echo_times is None or self.field_strength is None:
            raise UserError("objective.echo_times: neither the config nor the case has them and the field strength")
        expected = torch.as_tensor(self.echo_times).shape[-1]
        if image.shape[1] != 2 * expected:
            raise UserError(
                f"objective.echo_times: {expected} echoes need {2 * expected} channels, real and imaginary in turn "
                f"(got {image.shape[1]}); give one time for each echo"
            )
        return super().loss(model, image, image, weight, rng)

    def term(self, name: str, prediction: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        echoes, maps = to_complex(target.to(prediction.dtype)), prediction
        power = echoes.abs().square().mean(1)
        weight = torch.ones_like(power) if weight is None else weight.to(power)
        unit = _total(power * weight if self.power is None else torch.full_like(power, self.power))
        if name == "residual":
            assert self.echo_times is not None and self.field_strength is not None
            modelled = signal_of_maps(maps, self.echo_times, self.field_strength, self.fat_model)
            errors = torch.view_as_real(modelled - echoes).square().sum(-1).mean(1)
            return _share(_total(errors * weight), unit)
        return _share(self._roughness(maps[:, 4], power * weight), unit)

    def _roughness(self, field: Tensor, power: Tensor) -> Tensor:
        """Return the sum over neighbors of the squared difference of phase, -pi to pi, times the lesser power, (B,).

        The sum over edges of the smoothness term of Hernando et al. 2010, equation 4.
        """
        times = torch.as_tensor(self.echo_times)
        spacing = (times.diff(dim=-1) if times.shape[-1] > 1 else times).min(-1).values
        radians = field * (2 * math.pi * spacing.to(field).reshape(-1, *[1] * (field.ndim - 1)))
        total = radians.new_zeros(len(radians))
        for axis in range(1, field.ndim):
            steps = radians.diff(dim=axis)
            steps = steps - 2 * math.pi * torch.round(steps / (2 * math.pi))
            side = field.shape[axis] - 1
            total = total + _total(steps**2 * torch.minimum(power.narrow(axis, 0, side), power.narrow(axis, 1, side)))
        return total


def _total(values: Tensor) -> Tensor:
    """Return the sum of each example, (B,)."""
    return values.flatten(1).sum(1)


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """Return part / whole, 0 where the whole is 0."""
    return torch.where(whole > 0, part / torch.where(whole > 0, whole, 1), 0.0)
