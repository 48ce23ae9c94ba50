"""Start the program as users do, and the configuration of a run small enough to be broken often."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent

SMALL_RUN = """
unet: {levels: [{channels: 8, blocks: 1}, {channels: 16, blocks: 1, attention: true}], norm_groups: 8, dropout: 0.1}
conditions: {label: {type: label}}
objective: {type: ddpm, prediction_type: v_prediction, beta_schedule: cosine}
data: {path: digits, random_flip: true}
train: {output: run, steps: 12, batch_size: 8, gradient_accumulation_steps: 2, learning_rate: 1e-3, ema_decay: 0.9,
        log_every: 2, checkpoint_every: 4, preview_every: 6, snapshots: 3,
        runtime: {mixed_precision: no, compile: false}}
sample: {num_images: 4, guidance_scale: 1.5, runtime: {mixed_precision: no}}
"""


def program(*arguments: str | Path, processes: int = 1, **options) -> subprocess.Popen:
    """Start the program in a new process, or in several under torchrun."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1"}
    return subprocess.Popen(
        [*launcher, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **options,
    )


def kill_all(process: subprocess.Popen, number: signal.Signals) -> None:
    """Send a signal to the process and all its descendants, which torchrun starts in sessions of their own."""
    for each in [*psutil.Process(process.pid).children(recursive=True), process]:
        each.send_signal(number)
