"""The training loop: any model, any objective with `loss(model, rng=..., **batch)`, resumed to the byte.

Accelerate handles devices, processes and mixed precision. A step is a pure function of the seed, its number and the
state in the checkpoint.
"""

import math
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core.errors import UserError, describe_oserror
from ..core.rng import BatchRNG, EpochShuffle, seed_for
from ..core.runtime import device_name, synchronize
from .checkpoint import OPTIMIZER, State, checksum_of, list_checkpoints, newest_checkpoint, read_state, remove, restore
from .checkpoint import write_checkpoint as write
from .config import TrainConfig
from .ema import EMA, STDS, LeastLoss, list_snapshots, power_ema_rate, save_snapshot
from .failures import explained
from .loader import TrainingData, fetch
from .log import Log
from .placement import Replicas, Shards
from .processes import agree, any_process, from_main
from .signals import GracefulShutdown

if TYPE_CHECKING:
    from accelerate import Accelerator  # takes seconds to import, which `--help` does not need

NON_FINITE_LIMIT = 10
"""Training stops after at least this many consecutive steps with a loss or gradient that is not finite."""
CHECK_EVERY = 100
"""Steps after which it is looked for those at the latest: a look waits for the device."""
SLOW_STEP = 1.0
"""Seconds; of slower steps the first two are enough for an estimate."""
QUEUED = 10
"""Steps of a GPU that are measured together."""


class Trainer:
    """Trains `model` on `objective` over `data` in the folder `config.output`.

    `objective.at(progress)`, from 0 to 1, if there is one, returns what has the `loss` of a step.

    `preview(step, ema_model)` and `publish(ema_model)` are called in the main process only: a preview returns numbers
    for the log, of which `config.publish` reads val_loss, and publishing follows a checkpoint, when the log has a line
    for the step.
    Raise UserError for a batch size that the processes cannot share equally.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: nn.Module,
        objective: Any,
        data: TrainingData,
        accelerator: "Accelerator",
        preview: Callable[[int, nn.Module], dict[str, float]] = lambda step, ema: {},
        publish: Callable[[nn.Module], None] = lambda ema: None,
    ):
        self.config = config
        self.folder = Path(config.output)
        self.log = Log(self.folder / "log.jsonl")
        self.objective, self.data, self.accelerator = objective, data, accelerator
        self.preview, self.publish = preview, publish
        self.step = 0
        self.batch_size, self.micro_batch_size = config.batch_sizes(accelerator.num_processes)
        self.order = EpochShuffle(len(data), self.batch_size, config.seed)
        sharded = config.shard and accelerator.num_processes > 1
        self.placement = (Shards if sharded else Replicas)(model, accelerator)
        model, copy_of = self.placement.module, self.placement.copy
        self._skipped = torch.zeros((), dtype=torch.int64, device=accelerator.device)
        self._non_finite_in_a_row = torch.zeros_like(self._skipped)
        self.ema = EMA(model, lambda step: 1 - config.ema_decay_at(step), copy_of)
        self.posthoc = {std: EMA(model, power_ema_rate(std), copy_of) for std in STDS if config.snapshots}
        self.least = LeastLoss(self.ema.model) if config.publish == "least_val_loss" else None
        self.placement.prepare(config.build_optimizer)
        self._logged = 0  # step of the newest line of the log
        self._seconds = 0.0  # spent in steps since then
        self.spent = {"steps": 0.0, "previews": 0.0}  # seconds in all, of this process
        self._failing_writes: set[str] = set()
        self._checkpoint_pending = False  # whether a save failed, in any process

    @property
    def skipped(self) -> int:
        """Steps that were skipped because their gradient was not finite."""
        return int(self._skipped)

    @property
    def published(self) -> nn.Module:
        """The EMA weights, or those of the least validation loss so far if `config.publish` is that."""
        return self.least.model if self.least and self.least.step else self.ema.model

    # ── the loop ──────────────────────────────────────────────────────────────────────────────────

    def fit(self) -> signal.Signals | None:
        """Train to `config.steps`. Return the signal that ended training early, after a checkpoint, if one did.

        A failed write is reported and retried. Raise UserError where continuing is pointless.
        """
        from accelerate.utils import tqdm

        config = self.config
        self.folder.mkdir(parents=True, exist_ok=True)
        batches = self._batches()
        with (
            explained(self._situation),
            GracefulShutdown(self.accelerator) as shutdown,
            tqdm(initial=self.step, total=config.steps, desc="train", unit="step", dynamic_ncols=True) as bar,
        ):
            while self.step < config.steps:
                started = time.monotonic()
                self._train_step(next(batches))
                self.step += 1
                bar.update()
                stopping = shutdown.requested(self.step)
                due = config.due_after(self.step, stopping, self._checkpoint_pending)
                if due.log or self.step % CHECK_EVERY == 0:
                    synchronize(self.accelerator.device)  # at no other step, so that the queue stays full
                self._seconds += time.monotonic() - started
                if due.log or self.step % CHECK_EVERY == 0:
                    self._check_finite()
                if due.snapshot:
                    self._save_snapshot()
                seen = self._preview() if due.preview else {}
                if due.log and (line := self._log(seen)):
                    bar.set_postfix_str(f"loss {line['loss']:.4f}, {line['images_per_second']:.0f} images/s")
                if due.checkpoint:
                    self._try_to_save(final=stopping or self.step == config.steps)
                if stopping and self.step < config.steps:
                    return shutdown.signal or signal.SIGTERM
        return None

    def measure_step_time(self, seconds: float) -> float:
        """Train for about `seconds`, but at least three steps, without writing anything.

        Return the median seconds of a step, averaged over the processes. Slow steps are measured once. On a GPU steps
        are waited for a few at a time, as in a training, where the next one is queued while it computes.
        """
        batches = self._batches()
        together = 1 if self.accelerator.device.type == "cpu" else QUEUED

        def median_of(blocks: int, together: int) -> float:
            took = []
            for _ in range(blocks):
                started = time.monotonic()
                for _ in range(together):
                    self._train_step(next(batches))
                    self.step += 1
                synchronize(self.accelerator.device)
                took.append((time.monotonic() - started) / together)
            median = torch.tensor(statistics.median(took), device=self.accelerator.device)
            return float(self.accelerator.reduce(median, "mean"))

        with explained(self._situation):
            if median_of(1, 1) > SLOW_STEP:  # the first step warms up
                return median_of(1, 1)
            about = median_of(3, 1)
            if together == 1 and seconds <= 3 * about:
                return about
            together = min(together, max(1, int(SLOW_STEP / about)))
            return median_of(3 + int(seconds / about / together), together)

    def _check_finite(self) -> None:
        if self._non_finite_in_a_row >= NON_FINITE_LIMIT:
            raise UserError(
                f"training stopped at step {self.step}: the loss was not finite {NON_FINITE_LIMIT} times in a row; "
                f"the checkpoints in {self.folder} are intact; try a lower --train.learning_rate"
            )

    def _save_snapshot(self) -> None:
        averages = {std: self.placement.tensors(average.model) for std, average in self.posthoc.items()}
        if self.accelerator.is_main_process:
            with self._tolerate_io_error("snapshot"):
                save_snapshot(self.folder, self.step, averages)

    def _preview(self) -> dict[str, float]:
        ema = self.placement.whole(self.ema.model)
        if not self.accelerator.is_main_process:
            return {}
        started, seen = time.monotonic(), {}
        with self._tolerate_io_error("preview"):
            seen = self.preview(self.step, ema)
        if self.least and "val_loss" in seen:
            self.least.update(self.ema.model, self.step, seen["val_loss"])
        self.spent["previews"] += time.monotonic() - started
        return seen

    def _try_to_save(self, final: bool) -> None:
        """Save, or retry later. Raise UserError if there is no later."""
        with self._tolerate_io_error("checkpoint"):
            self.save()
        self._checkpoint_pending = any_process(self.accelerator, "checkpoint" in self._failing_writes)
        if self._checkpoint_pending and final:
            raise UserError(
                f"{self.folder}: the checkpoint of step {self.step} cannot be written; fix that, then resume from "
                f"{self._newest()} with --resume {self.folder}"
            )

    @contextmanager
    def _tolerate_io_error(self, output: str) -> Iterator[None]:
        """Report an OSError, once until the next success, instead of raising it."""
        try:
            yield
            self._failing_writes.discard(output)
        except OSError as error:
            if output not in self._failing_writes:
                problem = f"step {self.step}: no {output}: {describe_oserror(error)}"
                self._print(f"{problem}; training continues, fix it meanwhile")
            self._failing_writes.add(output)

    def _situation(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("step", "batch_size", "micro_batch_size", "folder")}
        return own | {"newest": self._newest()}

    def _newest(self) -> str:
        return next((checkpoint.name for checkpoint in reversed(list_checkpoints(self.folder))), "the start")

    def _print(self, text: str) -> None:
        from tqdm import tqdm

        if self.accelerator.is_main_process:
            tqdm.write(text)

    # ── a step ────────────────────────────────────────────────────────────────────────────────────

    def _batches(self) -> Iterator[list[dict[str, Tensor]]]:
        """Yield this process's share of each batch, from the present step on, as micro-batches."""
        positions = [self._positions(part) for part in range(self.config.gradient_accumulation_steps)]
        steps = range(self.step, self.config.steps)
        return fetch(self.data, self.order, positions, steps, self.accelerator.device, log=self._print)

    def _positions(self, part: int) -> slice:
        """Return the positions of this process's micro-batch in the global batch."""
        place = part * self.accelerator.num_processes + self.accelerator.process_index
        return slice(place * self.micro_batch_size, (place + 1) * self.micro_batch_size)

    def _train_step(self, micro_batches: list[dict[str, Tensor]]) -> None:
        """Make one optimizer step; it is skipped and counted if its gradient is not finite."""
        from accelerate.utils import send_to_device

        config, accelerator = self.config, self.accelerator
        for group in self.placement.optimizer.param_groups:
            group["lr"] = config.learning_rate_at(self.step)
        objective = self.objective
        if hasattr(objective, "at"):  # it has stages
            objective = objective.at(self.step / config.steps)
        for part, batch in enumerate(micro_batches):
            positions = self._positions(part)
            torch.manual_seed(seed_for(config.seed, self.step, positions.start, 2))  # for dropout
            rng = BatchRNG.at(config.seed, self.step, positions, self.batch_size, accelerator.device)
            batch = self.data.prepare(send_to_device(batch, accelerator.device, non_blocking=True), rng)
            last = part == len(micro_batches) - 1  # only then do processes exchange gradients
            with nullcontext() if last else self.placement.without_sync():
                losses = objective.loss(self.placement.model, rng=rng, **batch)
                accelerator.backward(losses["loss"].mean() / len(micro_batches))
            for name, values in losses.items():
                self.log.count(name, values.detach())
        norm = self.placement.clip(config.max_grad_norm)
        broken = ~norm.detach().isfinite()
        if not accelerator.scaler:  # which skips by itself, and adapts
            self.placement.optimizer.optimizer.found_inf = broken.float()  # a fused optimizer skips without a host sync
        self.placement.optimizer.step()
        self.placement.optimizer.zero_grad()
        for average in (self.ema, *self.posthoc.values()):
            average.update(self.step)
        self.log.count("grad_norm", norm.detach().reshape(1))
        self._skipped += broken
        self._non_finite_in_a_row = (self._non_finite_in_a_row + 1) * broken

    def _log(self, seen: dict[str, float]) -> dict[str, float]:
        """Write the means since the last line, and the numbers of a preview. Empty in all but the main process."""
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
            "images_per_second": round(steps * self.batch_size / seconds, 1),
            "minutes_left": round((self.config.steps - self.step) * seconds / steps / 60, 2),
        }
        if seen:
            line |= {"preview_share": round(self.spent["previews"] / sum(self.spent.values()), 4), **seen}
        with self._tolerate_io_error("line in the log"):
            self.log.write(line)
            self.accelerator.log(line, step=self.step)
        return line

    # ── checkpoints ───────────────────────────────────────────────────────────────────────────────

    def save(self) -> None:
        """Write a checkpoint, remove the oldest beyond `keep_checkpoints`, and publish the EMA.

        Raise OSError if it cannot be written, which leaves the older ones.
        """
        state = State(
            step=self.step,
            skipped=self.skipped,
            examples=len(self.data),
            data=self.data.fingerprint,
            environment=self._environment,
            scaler=self.accelerator.scaler and self.accelerator.scaler.state_dict(),
        )
        files = self._files()
        try:
            if self.accelerator.is_main_process:
                write(self.folder, state, files)
                remove(self.folder, list_checkpoints(self.folder)[: -self.config.keep_checkpoints])
        except OSError:  # of writing: the other processes gather to the end; of gathering, as for memory: they cannot
            self._gathered(files)
            raise
        published = self._gathered(files)
        if self.accelerator.is_main_process:
            self.publish(published)

    def _files(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield the names and tensors of the files of a checkpoint, gathered one after the other from all processes."""
        for name, model in self._models.items():
            yield name, self.placement.tensors(model)
        yield OPTIMIZER, self.placement.moments()

    def _gathered(self, files: Iterator) -> nn.Module:
        """Gather what is left of the files, which takes all processes, and return what is published."""
        for _ in files:
            pass
        return self.placement.whole(self.published)

    def resume(self, checkpoint: Path | None = None, force: bool = False) -> None:
        """Restore a checkpoint, or the newest, or the start if there is none; the same one in all processes.

        The main process chooses, so it is the one to hold the run's lock, and removes everything later. Raise UserError
        if the checkpoint is damaged or does not fit or, without `force`, if it was trained on other data.
        """

        def choose() -> tuple[Path, str] | None:
            chosen = checkpoint or newest_checkpoint(self.folder)
            return chosen and (chosen, checksum_of(chosen))

        if chosen := from_main(self.accelerator, choose):
            agree(self.accelerator, lambda: self._restore(*chosen, force))
        self._logged = self.step
        published = self.placement.whole(self.published)
        if self.accelerator.is_main_process:
            self.log.forget_after(self.step)
            for step, snapshot in list_snapshots(self.folder).items():
                if step > self.step:
                    snapshot.unlink()
            if chosen:
                newer = [other for other in list_checkpoints(self.folder) if other.name > chosen[0].name]
                remove(self.folder, newer)
                self.publish(published)  # a kill may have come between the two
        self.accelerator.wait_for_everyone()

    def _restore(self, checkpoint: Path, checksum: str, force: bool) -> None:
        if checksum_of(checkpoint) != checksum:
            raise UserError(f"{checkpoint}: differs from the main process's; all processes need the same files")
        state = read_state(checkpoint)
        if state.data != self.data.fingerprint:
            other = f"data.path: different data set ({len(self.data)} examples, {checkpoint} has {state.examples})"
            if not force:
                raise UserError(f"{other}; use the original data or pass --force")
            self._print(f"{other}; continuing (--force)")
        for name, now in self._environment.items():
            if (before := state.environment.get(name)) != now:
                self._print(f"{name}: {before} -> {now}")
        restore(checkpoint, self._models, self.placement.optimizer.optimizer)
        if self.accelerator.scaler and state.scaler:
            self.accelerator.scaler.load_state_dict(state.scaler)
        self.step = state.step
        self._skipped.fill_(state.skipped)

    @property
    def _models(self) -> dict[str, nn.Module]:
        posthoc = {f"ema_{std}": average.model for std, average in self.posthoc.items()}
        least = {"least_val_loss": self.least} if self.least else {}
        return {"model": self.placement.module, "ema": self.ema.model, **posthoc, **least}

    @property
    def _environment(self) -> dict[str, str | int]:
        return {
            "processes": self.accelerator.num_processes,
            "device": device_name(self.accelerator.device),
            "precision": self.accelerator.mixed_precision,
            "torch": torch.__version__,
        }
