"""Several processes are one run; what takes longer is in trials/machines.py."""

import signal

from trials.machines import ROUNDING, SMALL, TRAIN, apart, ended, finished, kill_one, order, saved_step, watched
from trials.machines import wait_for_checkpoint as wait_for
from trials.program import program


def test_two_processes_are_one_run_and_one_goes_on_when_the_other_is_killed(small):
    one, two = watched("one", processes=1), watched("two", processes=2)
    assert order(one) == order(two)
    assert apart(one, two) < ROUNDING
