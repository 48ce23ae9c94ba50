"""What the page makes: samples of a run, with the weights kept in memory, as files to download."""

import math
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ..conditions.base import ConditionConfig
from ..conditions.label import LabelConfig
from ..core.runtime import default_device
from ..models.denoiser import Denoiser
from ..models.saving import WEIGHTS
from ..runs.edit import EditConfig, read_edit
from ..runs.figures import to_pil
from ..runs.run import Run
from ..runs.samples import encode_image, save_samples
from ..sampling.generate import SampleBatch, SampleConfig, Sampler
from .forms import MAX_IMAGES, Form
from .streaming import Finished, Frame, Switch, stream
from .uploads import MAX_SAMPLE_PIXELS

INPUTS = "inputs"
"""Folder, in an archive, of what was edited."""
KEPT = 2
"""Networks in memory."""
BATCH_PIXELS = 2**20
"""Pixels of a batch, over all its images; more images make more batches."""


@dataclass(frozen=True)
class Results:
    """What a visitor takes away."""

    command: str
    """The line that makes the same without the page."""
    archive: Path
    """A .zip of the files that the command writes; of an edit also its inputs."""


@dataclass(frozen=True)
class Samples(Results):
    """The images of one sampling, and their files."""

    run: Path
    """The run folder."""
    pixels: Tensor
    """(N, C, H, W) integers of the run's bit depth."""
    captions: list[str]


R = TypeVar("R", bound=Results | None)
Part = Frame | Finished[Samples | None]


@dataclass
class Session:
    """What belongs to one visitor."""

    switch: Switch = field(default_factory=Switch)
    samples: Samples | None = None
    selected: int = 0
    """Index of the sample that was clicked."""
    edits: Samples | None = None
    predicted: Results | None = None

    def close(self) -> None:
        """Stop what is being made, and remove the files."""
        self.switch.off = True
        self.keep(None)
        self.keep_edits(None)
        self.keep_predicted(None)

    def keep(self, samples: Samples | None) -> None:
        """Replace the samples, and remove the files of the former ones."""
        self.samples, self.selected = _replaced(self.samples, samples), 0

    def keep_edits(self, edits: Samples | None) -> None:
        """Replace the edits, and remove the files of the former ones."""
        self.edits = _replaced(self.edits, edits)

    def keep_predicted(self, predicted: Results | None) -> None:
        """Replace the prediction, and remove the files of the former one."""
        self.predicted = _replaced(self.predicted, predicted)


def _replaced(former: Results | None, results: R) -> R:
    if former:
        shutil.rmtree(former.archive.parent, ignore_errors=True)
    return results


class Studio:
    """Samples from runs. At most KEPT networks stay in memory, until newer weights are published."""

    def __init__(self, folder: Path):
        """folder: for the files to download."""
        self.folder = folder
        self._denoisers: OrderedDict[tuple[str, int], Denoiser] = OrderedDict()

    def sampler(self, run: Run, config: SampleConfig) -> Sampler:
        """Return the sampler of a run. Raise UserError if it has no weights yet, or damaged ones."""
        weights = run.folder / "model" / WEIGHTS
        key = str(weights), weights.stat().st_mtime_ns if weights.exists() else 0
        if key not in self._denoisers:
            self._denoisers[key] = run.denoiser().to(default_device())
        self._denoisers.move_to_end(key)
        while len(self._denoisers) > KEPT:
            self._denoisers.popitem(last=False)
        return run.sampler(config, self._denoisers[key])

    def sample(self, form: Form, config: SampleConfig, switch: Switch) -> Iterator[Part]:
        """Yield frames, and at last the samples; None if stopped before any is complete."""
        sampler, config = self._prepared(form, config)

        def finish(batches: Iterable[SampleBatch]) -> Samples | None:
            with self.home(_title(form, config)) as folder:
                return save(form, batches, folder, lambda number: form.command(_of(number, config)))

        yield from stream(partial(sampler.sample, config), finish, switch, _batches(config))

    def edit(
        self, form: Form, config: SampleConfig, pixels: Tensor, mask: Tensor, strength: float, switch: Switch
    ) -> Iterator[Part]:
        """Yield frames, and at last the samples; None if stopped before any is complete.

        pixels: (C, H, W) integers of the run's bit depth. mask: (1, H, W) bool, what is generated anew; the other
        pixels come back as they are. Without any, all of the image is varied by the strength.
        """
        sampler, config = self._prepared(form, config)
        with self.home(_title(form, config)) as folder:
            suffix, content = encode_image(pixels, sampler.bit_depth, form.own.data.value_range)
            inputs = folder / INPUTS
            inputs.mkdir(parents=True)
            image, painted = inputs / f"image{suffix}", inputs / "mask.png"
            image.write_bytes(content)
            kind: dict = {"mask": str(painted)} if mask.any() else {"strength": strength}
            if mask.any():
                to_pil(255 * mask.to(torch.uint8), 8).save(painted)
            edit = read_edit(EditConfig(**kind, samples=config.num_images), [image], form.own)
            config = form.edit_config(config, edit)

            def finish(batches: Iterable[SampleBatch]) -> Samples | None:
                return save(form, batches, folder, command, edited=Path(INPUTS) / image.name)

            def command(number: int) -> str:
                named = {"mask": f"{INPUTS}/mask.png"} if mask.any() else {"strength": f"{strength:g}"}
                words = [f"{INPUTS}/{image.name}", *(word for key in named for word in (f"--{key}", named[key]))]
                return form.edit_command(config, edit, [*words, "--samples", str(number)])

            yield from stream(partial(sampler.sample, config, edit=edit), finish, switch, _batches(config))

    @contextmanager
    def home(self, name: str) -> Iterator[Path]:
        """Yield the path of a folder for results; nothing remains of it but the archive beside it."""
        home = Path(tempfile.mkdtemp(dir=self.folder))
        folder = home / name
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # there is an archive
                home.rmdir()

    def _prepared(self, form: Form, config: SampleConfig) -> tuple[Sampler, SampleConfig]:
        """Return the sampler, and the config with a size of batches that suits its images."""
        sampler = self.sampler(form.run, config)
        largest = MAX_SAMPLE_PIXELS if config.tile else math.prod(sampler.shape[1:])
        most = max(1, BATCH_PIXELS // largest)
        return sampler, config.model_copy(update={"batch_size": min(config.batch_size, most)})


def save(
    form: Form,
    batches: Iterable[SampleBatch],
    folder: Path,
    command: Callable[[int], str],
    edited: Path | None = None,
) -> Samples | None:
    """Write the files of a sampling as an archive, and return the samples; None if there are none.

    Of an upload its name alone is recorded. command: of a number of images; edited: the file that they are edits of.
    """
    kept: list[SampleBatch] = []

    def keep() -> Iterator[SampleBatch]:
        for batch in batches:
            named = {name: [form.as_given(name, word) for word in turn] for name, turn in batch.conditions.items()}
            kept.append(replace(batch, conditions=named))
            yield kept[-1]

    number = save_samples(
        keep(), folder, form.own.data, form.own.inputs, edited=[edited] * MAX_IMAGES if edited else []
    )
    if not number:
        return None
    archive = Path(shutil.make_archive(str(folder), "zip", folder))
    batch = SampleBatch.concatenate(kept)
    captions = [caption_of(form.own.inputs, batch, place) for place in range(number)]
    return Samples(command(number), archive, form.run.folder, batch.pixels, captions)


def _title(form: Form, config: SampleConfig) -> str:
    return f"{form.run.folder.resolve().name}_seed{config.seed}"


def _of(number: int, config: SampleConfig) -> SampleConfig:
    return config.model_copy(update={"num_images": number})


def _batches(config: SampleConfig) -> int:
    return -(-config.num_images // config.batch_size)


def caption_of(conditions: dict[str, ConditionConfig], batch: SampleBatch, place: int) -> str:
    """Return what an image was sampled for, in a few words."""
    words = []
    for name, turn in batch.conditions.items():
        word, condition = turn[place], conditions[name]
        if isinstance(condition, LabelConfig) and word is not None:
            word = condition.class_names[word]
        if isinstance(word, list):
            word = ", ".join(f"{number:g}" for number in word)
        words.append(f"{word}" if word is not None else "")
    return " · ".join(filter(None, words)) or f"seed {batch.seeds[place]}"
