"""The training loop: any model, any objective with `loss(model, rng=..., **batch)`, exact to the byte.

Accelerate places, parallelises and scales. What a step does is ours, and a pure function of the seed,
the step and the state in the checkpoint.
"""

import json
import math
import shutil
import signal
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .averages import LENGTHS, Average, list_snapshots, power_share, save_snapshot
from .interruption import Interruption
from .randomness import Order, Randomness, seed_for
from .settings import Settings, UserError
from .storage import load_json, load_strictly, load_tensors, save_tensors, whole_file, whole_folder

if TYPE_CHECKING:
    from accelerate import Accelerator  # costs seconds, and `--help` needs none of it

NON_FINITE_LIMIT = 10
"""Training stops after so many steps in a row whose loss or gradient is not finite."""


class TrainConfig(Settings):
    """How to train, how long, and what to leave in the run folder."""

    output: str = "runs/default"
    """The run folder."""
    steps: int = Field(100_000, ge=1)
    """Optimiser steps in all."""
    minutes: float | None = Field(None, gt=0)
    """Settle `steps` by about this time: the speed is measured first. Previews and checkpoints come on top."""
    batch_size: int = Field(128, ge=1)
    """Examples in a step, all processes together."""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """Parts that each process cuts its share of the batch into, to need less memory."""
    learning_rate: float = Field(2e-4, gt=0)
    """Peak learning rate of AdamW."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """From the peak: no change, or down to zero at the last step."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises to its peak."""
    adam_beta2: float = Field(0.999, gt=0, lt=1)
    """Decay of AdamW's second moment."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's weight decay."""
    max_grad_norm: float = Field(1.0, gt=0)
    """The gradient is scaled down to this norm."""
    ema_decay: float = Field(0.9999, ge=0, lt=1)
    """Decay per step of the weights' moving average, reached by way of (1 + step) / (10 + step)."""
    snapshots: int = Field(16, ge=0)
    """Snapshots of two more averages, from which `diffunet ema` makes one of any length; 0: none."""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Precision of the network; the loss is always fp32. auto: bf16 on a GPU that has it."""
    log_every: int = Field(50, ge=1)
    """Steps between lines of log.jsonl and points of curves.png."""
    checkpoint_every: int = Field(5000, ge=1)
    """Steps between checkpoints; there is one at the end too."""
    keep_checkpoints: int = Field(2, ge=1)
    """Newest checkpoints to keep."""
    preview_every: int = Field(5000, ge=1)
    """Steps between sample grids, drawn as the section `sample` says, and signs of health; also at the end."""
    log_with: str | None = None
    """A tracker that Accelerate knows, such as tensorboard or wandb."""
    seed: int = Field(0, ge=0)
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


class Data(Protocol):
    """What can be trained on: a map-style data set of whole batches, and what to make of one."""

    workers: int

    def __len__(self) -> int: ...
    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]: ...
    def prepare(self, batch: dict[str, Tensor], rng: Randomness) -> dict[str, Tensor]: ...


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
        data: Data,
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
        self.objective, self.data, self.accelerator = objective, data, accelerator
        self.preview, self.publish = preview, publish
        self.step = 0
        self.skipped = 0
        self.non_finite_in_a_row = 0
        self.share = config.batch_size // shares
        self.order = Order(len(data), config.batch_size, config.seed)
        model = model.to(accelerator.device)
        self.ema = Average(model, lambda step: 1 - config.ema_decay_at(step))
        self.averages = {length: Average(model, power_share(length)) for length in LENGTHS if config.snapshots}
        optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=config.learning_rate,
            betas=(0.9, config.adam_beta2),
            weight_decay=config.weight_decay,
            fused=accelerator.device.type in ("cpu", "cuda"),
        )
        self.model, self.optimizer = accelerator.prepare(model.train(), optimizer)
        self._logged = 0                                       # step of the newest line of the log
        self._seconds = 0.0                                    # spent in steps since then
        self.spent = {"steps": 0.0, "previews": 0.0}           # seconds in all, of this process
        self._window: dict[str, list] = defaultdict(lambda: [0.0, 0.0])

    @property
    def _bare_model(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.model)

    # ── the loop ──────────────────────────────────────────────────────────────────────────────────

    def fit(self) -> signal.Signals | None:
        """Trains to `config.steps`. Returns the signal that ended it early, after a checkpoint, if one did."""
        from accelerate.utils import tqdm

        config = self.config
        self.folder.mkdir(parents=True, exist_ok=True)
        batches = self._batches()
        with (
            Interruption(self.accelerator) as interruption,
            tqdm(initial=self.step, total=config.steps, desc="train", unit="step", dynamic_ncols=True) as bar,
        ):
            while self.step < config.steps:
                started = time.monotonic()
                self._train_step([next(batches) for _ in range(config.gradient_accumulation_steps)])
                self._seconds += time.monotonic() - started
                self.step += 1
                bar.update()
                last = self.step == config.steps
                stop = interruption.requested()
                saving = last or stop or self.step % config.checkpoint_every == 0
                previewing = last or self.step % config.preview_every == 0
                if self.accelerator.is_main_process and self._is_snapshot(self.step):
                    save_snapshot(self.folder, self.step, self.averages)
                seen = self._preview() if previewing else {}
                if (saving or previewing or self.step % config.log_every == 0) and (line := self._log(seen)):
                    bar.set_postfix_str(f"loss {line['loss']:.4f}, {line['images_per_second']:.0f} images/s")
                if saving:
                    self.save()
                if stop and not last:
                    return interruption.signal or signal.SIGTERM
        return None

    def rehearse(self, seconds: float) -> float:
        """Trains for about so long without leaving a trace in the folder; seconds per step, agreed by all processes."""
        batches = self._batches()

        def step_seconds() -> float:
            started = time.monotonic()
            self._train_step([next(batches) for _ in range(self.config.gradient_accumulation_steps)])
            self.step += 1
            return time.monotonic() - started

        def agreed(took: list[float]) -> float:
            median = torch.tensor(statistics.median(took), device=self.accelerator.device)
            return float(self.accelerator.reduce(median, "mean"))

        first = agreed([step_seconds() for _ in range(4)][1:])                # the very first one warms up
        return agreed([step_seconds() for _ in range(3 + int(seconds / first))])

    def _is_snapshot(self, step: int) -> bool:
        wanted, steps = self.config.snapshots, self.config.steps
        return step * wanted // steps > (step - 1) * wanted // steps

    def _preview(self) -> dict[str, float]:
        if not self.accelerator.is_main_process:
            return {}
        started = time.monotonic()
        seen = self.preview(self.step, self.ema.model)
        self.spent["previews"] += time.monotonic() - started
        return seen

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        """This process's share of every part of every batch from the present step on."""
        parts = self.config.gradient_accumulation_steps
        indices = (
            self.order.batch(step)[self._positions(part)].tolist()
            for step in range(self.step, self.config.steps)
            for part in range(parts)
        )
        return iter(
            DataLoader(
                self.data,
                batch_sampler=indices,
                collate_fn=_as_it_is,
                num_workers=self.data.workers,
                worker_init_fn=_leave_interrupts_to_the_trainer,
                pin_memory=self.accelerator.device.type == "cuda",
                generator=torch.Generator(),
            )
        )

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
            rng = Randomness.at(config.seed, self.step, positions, config.batch_size, accelerator.device)
            batch = self.data.prepare(send_to_device(batch, accelerator.device, non_blocking=True), rng)
            more_to_come = part < len(parts) - 1
            with accelerator.no_sync(self.model) if more_to_come else nullcontext():
                losses = self.objective.loss(self.model, rng=rng, **batch)
                accelerator.backward(losses["loss"].mean() / len(parts))
            for name, values in losses.items():
                self._count(name, values.detach())
        norm = accelerator.clip_grad_norm_(self.model.parameters(), config.max_grad_norm)
        finite = bool(norm.isfinite())
        if finite or accelerator.scaler:                       # a scaler skips by itself, and learns from it
            self.optimizer.step()
        self.optimizer.zero_grad()
        if finite:
            self._count("grad_norm", norm.detach().reshape(1))
            for average in (self.ema, *self.averages.values()):
                average.update(self._bare_model, self.step)
        self.skipped += not finite
        self.non_finite_in_a_row = 0 if finite else self.non_finite_in_a_row + 1
        if self.non_finite_in_a_row == NON_FINITE_LIMIT:
            raise UserError(
                f"training stopped at step {self.step}: the loss was not finite {NON_FINITE_LIMIT} times in a row; "
                f"the checkpoints in {self.folder} are intact; try a lower train.learning_rate"
            )

    # ── the log ───────────────────────────────────────────────────────────────────────────────────

    def _count(self, name: str, values: Tensor) -> None:
        """Adds to the mean that the next line of the log will show; values that are not finite do not count."""
        finite = values.isfinite()
        total = self._window[name]
        total[0] = total[0] + values.where(finite, 0).sum()
        total[1] = total[1] + finite.sum()

    def _log(self, seen: dict[str, float]) -> dict[str, float]:
        """Writes the means since the last line, and what a preview saw. Empty in all but the main process."""
        names = sorted(self._window)
        totals = torch.tensor([self._window[name] for name in names], device=self.accelerator.device)
        totals = self.accelerator.reduce(totals, "sum").tolist()
        steps, seconds = self.step - self._logged, self._seconds
        self._window.clear()
        self._logged, self._seconds = self.step, 0.0
        self.spent["steps"] += seconds
        if not self.accelerator.is_main_process:
            return {}
        means = {name: total / count for name, (total, count) in zip(names, totals, strict=True) if count}
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
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as log:
            log.write(json.dumps({k: v for k, v in line.items() if v == v}) + "\n")
        self.accelerator.log(line, step=self.step)
        return line

    # ── the checkpoint ────────────────────────────────────────────────────────────────────────────

    def save(self) -> None:
        """Writes the whole state beside the older ones, then removes those that are too many."""
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        checkpoints = self.folder / "checkpoints"
        names = [name for name, _ in self._bare_model.named_parameters()]
        moments = self.optimizer.state_dict()["state"]
        state = {
            "step": self.step,
            "skipped": self.skipped,
            "examples": len(self.data),
            "scaler": self.accelerator.scaler and self.accelerator.scaler.state_dict(),
        }
        with whole_folder(checkpoints / f"step_{self.step:08d}") as folder:
            save_tensors(folder / "model.safetensors", self._bare_model.state_dict())
            for name, average in self._averages_by_name().items():
                save_tensors(folder / f"{name}.safetensors", average.model.state_dict())
            save_tensors(
                folder / "optimizer.safetensors",
                {f"{names[i]}:{key}": value for i, entry in moments.items() for key, value in entry.items()},
            )
            (folder / "state.json").write_text(json.dumps(state, indent=2))
        self.publish(self.ema.model)
        for old in list_checkpoints(self.folder)[: -self.config.keep_checkpoints]:
            old.rename(old.with_name(f".{old.name}.removed"))  # so that a half removed one is no checkpoint
        for remains in checkpoints.glob(".step_*"):
            shutil.rmtree(remains)

    def resume(self) -> None:
        """Goes back to the newest checkpoint of the folder, in every process."""
        checkpoints = list_checkpoints(self.folder)
        if not checkpoints:
            raise UserError(f"{self.folder}: no checkpoint to resume from")
        newest = checkpoints[-1]
        state = load_json(newest / "state.json")
        if state["examples"] != len(self.data):
            raise UserError(
                f"data.path: {len(self.data)} examples, but {newest} was trained on {state['examples']}; "
                "a run can be resumed only on its own data"
            )
        load_strictly(self._bare_model, load_tensors(newest / "model.safetensors"), newest / "model.safetensors")
        for name, average in self._averages_by_name().items():
            file = newest / f"{name}.safetensors"
            load_strictly(average.model, load_tensors(file), file)
        moments: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in load_tensors(newest / "optimizer.safetensors").items():
            parameter, _, key = name.rpartition(":")
            moments[parameter][key] = tensor
        names = [name for name, _ in self._bare_model.named_parameters()]
        if moments and set(moments) != set(names):
            raise UserError(f"{newest}/optimizer.safetensors: does not match the network")
        groups = self.optimizer.state_dict()["param_groups"]
        numbered = {i: moments[name] for i, name in enumerate(names) if name in moments}
        self.optimizer.load_state_dict({"state": numbered, "param_groups": groups})
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.skipped = state["step"], state["skipped"]
        self._logged = self.step
        if self.accelerator.is_main_process:
            _forget_after(self.folder / "log.jsonl", self.step)
            for step, snapshot in list_snapshots(self.folder).items():
                if step > self.step:
                    snapshot.unlink()
        self.accelerator.wait_for_everyone()


    def _averages_by_name(self) -> dict[str, Average]:
        return {"ema": self.ema} | {f"average_{length}": average for length, average in self.averages.items()}


def list_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run folder, oldest first."""
    return sorted((folder / "checkpoints").glob("step_*"))


def _forget_after(log: Path, step: int) -> None:
    """Drops the lines that the resumed run will write again, and one that was cut off."""
    kept = []
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else []:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    with whole_file(log) as file:
        file.write_text("".join(kept), encoding="utf-8")


def _as_it_is(batch):
    return batch


def _leave_interrupts_to_the_trainer(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
