"""A run folder <-> a ready denoiser. Nothing else is needed to sample, evaluate, export or resume."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

from ..training.ema import posthoc_ema, snapshot_near
from .config import Config, ModelConfig
from ..models.denoiser import Denoiser
from ..core.settings import settings_from
from ..models.meta import on_meta
from ..core.errors import UserError, did_you_mean
from ..training.checkpoint import list_checkpoints
from ..core.storage import load_json, load_strictly, load_tensors, check_state_dict, save_tensors, atomic_write
from ..models.unet import UNet, UNetConfig

WEIGHTS = "diffusion_pytorch_model.safetensors"
"""The file name that diffusers gives to the weights of a model."""
AVERAGE = "average.json"
"""Beside weights whose average was chosen after the training: its length, and what it was chosen by."""
FORMAT = 1
"""Of run folders, in their run.json. 0, without that file: drawn from and measured, but not resumed."""
PATIENCE = 10
"""Seconds to wait for a training that was killed: its data workers notice it within five."""


class Run:
    """A folder with config.yaml, model/ (the network and its newest EMA weights) and what else its training left."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    @property
    def exists(self) -> bool:
        return (self.folder / "config.yaml").is_file()

    def config(self) -> Config:
        """The settled configuration. UserError if the folder is no run."""
        if not self.exists:
            near = ""
            if self.folder.parent.is_dir():
                near = did_you_mean(self.folder.name, [f.name for f in self.folder.parent.iterdir()])
            what = "has no config.yaml, so it is not a run folder" if self.folder.is_dir() else "no such run folder"
            raise UserError(f"{self.folder}: {what}{near}")
        if self.format > FORMAT:
            raise UserError(f"{self.folder}: format {self.format}, and this diffunet reads up to {FORMAT}; upgrade it")
        file = self.folder / "config.yaml"
        try:
            config = settings_from(file, Config)
        except UserError as mistake:
            if self.format:
                raise
            old = "the run is older than the formats of run folders, and this diffunet cannot read it"
            raise UserError(f"{str(mistake).splitlines()[0]}; {old}") from None
        if self.format and not file.read_text(encoding="utf-8").rstrip().endswith("\n..."):
            raise UserError(f"{file}: cut off, its last line is not ...; a part of it would be another run")
        # Where pictures go is for those to say who draw them: a folder from elsewhere might name any place.
        return config.model_copy(update={"sample": config.sample.model_copy(update={"output": None})})

    @property
    def format(self) -> int:
        """The format of the folder. UserError if its run.json is damaged."""
        if not (file := self.folder / "run.json").exists():
            return 0
        found = load_json(file).get("format")
        if type(found) is not int or found < 1:
            raise UserError(f"{file}: damaged (expected a format from 1 to {FORMAT})")
        return found

    @property
    def blank(self) -> bool:
        """Whether nothing of its training was saved yet."""
        return not (list_checkpoints(self.folder) or (self.folder / "model" / WEIGHTS).exists())

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other trainings out of the folder, which is made. UserError while another one is at work there."""
        from filelock import FileLock, Timeout

        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout:
            raise UserError(f"{self.folder}: another process is training here; stop that first") from None
        except NotImplementedError:                            # a file system without locks
            pass
        try:
            yield
        finally:
            lock.release()

    def check_not_overwriting(self, overwrite: bool) -> None:
        """UserError if something stands there already, unless it is a run and `overwrite` gives it up."""
        if not self.folder.exists() or (self.folder.is_dir() and not self.files()):
            return
        if not self.exists:
            raise UserError(f"{self.folder}: exists and is not a run folder; name another with --train.output")
        if not overwrite:
            raise UserError(
                f"{self.folder}: already holds a run; --resume {self.folder} goes on with it, "
                "--train.output NAME makes another, --overwrite replaces it"
            )

    def begin(self, config: Config, overwrite: bool = False) -> None:
        """Makes the folder, if need be without the run that was there, and writes every value of the configuration."""
        for file in self.files() if overwrite else []:
            if file.is_dir():
                shutil.rmtree(file)
            elif file.name != "config.yaml":                   # without it, what a kill leaves would be no run
                file.unlink()
        model = ModelConfig(unet=config.unet, conditions=config.conditions)
        for name, text in (
            ("run.json", json.dumps({"format": FORMAT})),
            ("config.yaml", config.to_yaml()),
            ("model/config.json", model.model_dump_json(indent=2)),
        ):
            with atomic_write(self.folder / name) as file:
                file.write_text(text, encoding="utf-8")

    def files(self) -> list[Path]:
        """What lies in the folder, without what begins with a dot: that is nobody's work."""
        there = self.folder.iterdir() if self.folder.is_dir() else []
        return [file for file in there if not file.name.startswith(".")]

    def publish(self, ema: nn.Module) -> None:
        """Puts these weights into model/."""
        with atomic_write(self.folder / "model" / WEIGHTS) as file:
            save_tensors(file, ema.state_dict())
        (self.folder / "model" / AVERAGE).unlink(missing_ok=True)             # it told of other weights

    def denoiser(self) -> Denoiser:
        """The denoiser with the newest EMA weights, ready to sample. UserError if they are missing or do not fit."""
        return load_denoiser(self.folder / "model")

    def averaged(self, length: float, until: float = 1.0) -> Denoiser:
        """The denoiser with an average of its weights of this length, as of this share of the training so far.

        UserError without snapshots to make it of.
        """
        return _denoiser_with(posthoc_ema(self.folder, length, until), self.folder / "model", self.folder / "averages")

    def snapshot(self, share: float) -> Denoiser:
        """The denoiser as it was after this share of the training so far. UserError if the run has no snapshots."""
        tensors = snapshot_near(self.folder, share)
        if tensors is None:
            raise UserError(f"{self.folder}/averages: no snapshot yet that could guide; leave sample.guide out")
        return _denoiser_with(tensors, self.folder / "model", self.folder / "averages")


def load_denoiser(folder: str | Path) -> Denoiser:
    """The denoiser of a run's model/ folder, which needs nothing beside it. UserError if its files do not fit."""
    folder = Path(folder)
    if not (folder / WEIGHTS).exists():
        raise UserError(f"{folder / WEIGHTS}: missing; the run has no checkpoint yet")
    try:
        tensors = load_tensors(folder / WEIGHTS)
    except UserError as damage:
        raise UserError(f"{damage}; if it is a run's, python train.py --resume RUN writes it anew") from None
    return _denoiser_with(tensors, folder, folder / WEIGHTS)


def _denoiser_with(tensors: dict[str, Tensor], model: Path, source: Path) -> Denoiser:
    """The denoiser of a model/ folder with tensors that came from `source`, ready to sample."""
    config = settings_from(model / "config.json", ModelConfig)
    try:
        with on_meta():                                       # so that an absurd size is refused before it is made
            check_state_dict(Denoiser.from_config(config.unet, config.conditions).state_dict(), tensors, source)
    except ValueError as impossible:
        raise UserError(f"{model / 'config.json'}: {impossible}") from None
    denoiser = Denoiser.from_config(config.unet, config.conditions)
    denoiser.load_state_dict(tensors)
    return denoiser.eval().requires_grad_(False)


def save_unet(unet: UNet, folder: str | Path) -> None:
    """Writes a U-Net by itself: config.json and its weights as safetensors."""
    with atomic_write(Path(folder) / "config.json") as file:
        file.write_text(unet.config.model_dump_json(indent=2), encoding="utf-8")
    with atomic_write(Path(folder) / WEIGHTS) as file:
        save_tensors(file, unet.state_dict())


def load_unet(folder: str | Path) -> UNet:
    """The U-Net that `save_unet` wrote, ready to train on. UserError if its files do not fit."""
    folder = Path(folder)
    unet = UNet(settings_from(folder / "config.json", UNetConfig))
    load_strictly(unet, load_tensors(folder / WEIGHTS), folder / WEIGHTS)
    return unet
