"""Two processes are one run, and go on when one is killed. More of them, and several machines: stress/multi_node.py."""

import shutil
from pathlib import Path

from stress import multi_node as machines
from stress.multi_node import (
    ROUNDING,
    SMALL,
    TRACE,
    image_order,
    max_difference,
    output_of,
    require_same_bytes,
    traced_run,
)
from stress.program import program


def test_one_of_two_processes_is_killed_and_either_number_finishes_the_same_run(small):
    """With flips and accumulation; the same bytes with two, and with one the same pictures and all but rounding."""
    whole, killed = traced_run("whole", processes=2), Path("killed")
    process = program(TRACE, "killed.trace", "single", *SMALL, killed, processes=2)
    machines.wait_for_checkpoint(killed, process)
    machines.kill_one(process, rank=1)
    _, said = machines.wait_for_end(process, within=machines.MINUTE)
    assert process.returncode == 1
    assert "another process has gone" in said
    assert "--resume killed goes on from step_000000" in said
    saved = machines.saved_step(killed)
    assert saved < machines.STEPS
    assert image_order(killed).items() <= image_order(whole).items()
    shutil.copytree(killed, "alone")
    output_of(program(TRACE, "killed.trace", "single", "--resume", killed, processes=2))
    require_same_bytes(whole, killed)
    said = output_of(program(TRACE, "alone.trace", "single", "--resume", "alone"))
    assert "processes: 2 -> 1" in said
    in_turn = {(saved + step, place): picture for (step, place), picture in image_order(Path("alone")).items()}
    assert in_turn.items() <= image_order(whole).items()
    assert max(step for step, _ in in_turn) == machines.STEPS - 1
    assert max_difference(whole, Path("alone")) < ROUNDING
