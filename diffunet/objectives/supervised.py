"""The base class of objectives with a target for each image: no noise, no time.

    objective.loss(predictor, image, target)                      # {"loss": (B,), ...}

Every loss is a mean over the places of one example whose target is known, so that sharing or accumulating a batch
changes nothing, and an example without any known place has the loss 0.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pydantic import model_validator
from torch import Tensor

from ..core.rng import BatchRNG
from ..core.settings import Settings


class SupervisedConfig(Settings):
    """Factors of the terms of a loss."""

    terms: ClassVar[tuple[str, ...]]
    """The fields that are factors."""
    type: Any

    @model_validator(mode="after")
    def _some_term_counts(self):
        if not any(self.factors.values()):
            raise ValueError(f"every term of the loss has the factor 0; raise one of {', '.join(self.terms)}")
        return self

    @property
    def factors(self) -> dict[str, float]:
        """The factors by term."""
        return {name: getattr(self, name) for name in self.terms}


class Supervised(ABC):
    """A loss of predictions, the sum of terms by their factors."""

    def __init__(self, config: SupervisedConfig):
        self.config = config

    @abstractmethod
    def term(self, name: str, prediction: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        """Return a term of the loss for each example, (B,); 0 where no place is known."""

    def loss(
        self,
        model: Callable[[Tensor], Tensor],
        image: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        rng: BatchRNG | None = None,
    ) -> dict[str, Tensor]:
        """Return `loss` and its terms, (B,) each, as `loss_dice`.

        image: (B, C, *S); target: (B, *S) or (B, C', *S); weight: (B, *S), of each place, or None. Where the prediction
        is smaller than the image, as with valid borders, their center counts.
        """
        prediction = model(image)
        size = prediction.shape[2:]
        target, weight = center_of(target, size), None if weight is None else center_of(weight, size)
        factors = {name: factor for name, factor in self.config.factors.items() if factor}
        terms = {name: self.term(name, prediction, target, weight) for name in factors}
        total = torch.stack([factor * terms[name] for name, factor in factors.items()]).sum(0)
        return {"loss": total, **({f"loss_{name}": term for name, term in terms.items()} if len(terms) > 1 else {})}


def center_of(values: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return the central positions (..., *size) of (..., *S)."""
    for axis, side in enumerate(size, start=values.ndim - len(size)):
        values = values.narrow(axis, (values.shape[axis] - side) // 2, side)
    return values


def mean_where(values: Tensor, known: Tensor) -> Tensor:
    """Return the mean of each example over its known places, (B,); 0 where there is none. Both are (B, ...)."""
    values = values.masked_fill(~known, 0.0).flatten(1).sum(1)
    return values / known.flatten(1).sum(1).clamp(min=1)
