"""How fast a training is on this machine, how much memory it takes, and what holds it back."""

import math
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.runtime import synchronize
from .loader import TrainingData, fetch
from ..core.rng import EpochShuffle, BatchRNG
from ..core.errors import UserError, ran_out_of_memory
from .trainer import TrainConfig, Trainer

MEMORY_MARGIN = 0.2
"""Share of the memory that a batch size leaves free: for previews, and for what the allocator wastes."""
ACTIVATION_OVERHEAD = 1.5
"""Memory in which a picture is worked on, as a multiple of what is kept of it."""
OPTIMIZER_COPIES = 3
"""Gradient and two moments, which are made in the first step."""
TRAINING = 3
"""Operations of a training step in those of a forward pass: the backward pass has twice as many."""

TrainerFor = Callable[[TrainConfig, TrainingData], Trainer]


@dataclass(frozen=True)
class Throughput:
    """Of a training as it is configured, all processes together."""

    images_per_second: float
    without_data: float
    """The same, one batch again and again."""
    data_alone: float
    """Batches made ready for the network, and no training."""
    bytes_per_image: float
    """What a step keeps of each."""
    memory: int
    """Bytes at most: of the process on a CPU, of the tensors on a GPU."""
    ceiling: float
    """Operations per second of the fastest 3×3 convolution, in the precision of the training."""


@dataclass
class SameBatch:
    """A data set that is one batch for ever."""

    data: TrainingData
    batch: dict[str, Tensor] | None = None
    workers = 0

    def __post_init__(self):
        self.device, self.fingerprint = self.data.device, self.data.fingerprint

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        self.batch = self.batch or self.data.__getitems__(indices)
        return self.batch

    def prepare(self, batch: dict[str, Tensor], rng: BatchRNG) -> dict[str, Tensor]:
        return self.data.prepare(batch, rng)


def measure(trainer_for: TrainerFor, config: TrainConfig, data: TrainingData, seconds: float) -> Throughput:
    """Trains for about so long, twice, and leaves no trace in the folder."""
    config = config.model_copy(update={"steps": sys.maxsize})
    trainer = trainer_for(config, data)
    device, precision = trainer.accelerator.device, trainer.accelerator.mixed_precision
    processes, each = trainer.accelerator.num_processes, bytes_per_image(trainer)
    with_data = config.batch_size / trainer.measure_step_time(seconds)
    memory = memory_peak(device)
    del trainer
    return Throughput(
        images_per_second=with_data,
        without_data=config.batch_size / trainer_for(config, SameBatch(data)).measure_step_time(seconds),
        data_alone=processes * loader_throughput(data, config.batch_size // processes, device, seconds),
        bytes_per_image=each,
        memory=memory,
        ceiling=processes * peak_conv_flops(device, precision),
    )


def loader_throughput(data: TrainingData, batch_size: int, device: torch.device, seconds: float) -> float:
    """Images per second that one process can make ready for a network on this device."""
    far = device.type == "cuda" and data.device.type == "cpu"
    order, whole = EpochShuffle(len(data), batch_size, seed=0), slice(0, batch_size)
    batches = fetch(data, order, [whole], range(sys.maxsize), pin_memory=far, say=print)

    def make_ready(step: int) -> None:
        (batch,) = next(batches)
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        data.prepare(moved, BatchRNG.at(0, step, whole, batch_size, device))

    make_ready(0)                                              # starts the processes that decode
    started, steps = time.monotonic(), 0
    while time.monotonic() < started + seconds or not steps:
        steps += 1
        make_ready(steps)
    synchronize(device)
    return steps * batch_size / (time.monotonic() - started)


@torch.no_grad()
def peak_conv_flops(device: torch.device, precision: str) -> float:
    """Operations per second of the fastest 3×3 convolution in `no`, `bf16` or `fp16`, in either order of memory."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    batch = 16 if device.type == "cpu" else 512
    fastest = 0.0
    for channels, side in ((128, 32), (256, 16)):
        for order in (torch.contiguous_format, torch.channels_last):
            layer = torch.nn.Conv2d(channels, channels, 3, padding=1).to(device, dtype, memory_format=order)
            x = torch.randn(batch, channels, side, side, device=device, dtype=dtype).to(memory_format=order)
            took = []
            for _ in range(9):
                started = time.monotonic()
                layer(x)
                synchronize(device)
                took.append(time.monotonic() - started)
            operations = 2 * batch * side**2 * channels**2 * 9
            fastest = max(fastest, operations / statistics.median(took[2:]))
    return fastest


def largest_batch(trainer_for: TrainerFor, config: TrainConfig, data: TrainingData) -> int:
    """The largest batch size that fits, no larger than the data: 1, 2, 4, ... for each part of each process.

    It follows from what a step keeps of each picture; on a single GPU it is tried, too.
    """
    from accelerate import PartialState

    processes = PartialState().num_processes
    parts = processes * config.gradient_accumulation_steps

    def trainer_of(share: int) -> Trainer:
        return trainer_for(config.model_copy(update={"batch_size": share * parts}), data)

    trainer = trainer_of(1)
    accelerator, device = trainer.accelerator, trainer.accelerator.device
    weights = sum(parameter.nbytes for parameter in trainer.model.parameters())
    free = (1 - MEMORY_MARGIN) * free_memory(device) / (processes if device.type == "cpu" else 1) - OPTIMIZER_COPIES * weights
    most = min(free / (ACTIVATION_OVERHEAD * bytes_per_image(trainer)), len(data) / parts)
    share = 2 ** int(math.log2(max(1, most)))
    share = int(accelerator.gather(torch.tensor([share], device=device)).min())
    del trainer
    if device.type != "cpu" and processes == 1:                # of several, one might fail while the others wait
        while share > 1 and not _fits(trainer_of(share)):
            share //= 2
    return share * parts


def _fits(trainer: Trainer) -> bool:
    try:
        trainer.measure_step_time(0)
    except UserError as error:
        if not (error.__cause__ and ran_out_of_memory(error.__cause__)):
            raise
        return False
    return True


def bytes_per_image(trainer: Trainer) -> float:
    """What a training step keeps of each picture for its backward pass."""

    def kept(number: int) -> int:
        sizes: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        batch = trainer.data.__getitems__(list(range(number)))
        batch = {name: tensor.to(trainer.accelerator.device) for name, tensor in batch.items()}
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            trainer.objective.loss(trainer.model, rng=BatchRNG(), **trainer.data.prepare(batch, BatchRNG()))
        return sum(sizes.values())

    few, more = 1, 3
    return (kept(more) - kept(few)) / (more - few)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device, or for the processes of this machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


def memory_peak(device: torch.device) -> int:
    """Bytes in use at most so far: of the process on a CPU, of the tensors on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
