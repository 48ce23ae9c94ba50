"""Two processes train one run, which is resumed when one is killed. stress/multi_node.py has more, and machines."""

import shutil
from pathlib import Path

import pytest

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


@pytest.mark.slow
def test_a_killed_run_is_resumed_by_two_processes_and_by_one(small):
    """With two the same bytes; with one the same images at the same positions, and weights up to rounding."""
    uninterrupted, killed = traced_run("uninterrupted", processes=2), Path("killed")
    process = program(TRACE, "killed.trace", "single", *SMALL, killed, processes=2)
    machines.wait_for_checkpoint(killed, process)
    machines.kill_one(process, rank=1)
    _, output = machines.wait_for_end(process, within=machines.MINUTE)
    assert process.returncode == 1
    assert "another process is gone" in output
    assert "resume from step_000000" in output
    saved = machines.saved_step(killed)
    assert saved < machines.STEPS
    assert image_order(killed).items() <= image_order(uninterrupted).items()
    shutil.copytree(killed, "alone")
    output_of(program(TRACE, "killed.trace", "single", "--resume", killed, processes=2))
    require_same_bytes(uninterrupted, killed)
    output = output_of(program(TRACE, "alone.trace", "single", "--resume", "alone"))
    assert "processes: 2 -> 1" in output
    resumed = {(saved + step, place): image for (step, place), image in image_order(Path("alone")).items()}
    assert resumed.items() <= image_order(uninterrupted).items()
    assert max(step for step, _ in resumed) == machines.STEPS - 1
    assert max_difference(uninterrupted, Path("alone")) < ROUNDING
