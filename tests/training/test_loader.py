import multiprocessing
import os
import signal
import time

import pytest
import torch

from diffunet.training import loader as fetching
from diffunet.training.loader import fetch
from diffunet.core.rng import EpochShuffle
from diffunet.core.errors import UserError


class Numbers:
    """The indices themselves. A process that is asked for one of `fatal` dies, while the file is there."""

    fingerprint = "numbers"

    def __init__(self, workers=0, fatal=(), fuse=None):
        self.workers, self.fatal, self.fuse = workers, fatal, fuse

    def __len__(self):
        return 20

    def __getitems__(self, indices):
        if set(indices) & set(self.fatal):
            if self.fuse is None:
                raise UserError("data.path: not one picture can be read any more")
            if self.fuse.exists():
                self.fuse.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        return {"x": torch.tensor(indices)}

    def prepare(self, batch, rng):
        return batch


def fetched(data, steps, say=print):
    positions = [slice(0, 2), slice(4, 6)]
    batches = fetch(data, EpochShuffle(20, 8, seed=3), positions, steps, pin_memory=False, say=say)
    return [[part["x"].tolist() for part in batch] for batch in batches]


def test_each_step_is_what_the_order_says_from_any_step_on():
    order = EpochShuffle(20, 8, seed=3)
    expected = [[order.batch(step)[:2].tolist(), order.batch(step)[4:6].tolist()] for step in range(7)]
    for workers in (0, 1):
        assert fetched(Numbers(workers), range(7)) == expected
    assert fetched(Numbers(), range(4, 7)) == expected[4:]
    assert fetched(Numbers(), range(4, 4)) == []


def test_a_killed_process_is_replaced_and_nothing_is_lost(tmp_path):
    fuse, said = tmp_path / "fuse", []
    fuse.touch()
    whole = fetched(Numbers(), range(6))
    data = Numbers(workers=1, fatal=whole[3][1], fuse=fuse)
    assert fetched(data, range(6), said.append) == whole
    assert not fuse.exists()
    assert len(said) == 1
    assert "a process that fetches data was killed" in said[0]


def test_deaths_apart_are_no_concern_of_a_step(monkeypatch):
    """torch's own handler would raise wherever the training just is; and each batch in between forgives a death."""
    monkeypatch.setattr(fetching, "WORKER_DEATHS", 2)
    found, order = [], EpochShuffle(20, 8, seed=3)
    batches = fetch(Numbers(workers=1), order, [slice(0, 8)], range(30), pin_memory=False, say=print)
    for step, (part,) in enumerate(batches):
        if step in (1, 15):
            for worker in multiprocessing.active_children():
                worker.kill()
            time.sleep(0.3)                                # a step that goes on
        found.append(part["x"].tolist())
    assert found == [order.batch(step).tolist() for step in range(30)]


def test_processes_that_die_again_and_again_end_the_training(tmp_path, monkeypatch):
    class Cursed(Numbers):
        def __getitems__(self, indices):
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(fetching, "WORKER_DEATHS", 2)
    said = []
    with pytest.raises(UserError, match=r"were killed 2 times in a row; .* lower --data.workers"):
        fetched(Cursed(workers=1), range(6), said.append)
    assert len(said) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_arrives_as_one_line(workers):
    with pytest.raises(UserError) as mistake:
        fetched(Numbers(workers, fatal=range(20)), range(6))
    assert str(mistake.value) == "data.path: not one picture can be read any more"
