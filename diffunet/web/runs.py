"""The runs that the page offers: those of one folder, by name, and nothing else."""

from dataclasses import dataclass
from pathlib import Path

from ..core.errors import UserError, did_you_mean, printable
from ..runs.config import Config, RunConfig
from ..runs.prediction import PredictionConfig
from ..runs.run import Run

KINDS: dict[str, type[RunConfig]] = {kind.task: kind for kind in (Config, PredictionConfig)}
"""The runs that have tabs, by their tasks: those that sample images, and those that predict."""


@dataclass(frozen=True)
class RunFolder:
    """A run, or a folder of runs. What a client names is looked up in the list, never joined to a path."""

    folder: Path

    def names(self) -> list[str]:
        """Return the names of the runs, the newest first. Links that lead out of the folder are left out."""
        if self._is_run(self.folder):
            return [self.folder.resolve().name]
        inside = self.folder.resolve()
        children = self.folder.iterdir() if self.folder.is_dir() else ()
        runs = [child for child in children if self._is_run(child) and child.resolve().is_relative_to(inside)]
        return [run.name for run in sorted(runs, key=lambda run: (run / "config.yaml").stat().st_mtime, reverse=True)]

    def open(self, name: object) -> Run:
        """Return the run of a name. Raise UserError for another name, or if its configuration cannot be read."""
        names = self.names()
        if name not in names:
            raise UserError(f"{printable(name, 60)}: no such run{did_you_mean(str(name), names)}")
        run = Run(self.folder if self._is_run(self.folder) else self.folder / str(name))
        run.config(KINDS[run.task])
        return run

    def check(self) -> None:
        """Raise UserError if there is no run."""
        if not self.folder.exists():
            raise UserError(f"{self.folder}: no such folder; python train.py makes a run, in runs/default")
        if not self.names():
            raise UserError(f"{self.folder}: no run to show in it; python train.py makes one, in runs/default")

    @staticmethod
    def _is_run(folder: Path) -> bool:
        run = Run(folder)
        try:
            return not folder.name.startswith(".") and run.exists and run.task in KINDS
        except UserError:  # listed, so that the page shows what is damaged
            return True
