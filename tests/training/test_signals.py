import signal

import pytest
from accelerate import Accelerator

from diffunet.training import signals as interruption
from diffunet.training.signals import GracefulShutdown


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_and_asking_again_at_once_is_the_same_wish(number, capfd):
    former = signal.getsignal(number)
    with GracefulShutdown(Accelerator(cpu=True)) as asked:
        assert not asked.requested(1)
        signal.raise_signal(number)
        signal.raise_signal(number)
        assert asked.requested(1)
        assert asked.signal == number
    assert signal.getsignal(number) == former
    assert capfd.readouterr().out.count("saving a checkpoint after this step") == 1


def test_asking_again_later_ends_at_once(monkeypatch):
    signal.signal(signal.SIGINT, signal.default_int_handler)   # a shell's background jobs start without
    monkeypatch.setattr(interruption, "REPEATED", -1)
    with pytest.raises(KeyboardInterrupt), GracefulShutdown(Accelerator(cpu=True)) as asked:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)                    # another signal is no second one
        assert asked.signal == signal.SIGINT
        signal.raise_signal(signal.SIGINT)
