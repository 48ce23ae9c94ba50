import signal

import pytest
from accelerate import Accelerator

from diffunet.training import signals
from diffunet.training.signals import GracefulShutdown


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_requests_a_shutdown_and_an_immediate_repeat_is_ignored(number, capfd):
    previous = signal.getsignal(number)
    with GracefulShutdown(Accelerator(cpu=True)) as shutdown:
        assert not shutdown.requested(1)
        signal.raise_signal(number)
        signal.raise_signal(number)
        assert shutdown.requested(1)
        assert shutdown.signal == number
    assert signal.getsignal(number) == previous
    assert capfd.readouterr().out.count("saving a checkpoint after this step") == 1


def test_a_later_repeat_ends_the_process_at_once(monkeypatch):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
    monkeypatch.setattr(signals, "REPEAT_SECONDS", -1)
    with pytest.raises(KeyboardInterrupt), GracefulShutdown(Accelerator(cpu=True)) as shutdown:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)  # another signal does not count as a repeat
        assert shutdown.signal == signal.SIGINT
        signal.raise_signal(signal.SIGINT)
