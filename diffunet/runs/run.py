"""A run folder and objects made from it. Sampling, evaluating, exporting and resuming need nothing else."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..core.errors import UserError, did_you_mean
from ..core.progress import no_progress
from ..core.runtime import default_device
from ..core.settings import merge, settings_from
from ..core.storage import atomic_write, check_state_dict, load_json, load_tensors, save_tensors
from ..models.autoencoder import load_autoencoder
from ..models.codec import Codec
from ..models.denoiser import Denoiser
from ..models.meta import on_meta
from ..models.saving import WEIGHTS
from ..sampling.generate import SampleBatch, SampleConfig, Sampler
from ..training.checkpoint import list_checkpoints
from ..training.ema import posthoc_ema, snapshot_near
from .config import Config, ModelConfig, RunConfig
from .examples import EXAMPLES, read_examples
from .migration import migrate_config, migrate_folder, migrate_model

CODEC = "codec"
"""Folder in model/ with the autoencoder of a run of latents."""
EMA_FILE = "ema.json"
"""File beside weights whose EMA length was chosen after the training: the length, and the measurements behind it."""
FORMAT = 2
"""Of run folders, in their run.json. 1: read and resumed; 0, without that file: sampled and evaluated, not resumed."""
LOCK_SECONDS = 10
"""How long to wait for a training that was killed: its data workers notice within five seconds."""

C = TypeVar("C", bound=RunConfig)


def load_run(folder: str | Path) -> "Run":
    """Return the run in a folder. Raise UserError if the folder is no run of images."""
    run = Run(folder)
    run.config()
    return run


class Run:
    """A folder with config.yaml, model/ (the network and its newest EMA weights), checkpoints, logs and samples."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    # ── the folder ────────────────────────────────────────────────────────────────────────────────

    @property
    def exists(self) -> bool:
        return (self.folder / "config.yaml").is_file()

    @property
    def format(self) -> int:
        """Format of the folder. Raise UserError if run.json is damaged."""
        return self._record()[0]

    @property
    def task(self) -> str:
        """The kind of training, such as generation."""
        return self._record()[1]

    def _record(self) -> tuple[int, str]:
        file = self.folder / "run.json"
        if not file.exists():
            return 0, Config.task
        record = load_json(file)
        found, task = record.get("format"), record.get("task", Config.task)
        if type(found) is not int or found < 1 or not isinstance(task, str):
            raise UserError(f"{file}: damaged (expected a format from 1 to {FORMAT})")
        return found, task

    @property
    def is_new(self) -> bool:
        """Whether its training has saved nothing yet."""
        return not (list_checkpoints(self.folder) or (self.folder / "model" / WEIGHTS).exists())

    def files(self) -> list[Path]:
        """Return the contents of the folder, without hidden files."""
        return [file for file in self.folder.glob("*") if not file.name.startswith(".")]

    def config(self, kind: type[C] = Config) -> C:
        """Return the resolved configuration. Raise UserError if the folder is no run of this kind."""
        if not self.exists:
            others = [file.name for file in self.folder.parent.glob("*") if file.name != self.folder.name]
            problem = "no config.yaml, so not a run folder" if self.folder.is_dir() else "no such run folder"
            raise UserError(f"{self.folder}: {problem}{did_you_mean(self.folder.name, others)}")
        if self.format > FORMAT:
            raise UserError(f"{self.folder}: format {self.format}, but this diffunet reads up to {FORMAT}; upgrade it")
        if self.task != kind.task:
            raise UserError(f"{self.folder}: a run of {self.task}, not of {kind.task}")
        file = self.folder / "config.yaml"
        try:
            config = settings_from(file, kind, transform=migrate_config if self.format < 2 else None)
        except UserError as mistake:
            if self.format:
                raise
            old = "the run is older than run formats and cannot be read by this version"
            raise UserError(f"{str(mistake).splitlines()[0]}; {old}") from None
        if self.format and not file.read_text(encoding="utf-8").rstrip().endswith("\n..."):
            raise UserError(f"{file}: truncated, its last line is not ...")
        return config

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Make the folder and keep other trainings out. Raise UserError while another one is running there."""
        from filelock import FileLock, Timeout

        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=LOCK_SECONDS)
        except Timeout:
            raise UserError(f"{self.folder}: another process is training here; stop it first") from None
        except NotImplementedError:  # a file system without locks
            pass
        try:
            yield
        finally:
            lock.release()

    def check_not_overwriting(self, overwrite: bool) -> None:
        """Raise UserError if the folder is not empty, unless it is a run and `overwrite` is true."""
        if not self.folder.exists() or (self.folder.is_dir() and not self.files()):
            return
        if not self.exists:
            raise UserError(f"{self.folder}: exists and is not a run folder; choose another with --train.output")
        if not overwrite:
            raise UserError(
                f"{self.folder}: already holds a run; --resume {self.folder} continues it, "
                "--train.output NAME starts another, --overwrite replaces it"
            )

    def create(
        self,
        config: RunConfig,
        overwrite: bool = False,
        files: Mapping[str, bytes] = {},
        notes: Iterable[str] = (),
    ) -> None:
        """Make the folder, without the run that was there if `overwrite`, and write the configuration and `files`.

        notes: comments of config.yaml, by default those that are there.
        """
        for file in self.files() if overwrite else []:
            if file.is_dir():
                shutil.rmtree(file)
            elif file.name != "config.yaml":  # without it, an interrupted removal would be no run
                file.unlink()
        migrate_folder(self.folder)
        comments = [f"# {note}" for note in notes] or self._comments()
        written = "".join(f"{line}\n" for line in comments) + config.to_yaml()
        texts = {"run.json": json.dumps({"format": FORMAT, "task": config.task}), "config.yaml": written}
        if isinstance(config, ModelConfig):
            model = ModelConfig(unet=config.unet, time=config.time, conditions=config.conditions)
            texts["model/config.json"] = model.model_dump_json(indent=2)
        for name, content in {**{name: text.encode() for name, text in texts.items()}, **files}.items():
            with atomic_write(self.folder / name) as file:
                file.write_bytes(content)

    def _comments(self) -> list[str]:
        """Return the comments at the top of config.yaml."""
        file = self.folder / "config.yaml"
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        return list(takewhile(lambda line: line.startswith("#"), lines))

    # ── weights ───────────────────────────────────────────────────────────────────────────────────

    def publish(self, ema: nn.Module, chosen_by: dict[str, Any] | None = None) -> None:
        """Write these weights to model/, with a record of how their EMA length was chosen, if it was."""
        with atomic_write(self.folder / "model" / WEIGHTS) as file:
            save_tensors(file, ema.state_dict())
        record = self.folder / "model" / EMA_FILE
        record.unlink(missing_ok=True)
        if chosen_by:
            with atomic_write(record) as file:
                file.write_text(json.dumps(chosen_by, indent=2), encoding="utf-8")

    def denoiser(self) -> Denoiser:
        """Return the denoiser with the newest EMA weights, in evaluation mode. Raise UserError if they do not fit."""
        return load_denoiser(self.folder / "model")

    def posthoc_ema(self, std: float, until: float = 1.0) -> Denoiser:
        """Return the denoiser with an EMA of length `std`, as of the share `until` of the training so far.

        Raise UserError without snapshots.
        """
        tensors = posthoc_ema(self.folder, std, until)
        return _denoiser_with(tensors, self.folder / "model", self.folder / "ema_snapshots")

    def snapshot(self, share: float) -> Denoiser:
        """Return the denoiser as it was after this share of the training so far. Raise UserError without snapshots."""
        tensors = snapshot_near(self.folder, share)
        if tensors is None:
            raise UserError(f"{self.folder}/ema_snapshots: no snapshot to guide with yet; leave sample.guide out")
        return _denoiser_with(tensors, self.folder / "model", self.folder / "ema_snapshots")

    # ── samples ───────────────────────────────────────────────────────────────────────────────────

    def codec(self, config: Config, device: torch.device | None = None) -> Codec | None:
        """Return what makes images of the latents that the run samples; None if it samples images."""
        if not config.codec.pretrained:
            return None
        autoencoder = load_autoencoder(self.folder / "model" / CODEC)
        return Codec(autoencoder, config.codec.shift, config.codec.scale).to(device)

    def sampler(self, config: SampleConfig, denoiser: Denoiser | None = None) -> Sampler:
        """Return a sampler of the run's EMA weights, or of `denoiser`, with the guide that `config` names."""
        own = self.config()
        denoiser = denoiser or self.denoiser().to(default_device())
        guide = None
        if config.guide and config.guidance_scale != 1:
            guide = self.snapshot(config.guide).to(next(denoiser.parameters()).device)
        return Sampler(
            denoiser,
            own.build_objective(),
            shape=(own.data.channels or 1, *own.data.size),
            bit_depth=own.data.bit_depth or 8,
            conditions=own.inputs,
            folder=self.folder / "model",
            examples=read_examples(self.folder / EXAMPLES, own.inputs),
            guide=guide,
            codec=self.codec(own, next(denoiser.parameters()).device),
        )

    def sample(self, progress: Callable = no_progress, **settings: Any) -> SampleBatch:
        """Return images sampled by the run's section `sample`, with these `settings` laid over it.

            load_run("runs/digits").sample(num_images=4, conditions={"label": 7}, steps=20).pixels

        Raise UserError for a setting, class or sampler that does not exist.
        """
        config = settings_from(self.config().sample, SampleConfig, transform=lambda values: merge(values, settings))
        return SampleBatch.concatenate(self.sampler(config).sample(config, progress))


def load_denoiser(folder: str | Path) -> Denoiser:
    """Return the denoiser of a run's model/ folder, which is self-contained. UserError if its files do not fit."""
    folder = Path(folder)
    if not (folder / WEIGHTS).exists():
        raise UserError(f"{folder / WEIGHTS}: missing; the run has no checkpoint yet")
    try:
        tensors = load_tensors(folder / WEIGHTS)
    except UserError as damage:
        raise UserError(f"{damage}; for a run, python train.py --resume RUN writes it again") from None
    return _denoiser_with(tensors, folder, folder / WEIGHTS)


def _denoiser_with(tensors: dict[str, Tensor], model: Path, source: Path) -> Denoiser:
    """Return the denoiser of a model/ folder with tensors that were read from `source`, in evaluation mode."""
    config = settings_from(model / "config.json", ModelConfig, transform=migrate_model)
    try:
        with on_meta():  # refuses an absurd size before it is allocated
            check_state_dict(config.build_denoiser().state_dict(), tensors, source)
    except ValueError as impossible:
        raise UserError(f"{model / 'config.json'}: {impossible}") from None
    denoiser = config.build_denoiser()
    denoiser.load_state_dict(tensors)
    return denoiser.eval().requires_grad_(False)
