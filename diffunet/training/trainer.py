"""The training loop: any model, any objective with `loss(model, rng=..., **batch)`, exact to the byte.

Accelerate places, parallelises and scales. What a step does is ours, and a pure function of the seed,
the step and the state in the checkpoint.
"""

import math
import signal
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from .ema import LENGTHS, EMA, list_snapshots, power_ema_rate, save_snapshot
from ..core.runtime import RuntimeConfig, synchronize
from .loader import TrainingData, fetch
from .signals import GracefulShutdown
from .log import Log
from ..core.rng import EpochShuffle, BatchRNG, seed_for
from ..core.errors import UserError, ran_out_of_memory
from .checkpoint import State, list_checkpoints, newest_checkpoint, read_state, remove, write_checkpoint
from ..core.storage import verify_checksums, load_strictly, load_tensors
from ..core.errors import describe_oserror

if TYPE_CHECKING:
    from accelerate import Accelerator  # costs seconds, and `--help` needs none of it

NON_FINITE_LIMIT = 10
"""Training stops after so many steps in a row whose loss or gradient is not finite, before as many more are over."""


class TrainConfig(RuntimeConfig):
    """How to train, how long, and what to leave in the run folder."""

    output: str = "runs/default"
    """The run folder."""
    steps: int = Field(100_000, ge=1, le=10**9)
    """Optimiser steps in all."""
    minutes: float | None = Field(None, gt=0)
    """Settle `steps` by about this time: the speed is measured first. Previews and checkpoints come on top."""
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] | Literal["auto"] = 128
    """Examples in a step, all processes together; auto: the most that fit into memory, a power of two for each."""
    gradient_accumulation_steps: int = Field(1, ge=1, le=1_000_000)
    """Parts that each process cuts its share of the batch into, to need less memory."""
    learning_rate: float = Field(2e-4, gt=0)
    """Peak learning rate of AdamW."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """From the peak: no change, or down to zero at the last step."""
    warmup_steps: int = Field(0, ge=0, le=10**9)
    """Steps over which the learning rate rises to its peak."""
    adam_beta2: float = Field(0.999, gt=0, lt=1)
    """Decay of AdamW's second moment."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's weight decay."""
    max_grad_norm: float = Field(1.0, gt=0)
    """The gradient is scaled down to this norm."""
    ema_decay: float = Field(0.9999, ge=0, lt=1)
    """Decay per step of the weights' moving average, reached by way of (1 + step) / (10 + step)."""
    snapshots: int = Field(16, ge=0, le=1000)
    """Snapshots of two more averages, from which `diffunet ema` makes one of any length; 0: none."""
    log_every: int = Field(50, ge=1, le=10**9)
    """Steps between lines of log.jsonl and points of curves.png."""
    checkpoint_every: int = Field(5000, ge=1, le=10**9)
    """Steps between checkpoints; there is one at the end too."""
    keep_checkpoints: int = Field(2, ge=1, le=10**9)
    """Newest checkpoints to keep."""
    preview_every: int = Field(5000, ge=1, le=10**9)
    """Steps between sample grids, drawn as the section `sample` says, and signs of health; also at the end."""
    log_with: str | None = None
    """A tracker that Accelerate knows, such as tensorboard or wandb."""
    seed: int = Field(0, ge=0, le=10**18)
    """Decides the first weights, the order of the data and every random number."""

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of step 0, 1, ..."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        done = step / self.steps
        decay = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
        return self.learning_rate * warmup * decay[self.lr_schedule]

    def ema_decay_at(self, step: int) -> float:
        """The EMA decay of step 0, 1, ...: a short memory first, so that it forgets the random start."""
        return min(self.ema_decay, (1 + step) / (10 + step))


class Trainer:
    """Trains `model` on `objective` over `data` in the folder `config.output`.

    Two things are called in the main process only. `preview(step, ema_model)` shows how the model is doing,
    and answers with numbers for the log. `publish(ema_model)` belongs to a checkpoint, when the log has a
    line for the step.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: nn.Module,
        objective: Any,
        data: TrainingData,
        accelerator: "Accelerator",
        preview: Callable[[int, nn.Module], dict[str, float]],
        publish: Callable[[nn.Module], None],
    ):
        shares = accelerator.num_processes * config.gradient_accumulation_steps
        if config.batch_size % shares:
            raise UserError(
                f"train.batch_size: {config.batch_size} cannot be shared equally by {accelerator.num_processes} "
                f"process(es) × {config.gradient_accumulation_steps} accumulation step(s); "
                f"try {max(1, round(config.batch_size / shares)) * shares}"
            )
        self.config = config
        self.folder = Path(config.output)
        self.log = Log(self.folder / "log.jsonl")
        self.objective, self.data, self.accelerator = objective, data, accelerator
        self.preview, self.publish = preview, publish
        self.step = 0
        self.share = config.batch_size // shares
        self.order = EpochShuffle(len(data), config.batch_size, config.seed)
        model = model.to(accelerator.device)
        self._skipped = torch.zeros((), dtype=torch.int64, device=accelerator.device)
        self._non_finite_in_a_row = torch.zeros_like(self._skipped)
        self.ema = EMA(model, lambda step: 1 - config.ema_decay_at(step))
        self.averages = {length: EMA(model, power_ema_rate(length)) for length in LENGTHS if config.snapshots}
        optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=config.learning_rate,
            betas=(0.9, config.adam_beta2),
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.model, self.optimizer = accelerator.prepare(model.train(), optimizer)
        self._logged = 0                                       # step of the newest line of the log
        self._seconds = 0.0                                    # spent in steps since then
        self.spent = {"steps": 0.0, "previews": 0.0}           # seconds in all, of this process
        self._failing_writes: set[str] = set()                       # what cannot be written at present
        self._checkpoint_pending = False                                  # whether a checkpoint is among that, in any process

    @property
    def skipped(self) -> int:
        """Steps that were skipped, because their gradient was not finite."""
        return int(self._skipped)

    @property
    def _unwrapped(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.model)

    # ── the loop ──────────────────────────────────────────────────────────────────────────────────

    def fit(self) -> signal.Signals | None:
        """Trains to `config.steps`. Returns the signal that ended it early, after a checkpoint, if one did.

        What cannot be written for the moment is said, and tried again later. UserError where going on is useless.
        """
        from accelerate.utils import tqdm

        config = self.config
        self.folder.mkdir(parents=True, exist_ok=True)
        batches = self._batches()
        with (
            self._explain_failure(),
            GracefulShutdown(self.accelerator) as interruption,
            tqdm(initial=self.step, total=config.steps, desc="train", unit="step", dynamic_ncols=True) as bar,
        ):
            while self.step < config.steps:
                started = time.monotonic()
                self._train_step(next(batches))
                self.step += 1
                bar.update()
                last = self.step == config.steps
                stop = interruption.requested(self.step)
                logging = last or stop or self.step % config.log_every == 0
                saving = last or stop or self.step % config.checkpoint_every == 0 or (logging and self._checkpoint_pending)
                previewing = last or self.step % config.preview_every == 0
                if logging or saving or previewing:
                    synchronize(self.accelerator.device)          # at no other step, so that it is not kept waiting
                self._seconds += time.monotonic() - started
                if logging or self.step % NON_FINITE_LIMIT == 0:
                    self._refuse_to_go_on_broken()
                if self.accelerator.is_main_process and self._is_snapshot(self.step):
                    with self._tolerate_io_error("snapshot"):
                        save_snapshot(self.folder, self.step, self.averages)
                seen = self._preview() if previewing else {}
                if (logging or saving or previewing) and (line := self._log(seen)):
                    bar.set_postfix_str(f"loss {line['loss']:.4f}, {line['images_per_second']:.0f} images/s")
                if saving:
                    with self._tolerate_io_error("checkpoint"):
                        self.save()
                    self._checkpoint_pending = self._any_process("checkpoint" in self._failing_writes)
                if self._checkpoint_pending and (last or stop):
                    raise UserError(
                        f"{self.folder}: the checkpoint of step {self.step} cannot be written; mend that, and "
                        f"--resume {self.folder} goes on from {self._newest()}"
                    )
                if stop and not last:
                    return interruption.signal or signal.SIGTERM
        return None

    def measure_step_time(self, seconds: float) -> float:
        """Trains for about so long without leaving a trace in the folder; seconds per step, agreed by all processes."""
        batches = self._batches()

        def step_seconds() -> float:
            started = time.monotonic()
            self._train_step(next(batches))
            self.step += 1
            synchronize(self.accelerator.device)
            return time.monotonic() - started

        def agreed(took: list[float]) -> float:
            median = torch.tensor(statistics.median(took), device=self.accelerator.device)
            return float(self.accelerator.reduce(median, "mean"))

        with self._explain_failure():
            first = agreed([step_seconds() for _ in range(4)][1:])            # the very first one warms up
            return agreed([step_seconds() for _ in range(3 + int(seconds / first))])

    def _refuse_to_go_on_broken(self) -> None:
        if self._non_finite_in_a_row >= NON_FINITE_LIMIT:
            raise UserError(
                f"training stopped at step {self.step}: the loss was not finite {NON_FINITE_LIMIT} times in a row; "
                f"the checkpoints in {self.folder} are intact; try a lower train.learning_rate"
            )

    def _is_snapshot(self, step: int) -> bool:
        wanted, steps = self.config.snapshots, self.config.steps
        return step * wanted // steps > (step - 1) * wanted // steps

    def _preview(self) -> dict[str, float]:
        if not self.accelerator.is_main_process:
            return {}
        started, seen = time.monotonic(), {}
        with self._tolerate_io_error("preview"):
            seen = self.preview(self.step, self.ema.model)
        self.spent["previews"] += time.monotonic() - started
        return seen

    @contextmanager
    def _tolerate_io_error(self, what: str) -> Iterator[None]:
        """For what writes to the folder: where that fails it is said, once until it succeeds again."""
        try:
            yield
            self._failing_writes.discard(what)
        except OSError as error:
            if what not in self._failing_writes:
                self._say(f"step {self.step}: no {what}: {describe_oserror(error)}; training goes on, mend it meanwhile")
            self._failing_writes.add(what)

    def _newest(self) -> str:
        return next((checkpoint.name for checkpoint in reversed(list_checkpoints(self.folder))), "the start")

    @contextmanager
    def _explain_failure(self) -> Iterator[None]:
        """UserError where the memory is too small, or where another process has gone."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if ran_out_of_memory(error):
                raise UserError(
                    f"out of memory at step {self.step} with train.batch_size {self.config.batch_size}, "
                    f"{self.share} at a time: raise --train.gradient_accumulation_steps, which changes nothing else, "
                    f"or lower --train.batch_size"
                ) from error
            of_processes = getattr(torch.distributed, "DistError", ())        # not in every build of torch
            if not (isinstance(error, of_processes) or "gloo" in str(error)):
                raise
            first = str(error).splitlines()[0].split(". ")[0]
            why = first.partition("] ")[2] or first
            raise UserError(
                f"training stopped at step {self.step}: another process has gone ({why}); "
                f"--resume {self.folder} goes on from {self._newest()}, with as many processes as are there"
            ) from error

    def _any_process(self, wish: bool) -> bool:
        """Whether it is so in any process. To be called by all of them."""
        return bool(self.accelerator.reduce(torch.tensor(float(wish), device=self.accelerator.device), "sum"))

    def _say(self, text: str) -> None:
        from tqdm import tqdm

        if self.accelerator.is_main_process:
            tqdm.write(text)

    def _batches(self) -> Iterator[list[dict[str, Tensor]]]:
        """This process's share of every batch from the present step on, in the parts of its accumulation."""
        positions = [self._positions(part) for part in range(self.config.gradient_accumulation_steps)]
        steps = range(self.step, self.config.steps)
        far = self.accelerator.device.type == "cuda" and self.data.device.type == "cpu"
        return fetch(self.data, self.order, positions, steps, pin_memory=far, say=self._say)

    def _positions(self, part: int) -> slice:
        """Where in the whole batch this process's share of an accumulation part stands."""
        place = part * self.accelerator.num_processes + self.accelerator.process_index
        return slice(place * self.share, (place + 1) * self.share)

    def _train_step(self, parts: list[dict[str, Tensor]]) -> None:
        """One optimiser step over the parts of a batch; skipped and counted when its gradient is not finite."""
        from accelerate.utils import send_to_device

        config, accelerator = self.config, self.accelerator
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate_at(self.step)
        for part, batch in enumerate(parts):
            positions = self._positions(part)
            torch.manual_seed(seed_for(config.seed, self.step, positions.start, 2))            # for dropout
            rng = BatchRNG.at(config.seed, self.step, positions, config.batch_size, accelerator.device)
            batch = self.data.prepare(send_to_device(batch, accelerator.device, non_blocking=True), rng)
            more_to_come = part < len(parts) - 1
            with accelerator.no_sync(self.model) if more_to_come else nullcontext():
                losses = self.objective.loss(self.model, rng=rng, **batch)
                accelerator.backward(losses["loss"].mean() / len(parts))
            for name, values in losses.items():
                self.log.count(name, values.detach())
        norm = accelerator.clip_grad_norm_(self.model.parameters(), config.max_grad_norm)
        broken = ~norm.detach().isfinite()
        if not accelerator.scaler:                             # which skips by itself, and learns from it
            self.optimizer.optimizer.found_inf = broken.float()               # a fused AdamW reads it on the device
        self.optimizer.step()
        self.optimizer.zero_grad()
        for average in (self.ema, *self.averages.values()):
            average.update(self._unwrapped, self.step)
        self.log.count("grad_norm", norm.detach().reshape(1))
        self._skipped += broken
        self._non_finite_in_a_row = (self._non_finite_in_a_row + 1) * broken

    # ── the log ───────────────────────────────────────────────────────────────────────────────────

    def _log(self, seen: dict[str, float]) -> dict[str, float]:
        """Writes the means since the last line, and what a preview saw. Empty in all but the main process."""
        means = self.log.means(self.accelerator)
        steps, seconds = self.step - self._logged, self._seconds
        self._logged, self._seconds = self.step, 0.0
        self.spent["steps"] += seconds
        if not self.accelerator.is_main_process:
            return {}
        line = {
            "step": self.step,
            **{"loss": math.nan, **means},
            "learning_rate": self.config.learning_rate_at(self.step - 1),
            "skipped": self.skipped,
            "images_per_second": round(steps * self.config.batch_size / seconds, 1),
            "minutes_left": round((self.config.steps - self.step) * seconds / steps / 60, 2),
            **({"preview_share": round(self.spent["previews"] / sum(self.spent.values()), 4)} if seen else {}),
            **seen,
        }
        with self._tolerate_io_error("line in the log"):
            self.log.write(line)
            self.accelerator.log(line, step=self.step)
        return line

    # ── the checkpoint ────────────────────────────────────────────────────────────────────────────

    def save(self) -> None:
        """Writes the whole state, then removes the checkpoints that are too many, and publishes the EMA.

        OSError if it cannot be written, which leaves the older ones.
        """
        if not self.accelerator.is_main_process:
            return
        names = [name for name, _ in self._unwrapped.named_parameters()]
        moments = self.optimizer.state_dict()["state"]
        state = State(
            step=self.step,
            skipped=self.skipped,
            examples=len(self.data),
            data=self.data.fingerprint,
            environment=self._environment,
            scaler=self.accelerator.scaler and self.accelerator.scaler.state_dict(),
        )
        tensors = {"model": self._unwrapped.state_dict()}
        tensors |= {name: average.model.state_dict() for name, average in self._averages_by_name().items()}
        tensors["optimizer"] = {
            f"{names[i]}:{key}": value for i, entry in moments.items() for key, value in entry.items()
        }
        write_checkpoint(self.folder, state, tensors)
        remove(self.folder, list_checkpoints(self.folder)[: -self.config.keep_checkpoints])
        self.publish(self.ema.model)

    def resume(self, checkpoint: Path | None = None, force: bool = False) -> None:
        """Goes back to a checkpoint, or to the newest, or, where nothing was saved yet, to the start; in all processes.

        What came after it is given up. UserError if it is damaged or does not fit, or, without `force`, if it
        was trained on other data.
        """
        mistake = None
        try:
            if checkpoint := checkpoint or newest_checkpoint(self.folder):
                self._restore(checkpoint, force)
        except UserError as found:                             # the others would wait for this process
            mistake = found
        if self._any_process(mistake is not None):
            raise mistake or UserError("another process cannot go on, and says why")
        self._logged = self.step
        if self.accelerator.is_main_process:
            self.log.forget_after(self.step)
            for step, snapshot in list_snapshots(self.folder).items():
                if step > self.step:
                    snapshot.unlink()
            if checkpoint:
                newer = [other for other in list_checkpoints(self.folder) if other.name > checkpoint.name]
                remove(self.folder, newer)
                self.publish(self.ema.model)                   # a kill may have come between the two
        self.accelerator.wait_for_everyone()

    def _restore(self, checkpoint: Path, force: bool) -> None:
        verify_checksums(checkpoint)
        state = read_state(checkpoint)
        if state.data != self.data.fingerprint:
            other = f"data.path: {len(self.data)} examples, and {checkpoint} was trained on {state.examples} others"
            if not force:
                raise UserError(f"{other}; a run is resumed on its own data, or with --force")
            self._say(f"{other}; going on by force")
        for name, now in self._environment.items():
            if (before := state.environment.get(name)) != now:
                self._say(f"{name}: {before} -> {now}")
        models = {"model": self._unwrapped}
        models |= {name: average.model for name, average in self._averages_by_name().items()}
        for name, model in models.items():
            file = checkpoint / f"{name}.safetensors"
            load_strictly(model, load_tensors(file), file)
        moments: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in load_tensors(checkpoint / "optimizer.safetensors").items():
            parameter, _, key = name.rpartition(":")
            moments[parameter][key] = tensor
        parameters = dict(self._unwrapped.named_parameters())
        if moments and set(moments) != set(parameters):
            raise UserError(f"{checkpoint}/optimizer.safetensors: does not match the network")
        groups = self.optimizer.state_dict()["param_groups"]
        numbered = {
            i: {key: _with_strides_of(parameters[name], tensor) for key, tensor in moments[name].items()}
            for i, name in enumerate(parameters)
            if name in moments
        }
        self.optimizer.load_state_dict({"state": numbered, "param_groups": groups})
        if self.accelerator.scaler and state.scaler:
            self.accelerator.scaler.load_state_dict(state.scaler)
        self.step = state.step
        self._skipped.fill_(state.skipped)

    @property
    def _environment(self) -> dict[str, str | int]:
        return {
            "processes": self.accelerator.num_processes,
            "device": self.accelerator.device.type,
            "precision": self.accelerator.mixed_precision,
            "torch": torch.__version__,
        }

    def _averages_by_name(self) -> dict[str, EMA]:
        return {"ema": self.ema} | {f"average_{length}": average for length, average in self.averages.items()}


def _with_strides_of(parameter: Tensor, moment: Tensor) -> Tensor:
    """A copy in the parameter's order of memory, along which a fused optimiser walks; but for the count of steps."""
    return torch.empty_like(parameter).copy_(moment) if moment.shape == parameter.shape else moment.clone()
