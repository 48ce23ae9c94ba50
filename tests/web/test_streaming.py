"""Sampling in a thread: frames, the result, a stop between steps, errors."""

import threading
import time

import pytest
import torch

from diffunet.core.errors import UserError
from diffunet.sampling.generate import SampleBatch
from diffunet.web.streaming import Finished, Frame, Switch, stream

STEPS = 5


def sampling(batches: int = 2, hold: threading.Event | None = None, error: Exception | None = None):
    """Return a function like `Sampler.sample` that waits in the third step of the last batch."""

    def sample(progress, watch):
        for number in range(batches):
            for step in progress(range(STEPS)):
                if number == batches - 1 and step == 2:
                    if hold:
                        hold.wait(10)
                    if error:
                        raise error
                watch(torch.full((1, 1, 2, 2), float(step)))
            yield SampleBatch(torch.full((1, 1, 2, 2), number, dtype=torch.uint8), [number], {})

    return sample


def test_the_last_part_is_the_result():
    parts = list(stream(sampling(), list, Switch(), batches=2))
    assert isinstance(parts[-1], Finished)
    assert [batch.seeds for batch in parts[-1].result] == [[0], [1]]
    frames = parts[:-1]
    assert all(isinstance(part, Frame) and part.steps == 10 for part in frames)
    assert [part.step for part in frames] == sorted({part.step for part in frames})


def test_a_frame_is_the_newest_estimate():
    hold, switch = threading.Event(), Switch()
    parts = stream(sampling(1, hold), list, switch)
    time.sleep(0)
    frame = next(parts)
    while frame.step < 2:
        frame = next(parts)
    assert (frame.step, frame.images.max()) == (2, 1.0)
    hold.set()
    *_, last = parts
    assert isinstance(last, Finished)


def test_a_stop_keeps_the_batches_that_are_complete():
    hold, switch, steps = threading.Event(), Switch(), []
    original = sampling(2, hold)

    def sample(progress, watch):
        yield from original(progress, lambda images: (steps.append(0), watch(images)))

    for part in stream(sample, list, switch, batches=2):
        if isinstance(part, Frame) and part.step == STEPS + 2:
            switch.off = True
            hold.set()
    assert [batch.seeds for batch in part.result] == [[0]]
    assert len(steps) in (STEPS + 2, STEPS + 3)  # not one more than the step in which it was stopped


def test_closing_stops_the_thread():
    hold, switch = threading.Event(), Switch()
    before = threading.active_count()
    parts = stream(sampling(2, hold), list, switch, batches=2)
    next(parts)
    hold.set()
    parts.close()
    assert switch.off
    assert threading.active_count() == before


def test_errors_arrive():
    with pytest.raises(UserError, match="caption: too long"):
        list(stream(sampling(error=UserError("caption: too long")), list, Switch()))
