"""The inputs of a training, and the point where it begins."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ..models.sizes import Size
from ..runs.run import Run
from ..training.config import TrainConfig
from ..training.loader import TrainingData

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Task:
    """A kind of training, made from a configuration by a function such as `generation`."""

    config: Any
    """Resolved settings with a section `train`; the run folder records them."""
    accelerator: "Accelerator"
    build_model: Callable[[TrainConfig], nn.Module]
    """Returns the model before training, with weights from torch's random numbers, which `fit` seeds."""
    objective: Any
    """Has `loss(model, rng=..., **batch)`, which returns `{"loss": (B,), ...}`."""
    data: TrainingData
    preview: Callable[[int, nn.Module], dict[str, float]]
    """Called with the step and the EMA model; returns numbers for the log."""
    publish: Callable[[nn.Module], None]
    """Called with the EMA model after each checkpoint."""
    summary: str
    """The data and the model in one line, for the start."""
    report: Callable[[nn.Module], str]
    """Called with the EMA model at the end; returns a line on the results."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Further files of the run folder, such as tokenizers, by name."""
    notes: tuple[str, ...] = ()
    """Why automatic settings are what they are: lines for the start and for config.yaml."""
    resized: "Callable[[Size], Task] | None" = None
    """Returns the same training of a network of another size; None: it has one size only."""


@dataclass(frozen=True)
class Start:
    """Where a training begins."""

    run: Run
    previous: TrainConfig | None = None
    """The section `train` of the run to resume; None: a new run."""
    checkpoint: Path | None = None
    """To resume from; None: the newest."""
    overwrite: bool = False
    force: bool = False
