"""Scores of maps of water and fat: against true ones, if there are, against the echoes, and beside least squares."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.complex_channels import to_complex
from ..core.water_fat import MAPS, FatModel, fat_fraction
from ..data.cases import Case
from .comparison import Judge, PredictedCase
from .references import Reference
from .scores import CaseScores
from .water_fat import fat_fraction_error, separate, signal_residual, swapped_share

FOREGROUND = 0.1
"""Magnitude over that of the brightest hundredth above which a place is of the body, where nothing else says so."""


def fraction_of(target: Tensor) -> Tensor:
    """Return the fraction of fat of maps (6, *S), or of itself (1, *S), (*S)."""
    return fat_fraction(target[None])[0] if len(target) == len(MAPS) else target[0]


def body_of(case: Case) -> np.ndarray:
    """Return where a case is scored, (*S) bool: where it has weight, or a target, or else signal."""
    if case.weight is not None:
        return (case.weight > 0).numpy()
    if not case.target.isnan().all():
        return (~case.target.isnan().any(0)).numpy()
    magnitude = to_complex(case.image[None].float())[0].abs().square().sum(0).sqrt()
    values = magnitude.flatten()
    bright = torch.quantile(values[:: len(values) // 2**20 + 1], 0.99)
    return (magnitude > FOREGROUND * bright).numpy()


class LeastSquares:
    """Maps by `water_fat.separate`; those of the last image are kept."""

    def __init__(self, echo_times: Sequence[float], field_strength: float, fat_model: FatModel):
        self.settings = echo_times, field_strength, fat_model
        self.last: tuple[Tensor, Tensor] | None = None

    def __call__(self, image: Tensor) -> Tensor:
        """Return the maps (6, *S) of echoes (2E, *S)."""
        if self.last is None or self.last[0] is not image:
            echoes = to_complex(image[None].double())[0].numpy()
            self.last = image, torch.from_numpy(np.asarray(separate(echoes, *self.settings), np.float32))
        return self.last[1]


@dataclass(frozen=True, kw_only=True)
class WaterFatJudge(Judge):
    """Scores maps (6, *S) of echoes (2E, *S) whose targets are maps, fractions of fat, or unknown."""

    least_squares: LeastSquares

    @classmethod
    def of_echoes(cls, echo_times: Sequence[float], field_strength: float, fat_model: FatModel) -> "WaterFatJudge":
        """Return the judge of echoes at some times in seconds and a field strength in tesla."""
        fit = LeastSquares(echo_times, field_strength, fat_model)
        return cls(
            labels=None, borders=False, data_range=0.0, references={"least_squares": Reference(fit)}, least_squares=fit
        )

    def scores_of(self, prediction: PredictedCase) -> CaseScores:
        """Return signal_residual, and fat_fraction_error and swapped_share of a known truth, and of least squares."""
        case, maps = prediction.case, prediction.output
        body, found = body_of(case), fraction_of(maps)
        echoes = to_complex(case.image[None].float())[0].numpy()
        times, strength, model = self.least_squares.settings
        scores = {"signal_residual": signal_residual(maps.numpy(), echoes, times, strength, body, model)}
        if not case.target.isnan().all():
            truth = fraction_of(case.target)
            scores["fat_fraction_error"] = fat_fraction_error(found, truth, body)
            scores["swapped_share"] = swapped_share(found, truth, body)
        fitted = fraction_of(self.least_squares(case.image))
        scores["difference_from_least_squares"] = fat_fraction_error(found, fitted, body)
        scores["swapped_from_least_squares"] = swapped_share(found, fitted, body)
        return CaseScores(scores)

    @property
    def definitions(self) -> dict[str, Any]:
        times, strength, model = self.least_squares.settings
        return {"echo_times": list(times), "field_strength": strength, "shifts": list(model.shifts)}
