"""Sampling by several processes, or by one that was killed and is started again: the same images."""

import json
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import torch

from ..core.progress import no_progress
from ..core.shared_work import POLL, UNFINISHED, SharedWork, kept_if_begun
from ..core.storage import atomic_write, load_tensors, save_tensors, sha256_of_tensors
from ..data.decoding import decode
from ..sampling.generate import PlannedBatch, SampleBatch, SampleConfig, Sampler
from .config import Config
from .figures import save_grid
from .samples import GRID, Names, grid_columns, sources_of, write_images, write_metadata


def job_of(sampler: Sampler, config: SampleConfig, purpose: str = "") -> str:
    """Return what distinguishes one sampling from another: the settings and the weights.

    purpose: identifies the conditions, if they are temporary files.
    """
    settings = config.model_dump(mode="json", exclude={"conditions"} if purpose else None)
    return json.dumps([purpose, settings, sha256_of_tensors(sampler.denoiser.state_dict())])


def sample_to_folder(
    sampler: Sampler, config: SampleConfig, folder: Path, own: Config, progress: Callable = no_progress
) -> int | None:
    """Sample what is missing in a folder, and return the number of images in it once it is complete; before that, None.

    Any number of processes may do so at the same time, in the same folder and with the same settings: each batch is
    sampled by one of them, and the last to finish writes metadata.jsonl and grid.png. Each batch is on the disk before
    the next is sampled. Raise UserError if the folder holds the beginning of another sampling.
    """
    values = sampler.values(config)
    names, conditions = Names(), own.inputs
    turns = ({name: turn[i % len(turn)].word for name, turn in values.items()} for i in range(config.num_images))
    stems = [names(sources_of(turn, conditions)) for turn in turns]
    planned = list(sampler.plan(config, values))
    parts = [f"{indices[0]:08d}.json" for indices, _ in planned]
    work = SharedWork(folder / UNFINISHED, job_of(sampler, config), parts)
    for file, batch in _claimed(work, sampler, config, progress):
        first = batch.seeds[0] - config.seed
        records = write_images(batch, stems[first : first + len(batch.seeds)], folder, own.data, conditions)
        with atomic_write(file) as partial:
            partial.write_text(json.dumps(records), encoding="utf-8")
    with work.closing() as last:
        if not last:
            return None
        records = [record for part in work.parts for record in json.loads(part.read_text(encoding="utf-8"))]
        write_metadata(records, folder)
        if len({size for _, size in planned}) == 1:
            files = [{"path": str(folder / record["file_name"]), "bytes": None} for record in records[:GRID]]
            channels, bit_depth = own.data.channels or 1, own.data.bit_depth or 8
            pixels = torch.stack([decode(file, channels, bit_depth, own.data.value_range) for file in files])
            save_grid(pixels, bit_depth, folder / "grid.png", grid_columns(values))
        return len(records)


class SharedSamples:
    """Samples for evaluations of a run, in files until `close`, made by all processes that evaluate the same."""

    def __init__(self, folder: Path):
        """folder: of the run's evaluations."""
        self.folder = folder
        self._works: list[SharedWork] = []

    def __call__(
        self, sampler: Sampler, config: SampleConfig, progress: Callable = no_progress, purpose: str = ""
    ) -> SampleBatch:
        """Return all samples, once other processes have finished theirs; `purpose` as in `job_of`."""
        work = self.assist(sampler, config, progress, purpose)
        while work.missing:
            time.sleep(POLL)
            self._add(work, sampler, config, progress)  # in place of a process that was killed
        self._works.append(work)
        pixels, values = torch.cat([load_tensors(part)["pixels"] for part in work.parts]), sampler.values(config)
        seeds = list(range(config.seed, config.seed + len(pixels)))
        words = {name: [turn[i % len(turn)].word for i in range(len(pixels))] for name, turn in values.items()}
        return SampleBatch(pixels, seeds, words)

    def assist(
        self, sampler: Sampler, config: SampleConfig, progress: Callable = no_progress, purpose: str = ""
    ) -> SharedWork:
        """Make samples that another process calls for with the same arguments, until none is left to begin."""
        job = job_of(sampler, config, purpose)
        folder = self.folder / f"{UNFINISHED}-{sha256(job.encode()).hexdigest()[:12]}"
        planned = sampler.plan(config, sampler.values(config))
        work = SharedWork(folder, job, [f"{indices[0]:08d}.safetensors" for indices, _ in planned])
        self._add(work, sampler, config, progress)
        return work

    def _add(self, work: SharedWork, sampler: Sampler, config: SampleConfig, progress: Callable) -> None:
        with kept_if_begun(work.folder):
            for file, batch in _claimed(work, sampler, config, progress):
                with atomic_write(file) as partial:
                    save_tensors(partial, {"pixels": batch.pixels})

    def close(self) -> None:
        """Remove the files, once the evaluation is saved."""
        for work in self._works:
            with work.closing():
                pass


def _claimed(
    work: SharedWork, sampler: Sampler, config: SampleConfig, progress: Callable
) -> Iterator[tuple[Path, SampleBatch]]:
    """Yield each batch that is missing, and that no other process samples, with the file to write for it."""
    file = Path()

    def choose(planned: list[PlannedBatch]) -> Iterator[PlannedBatch]:
        nonlocal file
        by_name = dict(zip((part.name for part in work.parts), planned, strict=True))
        for file in work.claim():
            yield by_name[file.name]

    for batch in sampler.sample(config, progress, choose=choose):
        yield file, batch
