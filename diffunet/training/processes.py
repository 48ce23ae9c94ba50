"""Agreement between the processes of a training."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch

from ..core.errors import UserError, describe_oserror

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")


def from_main(accelerator: "Accelerator", choose: Callable[[], T]) -> T:
    """Call `choose` in the main process and return its result in all. A UserError or OSError is a UserError in all."""
    from accelerate.utils import broadcast_object_list

    found: list = [None, None]
    if accelerator.is_main_process:
        try:
            found[0] = choose()
        except UserError as mistake:
            found[1] = str(mistake)
        except OSError as error:  # the others would wait for this process
            found[1] = describe_oserror(error)
    broadcast_object_list(found)
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
