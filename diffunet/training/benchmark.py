"""Speed and memory of a training on this machine, and its bottleneck."""

import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, UntypedStorage

from ..core.errors import UserError, ran_out_of_memory
from ..core.rng import BatchRNG, EpochShuffle
from ..core.runtime import synchronize
from .config import TrainConfig
from .loader import TrainingData, fetch
from .trainer import Trainer

MEMORY_MARGIN = 0.2
"""Share of the memory that an automatic batch size leaves free: for previews and fragmentation."""
ACTIVATION_OVERHEAD = 1.5
"""Peak memory of an image as a multiple of its stored activations."""
OPTIMIZER_COPIES = 3
"""Gradient and two moments, which are allocated in the first step."""
TRAIN_FLOPS_RATIO = 3
"""Operations of a training step relative to a forward pass: the backward pass has twice as many."""
MAX_STEP = 1.0
"""Seconds that a step of the benchmark may take; batches are cut to fit."""

TrainerFor = Callable[[TrainConfig, TrainingData], Trainer]


@dataclass(frozen=True)
class Throughput:
    """Speed and memory of a training as configured, all processes together."""

    batch_size: int
    """Measured global batch size: that of the config, or a smaller one if a step would take too long."""
    images_per_second: float
    without_data: float
    """Images per second when one batch is repeated."""
    data_alone: float
    """Images per second loaded and prepared, without training."""
    bytes_per_image: float
    """Activations that a step stores for each image."""
    memory: int
    """Peak memory in bytes: of the process on a CPU, of the tensors on a GPU."""
    peak_flops: float
    """Operations per second of the fastest 3×3 convolution, in the precision of the training."""


class SameBatch:
    """A data set that returns one batch forever."""

    workers = 0

    def __init__(self, data: TrainingData):
        self.data, self.batch = data, None
        self.device, self.fingerprint, self.prepare = data.device, data.fingerprint, data.prepare

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        self.batch = self.batch or self.data.__getitems__(indices)
        return self.batch


def measure(
    trainer_for: TrainerFor, config: TrainConfig, data: TrainingData, seconds: float, log: Callable[[str], None]
) -> Throughput:
    """Measure each part for about `seconds` without writing to the run folder; `log` gets a line before each."""
    config = config.model_copy(update={"steps": sys.maxsize})
    log("measuring one example ...")
    trainer = trainer_for(_with_micro_batch(config, 1), data)
    accelerator, parts = trainer.accelerator, trainer.batch_size
    activations = bytes_per_image(trainer)
    fitting = max(1, int(MAX_STEP / trainer.measure_step_time(0)))
    config = _with_micro_batch(config, min(config.batch_size // parts, fitting))
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    log(f"measuring training with batches of {config.batch_size} ...")
    with_data = config.batch_size / trainer_for(config, data).measure_step_time(seconds)
    memory = memory_peak(accelerator.device)
    log("measuring training on one batch ...")
    without_data = config.batch_size / trainer_for(config, SameBatch(data)).measure_step_time(seconds)
    log("measuring the data ...")
    processes = accelerator.num_processes
    return Throughput(
        batch_size=config.batch_size,
        images_per_second=with_data,
        without_data=without_data,
        data_alone=processes * loader_throughput(data, config.batch_size // processes, accelerator.device, seconds),
        bytes_per_image=activations,
        memory=memory,
        peak_flops=processes * peak_conv_flops(accelerator.device, accelerator.mixed_precision),
    )


def _with_micro_batch(config: TrainConfig, size: int) -> TrainConfig:
    from accelerate import PartialState

    parts = PartialState().num_processes * config.gradient_accumulation_steps
    return config.model_copy(update={"batch_size": size * parts})


def loader_throughput(data: TrainingData, batch_size: int, device: torch.device, seconds: float) -> float:
    """Return images per second that one process can load and prepare on this device."""
    order, whole = EpochShuffle(len(data), batch_size, seed=0), slice(0, batch_size)
    batches = fetch(data, order, [whole], range(sys.maxsize), device, log=print)

    def prepare(step: int) -> None:
        (batch,) = next(batches)
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        data.prepare(moved, BatchRNG.at(0, step, whole, batch_size, device))

    prepare(0)  # starts the worker processes
    started, steps = time.monotonic(), 0
    while time.monotonic() < started + seconds or not steps:
        steps += 1
        prepare(steps)
    synchronize(device)
    return steps * batch_size / (time.monotonic() - started)


@torch.no_grad()
def peak_conv_flops(device: torch.device, precision: str) -> float:
    """Return operations per second of the fastest 3×3 convolution in `no`, `bf16` or `fp16`, in any memory format."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    batch = 16 if device.type == "cpu" else 512
    fastest = 0.0
    for channels, side in ((128, 32), (256, 16)):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            layer = torch.nn.Conv2d(channels, channels, 3, padding=1).to(device, dtype, memory_format=memory_format)
            x = torch.randn(batch, channels, side, side, device=device, dtype=dtype).to(memory_format=memory_format)
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
    """Return the largest global batch size that fits and is no larger than the data: micro-batches of 1, 2, 4, ...

    It is estimated from the stored activations of an image; on a single GPU it is also tried.
    """
    trainer = trainer_for(_with_micro_batch(config, 1), data)
    accelerator, device = trainer.accelerator, trainer.accelerator.device
    processes = accelerator.num_processes
    parts = processes * config.gradient_accumulation_steps
    weights = sum(parameter.nbytes for parameter in trainer.placement.module.parameters())
    memory = free_memory(device) / (processes if device.type == "cpu" else 1)
    most = min(images_that_fit(memory, weights, bytes_per_image(trainer)), len(data) / parts)
    size = 2 ** int(math.log2(max(1, most)))
    size = int(accelerator.gather(torch.tensor([size], device=device)).min())
    del trainer
    if device.type != "cpu" and processes == 1:  # of several, one might fail while the others wait
        while size > 1 and not _fits(trainer_for(_with_micro_batch(config, size), data)):
            size //= 2
    return size * parts


def images_that_fit(memory: float, weights: int, stored: float) -> float:
    """Return how many images of a step fit into free memory beside what the optimizer allocates.

    weights: bytes of the weights. stored: bytes of activations that a step stores for each image.
    """
    return ((1 - MEMORY_MARGIN) * memory - OPTIMIZER_COPIES * weights) / (ACTIVATION_OVERHEAD * stored)


def _fits(trainer: Trainer) -> bool:
    try:
        trainer.measure_step_time(0)
    except UserError as error:
        if not (isinstance(error.__cause__, Exception) and ran_out_of_memory(error.__cause__)):
            raise
        return False
    return True


def bytes_per_image(trainer: Trainer) -> float:
    """Return the bytes of activations that a training step stores for each image."""
    data, device = trainer.data, trainer.accelerator.device

    def stored(number: int) -> int:
        batch = data.__getitems__([index % len(data) for index in range(number)])
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        prepared = data.prepare(batch, BatchRNG())
        return stored_bytes(lambda: trainer.objective.loss(trainer.placement.model, rng=BatchRNG(), **prepared))

    with torch.compiler.set_stance("force_eager"):  # other sizes would make the batch a variable of the compiled graph
        return per_example(stored)


def stored_bytes(compute: Callable[[], object]) -> int:
    """Return the bytes of all tensors that a computation stores for its backward pass, also on the meta device."""
    stored: dict[int, UntypedStorage] = {}  # keeps them, so that no address is used again

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        stored[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        compute()
    return sum(storage.nbytes() for storage in stored.values())


def per_example(stored: Callable[[int], int]) -> float:
    """Return the bytes for each example, of a function from the size of a batch to its bytes: without the weights."""
    few, more = 2, 4  # batch norms need two
    return (stored(more) - stored(few)) / (more - few)


def free_memory(device: torch.device) -> int:
    """Return the free bytes of the device, or of this machine for a CPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


def memory_peak(device: torch.device) -> int:
    """Return the peak memory in bytes so far: of the process on a CPU, of the tensors on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # on Windows
        import psutil

        return psutil.Process().memory_info().peak_wset
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
