"""Several processes are one run. Four of them, and several machines: trials/machines.py."""

from pathlib import Path

from trials import machines
from trials.machines import ROUNDING, SMALL, TRAIN, apart, finished, order, watched
from trials.program import program


def test_two_processes_are_one_run_and_one_of_them_finishes_it_alone(small):
    one, two = watched("one", processes=1), watched("two", processes=2)
    assert order(one) == order(two)
    assert apart(one, two) < ROUNDING

    killed = Path("killed")
    process = program(TRAIN, *SMALL, killed, processes=2)
    machines.wait_for_checkpoint(killed, process)
    machines.kill_one(process, rank=1)
    machines.ended(process, within=machines.MINUTE)
    assert process.returncode == 1
    assert machines.saved_step(killed) < machines.STEPS
    assert "going on from step" in finished(program(TRAIN, "--resume", killed))
    assert apart(two, killed) < ROUNDING
