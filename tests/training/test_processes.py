"""Agreement between processes, which are simulated here; tests/tasks/test_processes.py starts real ones."""

from types import SimpleNamespace

import pytest
import torch

from diffunet.core.errors import UserError
from diffunet.training.processes import agree, any_process, from_main


class Process:
    """One of two processes as Accelerate shows it, in which the other reports `others`."""

    device = torch.device("cpu")

    def __init__(self, main: bool = True, others: float = 0.0):
        self.is_main_process, self.others = main, others

    def reduce(self, tensor, kind):
        assert kind == "sum"
        return tensor + self.others


@pytest.fixture
def broadcast(monkeypatch):
    """A broadcast from the main process: what it sends replaces what the other has."""
    sent = []

    def broadcast_object_list(objects):
        if sent:
            objects[:] = sent
        else:
            sent[:] = objects

    monkeypatch.setattr("torch.distributed.broadcast_object_list", broadcast_object_list)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)


def test_from_main_returns_the_choice_of_the_main_process_in_all(broadcast):
    assert from_main(Process(main=True), lambda: "step_12") == "step_12"

    def must_not_be_called():
        raise AssertionError

    assert from_main(Process(main=False), must_not_be_called) == "step_12"


def test_from_main_raises_the_error_of_the_main_process_in_all(broadcast):
    def fail():
        raise UserError("run: another process is training here")

    for main in (True, False):
        with pytest.raises(UserError, match="^run: another process is training here$"):
            from_main(Process(main), fail)


def test_from_main_raises_a_failed_write_of_the_main_process_in_all(broadcast):
    def fail():
        raise OSError(30, "Read-only file system", "run/.lock")

    for main in (True, False):
        with pytest.raises(UserError, match="^run/.lock: Read-only file system$"):
            from_main(Process(main), fail)


def test_agree_raises_in_all_processes_if_one_fails():
    done = []
    agree(Process(), lambda: done.append(1))
    assert done == [1]

    def fail():
        raise UserError("checkpoint: damaged")

    with pytest.raises(UserError, match="^checkpoint: damaged$"):
        agree(Process(), fail)
    with pytest.raises(UserError, match="^another process cannot continue; see its message$"):
        agree(Process(others=1.0), lambda: None)


def test_agree_lets_other_exceptions_pass():
    with pytest.raises(ZeroDivisionError):
        agree(Process(), lambda: 1 // 0)


def test_any_process_sums_over_processes():
    assert not any_process(Process(), False)
    assert any_process(Process(), True)
    assert any_process(Process(others=1.0), False)
    assert any_process(SimpleNamespace(device=torch.device("cpu"), reduce=lambda tensor, kind: tensor), True)
