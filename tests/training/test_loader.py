import multiprocessing
import os
import signal
import time

import pytest
import torch

from diffunet.core.errors import UserError
from diffunet.core.rng import EpochShuffle
from diffunet.training import loader
from diffunet.training.loader import fetch


class Numbers:
    """The indices themselves. While the file `fuse` exists, loading one of `fatal` kills the process."""

    fingerprint = "numbers"

    def __init__(self, workers=0, fatal=(), fuse=None):
        self.workers, self.fatal, self.fuse = workers, fatal, fuse

    def __len__(self):
        return 20

    def __getitems__(self, indices):
        if set(indices) & set(self.fatal):
            if self.fuse is None:
                raise UserError("data.path: no image is readable any more")
            if self.fuse.exists():
                self.fuse.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        return {"x": torch.tensor(indices)}

    def prepare(self, batch, rng):
        return batch


def fetched(data, steps, log=print):
    positions = [slice(0, 2), slice(4, 6)]
    batches = fetch(data, EpochShuffle(20, 8, seed=3), positions, steps, device=torch.device("cpu"), log=log)
    return [[part["x"].tolist() for part in batch] for batch in batches]


def test_batches_follow_the_order_from_any_step_on():
    order = EpochShuffle(20, 8, seed=3)
    expected = [[order.batch(step)[:2].tolist(), order.batch(step)[4:6].tolist()] for step in range(7)]
    for workers in (0, 1):
        assert fetched(Numbers(workers), range(7)) == expected
    assert fetched(Numbers(), range(4, 7)) == expected[4:]
    assert fetched(Numbers(), range(4, 4)) == []


def test_a_killed_worker_is_replaced_without_losing_a_batch(tmp_path):
    fuse, output = tmp_path / "fuse", []
    fuse.touch()
    expected = fetched(Numbers(), range(6))
    data = Numbers(workers=1, fatal=expected[3][1], fuse=fuse)
    assert fetched(data, range(6), output.append) == expected
    assert not fuse.exists()
    assert len(output) == 1
    assert "a data worker was killed and is replaced" in output[0]


@pytest.mark.slow
def test_crashes_with_batches_in_between_do_not_end_the_training(monkeypatch):
    """Each batch resets the count of crashes; torch's SIGCHLD handler, which raises amid a step, is off."""
    monkeypatch.setattr(loader, "MAX_CRASHES", 2)
    found, order = [], EpochShuffle(20, 8, seed=3)
    batches = fetch(Numbers(workers=1), order, [slice(0, 8)], range(30), device=torch.device("cpu"), log=print)
    for step, (part,) in enumerate(batches):
        if step in (1, 15):
            for worker in multiprocessing.active_children():
                worker.kill()
            time.sleep(0.3)  # the duration of a step
        found.append(part["x"].tolist())
    assert found == [order.batch(step).tolist() for step in range(30)]


@pytest.mark.slow
def test_consecutive_crashes_end_the_training(tmp_path, monkeypatch):
    class Crashing(Numbers):
        def __getitems__(self, indices):
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(loader, "MAX_CRASHES", 2)
    output = []
    with pytest.raises(UserError, match=r"were killed 2 times in a row; .* lower --data.workers"):
        fetched(Crashing(workers=1), range(6), output.append)
    assert len(output) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_worker_arrives_as_one_line(workers):
    with pytest.raises(UserError) as mistake:
        fetched(Numbers(workers, fatal=range(20)), range(6))
    assert str(mistake.value) == "data.path: no image is readable any more"
