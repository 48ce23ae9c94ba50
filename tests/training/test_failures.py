"""Which exceptions of a training become one line, and which keep their traceback."""

import pytest
import torch

from diffunet.core.errors import UserError
from diffunet.training.failures import explained

SITUATION = {"step": 7, "batch_size": 64, "micro_batch_size": 16, "folder": "runs/x", "newest": "step_00000004"}
LOST = [
    RuntimeError("[/pytorch/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:3000"),
    RuntimeError(
        "NCCL communicator was aborted on rank 0. Original reason for failure was: NCCL error: remote process exited"
    ),
    RuntimeError("[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=4) timed out"),
    RuntimeError("TCPStore recvValue failed: Connection reset by peer"),
    torch.distributed.DistBackendError("remote process has exited or there was a network error"),
    torch.distributed.DistNetworkError("The client socket has failed to connect"),
]
FULL = [
    MemoryError(),
    RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1000 bytes"),
]


def message_of(error: Exception) -> str:
    with pytest.raises(UserError) as found, explained(lambda: SITUATION):
        raise error
    assert found.value.__cause__ is error
    text = str(found.value)
    assert len(text.splitlines()) == 1
    return text


@pytest.mark.parametrize("error", LOST, ids=lambda error: str(error)[:20])
def test_a_lost_process_is_one_line_with_the_checkpoint_to_resume_from(error):
    text = message_of(error)
    assert text.startswith("training stopped at step 7: another process is gone (")
    assert text.endswith("; resume from step_00000004 with --resume runs/x and any number of processes")
    assert "[/pytorch" not in text


@pytest.mark.parametrize("error", FULL, ids=lambda error: str(error)[:20])
def test_out_of_memory_is_one_line_with_the_batch_size(error):
    assert message_of(error) == (
        "out of memory at step 7 with train.batch_size 64, 16 at a time: raise "
        "--train.gradient_accumulation_steps, which changes nothing else, or lower --train.batch_size"
    )


OTHERS = [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("gloo"), KeyError("a"), RuntimeError()]


@pytest.mark.parametrize("error", OTHERS, ids=repr)
def test_other_exceptions_keep_their_traceback(error):
    with pytest.raises((RuntimeError, ValueError, KeyError)) as found, explained(lambda: SITUATION):
        raise error
    assert not isinstance(found.value, UserError)


def test_user_errors_pass_unchanged():
    with pytest.raises(UserError, match="^data.path: gone$"), explained(lambda: SITUATION):
        raise UserError("data.path: gone")
