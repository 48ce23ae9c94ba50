"""Work that several processes share, on one machine or several: its parts are files in a folder that all of them see.

    work = SharedWork(folder, job="2,000 samples of this run", parts=["a.json", "b.json"])
    for file in work.claim():
        ...                         # compute, and write the file
    with work.closing() as last:
        if last:
            ...                     # every part is there: assemble them

Nothing is sent between the processes. One that is killed loses its locks, and its unfinished parts are done by the
others, or when the same work is started again. On a file system without locks each process does all missing parts.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import UserError
from .storage import atomic_write, load_json

UNFINISHED = ".unfinished"
"""Name of the folder, in that of the results."""
JOB = "job.json"
"""In the folder for as long as the work is not finished."""
POLL = 0.5
"""Seconds between checks of the parts of other processes."""


def job_in(folder: Path) -> str | None:
    """Return the job whose unfinished parts are in a folder; None if there are none."""
    file = folder / JOB
    try:
        return load_json(file).get("job") if file.exists() else None
    except UserError:
        if file.exists():
            raise
        return None  # removed meanwhile


@contextmanager
def kept_if_begun(folder: Path) -> Iterator[None]:
    """Remove the folder of unfinished work, and that of the results, after a mistake that came before any part."""
    try:
        yield
    except UserError:
        if not any(file.name != JOB for file in folder.glob("[!.]*")):
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):
                folder.parent.rmdir()
        raise


class SharedWork:
    """The unfinished parts of a job. The folder exists until all of them are there and were assembled."""

    def __init__(self, folder: Path, job: str, parts: Sequence[str] = ()):
        """`job` identifies what is done; parts are names of files. Raise UserError if the folder has another job."""
        self.folder, self.job = folder, folder / JOB
        self.parts = [folder / name for name in parts]
        while not self.job.exists():  # again, if another process removes the folder after the same job meanwhile
            with suppress(FileNotFoundError), _lock_of(folder / f".{JOB}"), atomic_write(self.job) as file:
                file.write_text(json.dumps({"job": job}), encoding="utf-8")
        if job_in(folder) not in (job, None):
            raise UserError(f"{folder}: holds the beginning of other work; remove it, or choose another folder")

    @property
    def missing(self) -> list[Path]:
        """The parts that are not there yet; none once the job is finished."""
        return [part for part in self.parts if not part.exists()] if self.job.exists() else []

    def claim(self) -> Iterator[Path]:
        """Yield each part that is missing and that no other process holds, for the caller to write."""
        worked = True
        while worked:  # again, for parts of processes that were killed meanwhile
            worked = False
            for part in self.missing:
                with self._locked(part.name) as mine:
                    if mine and not part.exists():
                        worked = True
                        yield part

    @contextmanager
    def closing(self) -> Iterator[bool]:
        """Yield whether it is this process that assembles the parts; then the folder is removed."""
        if self.missing:
            yield False
            return
        with self._locked("closing", wait=True) as mine:
            last = mine and not self.missing  # unless the same job was finished, and begun again, meanwhile
            yield last
            if last:
                finished = self.folder.with_name(f"{self.folder.name}.finished")
                shutil.rmtree(finished, ignore_errors=True)  # of a process that was killed below
                with _lock_of(self.folder / f".{JOB}"):
                    self.folder.rename(finished)  # at once: no process sees half of it
                shutil.rmtree(finished, ignore_errors=True)

    @contextmanager
    def _locked(self, name: str, wait: bool = False) -> Iterator[bool]:
        """Yield whether this process holds the lock of this name, of a job that is not finished."""
        with _lock_of(self.folder / f".{name}", wait) as mine:
            yield mine and self.job.exists()
        if not self.job.exists():  # finished meanwhile: the lock has made the folder again
            shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def _lock_of(path: Path, wait: bool = True) -> Iterator[bool]:
    """Yield whether this process holds the lock of that path; on a file system without locks each of them does."""
    from filelock import FileLock, Timeout

    lock = FileLock(path.with_name(f"{path.name}.lock"))
    while not lock.is_locked:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=-1 if wait else 0)
        except (FileNotFoundError, FileExistsError):  # the folder was removed meanwhile
            if path.parent.is_file():
                raise
        except Timeout:
            yield False
            return
        except NotImplementedError:
            break
    try:
        yield True
    finally:
        lock.release()
