"""Agreement between the processes of a launcher."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch import distributed

from ..core.errors import UserError, describe_oserror
from ..core.runtime import default_device

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""How long processes wait for each other: longer than a preview, during which all wait for the main process."""


class Process(Protocol):
    """One of the processes of a launcher, such as an Accelerator."""

    @property
    def is_main_process(self) -> bool:
        """Whether it is the first of all."""
        ...


@dataclass(frozen=True)
class Rank:
    """A process by its number, and their number."""

    number: int = 0
    of: int = 1

    @property
    def is_main_process(self) -> bool:
        return self.number == 0

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Connect the processes for as long as they have to agree; training is connected by Accelerate instead."""
        if self.of == 1:
            yield
            return
        distributed.init_process_group("gloo", timeout=TIMEOUT)
        try:
            yield
        finally:
            distributed.destroy_process_group()


def this_process() -> Rank:
    """Return the rank of this process in its launcher, and give it a device of its own."""
    rank = Rank(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    device = default_device()
    if rank.of > 1 and device.type != "cpu" and (devices := torch.accelerator.device_count()) > 1:
        getattr(torch, device.type).set_device(int(os.environ.get("LOCAL_RANK", "0")) % devices)
    return rank


def from_main(process: Process, choose: Callable[[], T]) -> T:
    """Call `choose` in the main process and return its result in all. A UserError or OSError is a UserError in all."""
    found: list = [None, None]
    if process.is_main_process:
        try:
            found[0] = choose()
        except UserError as mistake:
            found[1] = str(mistake)
        except OSError as error:  # the others would wait for this process
            found[1] = describe_oserror(error)
    if distributed.is_initialized():
        distributed.broadcast_object_list(found)
    if found[1] is not None:
        raise UserError(found[1])
    return found[0]


def agree(accelerator: "Accelerator", act: Callable[[], None]) -> None:
    """Call `act` in every process. If it raises UserError in one of them, raise it in all: none waits for another."""
    mistake = None
    try:
        act()
    except UserError as found:
        mistake = found
    if any_process(accelerator, mistake is not None):
        raise mistake or UserError("another process cannot continue; see its message")


def any_process(accelerator: "Accelerator", condition: bool) -> bool:
    """Return whether the condition holds in any process. All processes have to call this."""
    return bool(accelerator.reduce(torch.tensor(float(condition), device=accelerator.device), "sum"))
