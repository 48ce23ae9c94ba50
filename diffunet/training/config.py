"""The section `train` of a configuration, and the actions due after each step."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import nn

from ..core.errors import UserError
from ..core.runtime import RuntimeConfig
from ..core.settings import Settings
from .muon import Muon

POLY_POWER = 0.9
"""Of the schedule poly, as in DeepLab (Chen et al. 2018) and nnU-Net."""
TRAPEZOID_END = 0.2
"""Share of the steps in which the schedule trapezoid falls to zero (Hägele et al. 2024)."""
RATE_OF_ONE_CHANNEL = 0.05
"""Learning rate `auto` times the channels of the finest level (benchmarks/README.md, "Sizes")."""


@dataclass(frozen=True)
class Due:
    """The actions due after a step."""

    log: bool
    checkpoint: bool
    preview: bool
    snapshot: bool


class TrainConfig(Settings):
    """How to train, for how long, and what to write to the run folder."""

    output: str = "runs/default"
    """The run folder."""
    steps: int = Field(100_000, ge=1, le=10**9)
    """Optimizer steps in all."""
    minutes: float | None = Field(None, gt=0)
    """Choose `steps` to fit this time: the speed is measured first. Previews and checkpoints come on top."""
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] | Literal["auto"] = 128
    """Global batch size, over all processes; auto: the largest that fits into memory, a power of two per process."""
    gradient_accumulation_steps: int = Field(1, ge=1, le=1_000_000)
    """Micro-batches per process and step, to save memory."""
    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto"] = 2e-4
    """Peak learning rate; auto: in inverse proportion to the channels of the U-Net (Yang et al. 2022), 0.05 divided by
    those of the finest level."""
    optimizer: Literal["adamw", "muon", "sgd"] = "adamw"
    """adamw; muon: orthogonalized momentum for matrices, with the learning rates of adamw; sgd: stochastic gradient
    descent with Nesterov momentum."""
    momentum: float = Field(0.99, ge=0, lt=1)
    """Momentum of sgd."""
    lr_schedule: Literal["constant", "linear", "cosine", "poly", "trapezoid"] = "constant"
    """After warm-up: constant, or decay to zero at the last step; poly: by the power 0.9 of the steps that are left;
    trapezoid: constant but for the last fifth."""
    warmup_steps: int = Field(0, ge=0, le=10**9)
    """Steps over which the learning rate rises to its peak."""
    adam_beta2: float = Field(0.999, gt=0, lt=1)
    """Decay rate of AdamW's second moment."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay: AdamW's, or the L2 penalty of sgd."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""
    ema_decay: float = Field(0.9999, ge=0, lt=1)
    """Decay per step of the EMA of the weights, limited to (1 + step) / (10 + step) at the start."""
    ema_share: float | None = Field(None, gt=0, le=1)
    """Length of the EMA as a share of the training, instead of ema_decay, and without its limit, so that the EMA leaves
    the initial weights slowly, as finetuning needs; null: ema_decay."""
    publish: Literal["newest", "least_val_loss"] = "newest"
    """Which EMA weights to publish: those of the newest checkpoint, or of the preview with the least val_loss."""
    snapshots: int = Field(16, ge=0, le=1000)
    """Snapshots of two more EMAs, from which `diffunet ema` makes one of any length; 0: none."""
    log_every: int = Field(50, ge=1, le=10**9)
    """Steps between lines of log.jsonl and points of curves.png."""
    checkpoint_every: int = Field(5000, ge=1, le=10**9)
    """Steps between checkpoints; there is one at the end too."""
    keep_checkpoints: int = Field(2, ge=1, le=10**9)
    """Newest checkpoints to keep."""
    preview_every: int = Field(5000, ge=1, le=10**9)
    """Steps between previews: a grid of samples by the section `sample`, and validation; also at the end."""
    log_with: str | None = None
    """A tracker that Accelerate supports, such as tensorboard or wandb."""
    shard: bool = False
    """Each process holds a part of the weights, gradients, moments and EMAs, for networks that are too large for one
    device (docs/distributed.md)."""
    deterministic: bool = False
    """On a GPU the same bytes each time, by algorithms that may be slower; a CPU does so anyway."""
    seed: int = Field(0, ge=0, le=10**18)
    """Seed of the initial weights, the data order and every random number."""
    runtime: RuntimeConfig = RuntimeConfig()

    @property
    def images(self) -> int:
        """Images that the training sees, with repetition; an automatic batch size counts as the default."""
        size = TrainConfig.model_fields["batch_size"].default if self.batch_size == "auto" else self.batch_size
        return self.steps * size

    @property
    def peak_rate(self) -> float:
        """The learning rate as a number. Raise UserError for `auto`, which a training with a U-Net resolves."""
        if self.learning_rate == "auto":
            raise UserError("train.learning_rate: auto follows from a U-Net, and there is none; give a number")
        return self.learning_rate

    def for_width(self, channels: int) -> Self:
        """Return the config with the learning rate of a U-Net whose finest level has this many channels, if `auto`."""
        rate = RATE_OF_ONE_CHANNEL / channels if self.learning_rate == "auto" else self.learning_rate
        return self.model_copy(update={"learning_rate": rate})

    def batch_sizes(self, processes: int) -> tuple[int, int]:
        """Return the global batch size and that of a micro-batch. Raise UserError if it cannot be shared equally."""
        parts = processes * self.gradient_accumulation_steps
        if self.batch_size == "auto":
            raise UserError("train.batch_size: auto is resolved by fit(); give the Trainer a number")
        if self.batch_size % parts:
            raise UserError(
                f"train.batch_size: {self.batch_size} cannot be shared equally by {processes} process(es) × "
                f"{self.gradient_accumulation_steps} accumulation step(s); "
                f"try {max(1, round(self.batch_size / parts)) * parts}"
            )
        return self.batch_size, self.batch_size // parts

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of step 0, 1, ..."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        done = step / self.steps
        cosine = (1 + math.cos(math.pi * done)) / 2
        decay = {"constant": 1.0, "linear": 1 - done, "cosine": cosine, "poly": max(0.0, 1 - done) ** POLY_POWER}
        decay["trapezoid"] = min(1.0, (1 - done) / TRAPEZOID_END)
        return self.peak_rate * warmup * decay[self.lr_schedule]

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer of a model, whose step can skip gradients that are not finite."""
        shared = {"lr": self.peak_rate, "weight_decay": self.weight_decay}
        betas = 0.9, self.adam_beta2
        if self.optimizer == "muon":
            return Muon(model, betas=betas, **shared)
        if self.optimizer == "sgd":
            nesterov = self.momentum > 0
            return torch.optim.SGD(model.parameters(), momentum=self.momentum, nesterov=nesterov, fused=True, **shared)
        return torch.optim.AdamW(model.parameters(), betas=betas, fused=True, **shared)

    def ema_decay_at(self, step: int) -> float:
        """Return the EMA decay of step 0, 1, ...: short at first, so that random initial weights are forgotten.

        With `ema_share` it is 1 - 1 / n for a length of n steps, and e^(-steps / n) of the initial weights remain.
        """
        if self.ema_share is not None:
            return 1 - 1 / max(1.0, self.ema_share * self.steps)
        return min(self.ema_decay, (1 + step) / (10 + step))

    def due_after(self, step: int, stopping: bool, retry_checkpoint: bool) -> Due:
        """Return the actions due after `step` steps. A failed checkpoint is retried with each line of the log."""
        last = step == self.steps
        preview = last or step % self.preview_every == 0
        log = last or stopping or preview or step % self.log_every == 0
        checkpoint = last or stopping or step % self.checkpoint_every == 0 or (log and retry_checkpoint)
        snapshot = step * self.snapshots // self.steps > (step - 1) * self.snapshots // self.steps
        return Due(log or checkpoint, checkpoint, preview, snapshot)
