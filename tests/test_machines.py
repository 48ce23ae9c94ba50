"""Several processes are one run. More of them, and several machines: trials/machines.py."""

from pathlib import Path

from trials import machines
from trials.machines import ROUNDING, SMALL, TRAIN, WATCHED, apart, finished, order, watched
from trials.program import program


def test_one_of_two_processes_is_killed_and_the_other_number_finishes_the_same_run(small):
    one, two = watched("one", processes=1), Path("two")
    process = program(WATCHED, "two.notes", "single", *SMALL, two, processes=2)
    machines.wait_for_checkpoint(two, process)
    machines.kill_one(process, rank=1)
    machines.ended(process, within=machines.MINUTE)
    assert process.returncode == 1
    saved = machines.saved_step(two)
    assert saved < machines.STEPS
    in_turn = order(one)
    assert {place for place in in_turn if place[0] < saved} <= order(two).keys()
    assert order(two).items() <= in_turn.items()
    assert f"going on from step {saved}" in finished(program(TRAIN, "--resume", two))
    assert apart(one, two) < ROUNDING
