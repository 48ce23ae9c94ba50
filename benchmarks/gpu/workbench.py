"""What the checks share: images, trainers, commands and clocks."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffunet.core.runtime import default_device
from diffunet.runs.config import Config
from diffunet.tasks.fit import make_trainer
from diffunet.tasks.generation import generation
from diffunet.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
LEVELS = [{"channels": 64, "blocks": 1}, {"channels": 64, "blocks": 1, "attention": True}]


class Workbench:
    """A folder for runs, and the size of what is measured."""

    def __init__(self, folder: Path, tiny: bool):
        self.folder, self.tiny = folder, tiny
        self.device = default_device()
        self.cuda = self.device.type == "cuda"
        self.precision = "bf16" if self.cuda else "no"
        self._runs = 0

    def images(self, number: int, side: int) -> Path:
        """Return a folder of random color images in two classes."""
        folder = self.folder / f"images-{number}-{side}"
        generator = np.random.default_rng(0)
        for index in range(0 if folder.exists() else number):
            file = folder / f"class{index % 2}" / f"{index:05d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(file)
        return folder

    def config(self, output: Path | None = None, side: int = 16, **sections: dict) -> Config:
        """Return a configuration of a small network on random images, with other sections over it."""
        self._runs += 1
        output = output or self.folder / f"run-{os.getpid()}-{self._runs}"
        settings: dict = {
            "unet": {"levels": LEVELS, "dropout": 0.1},
            "conditions": {"label": {"type": "label"}},
            "data": {"path": str(self.images(64 if self.tiny else 2048, side)), "random_flip": True},
            "train": {"output": str(output), "steps": 12, "batch_size": 16, "log_every": 4, "checkpoint_every": 6},
            "sample": {"num_images": 4, "steps": 4},
        }
        settings["train"] |= {"preview_every": 10**8, "runtime": {"mixed_precision": self.precision}}
        for name, values in sections.items():
            settings[name] = settings.get(name, {}) | values
        return Config.model_validate(settings)

    def trainer(self, config: Config) -> Trainer:
        """Return the trainer of a configuration, as `fit` makes it."""
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
        task = generation(config)
        return make_trainer(task, task.config.train)

    def command(self, *words: object, code: int = 0, processes: int = 1) -> str:
        """Run a command of diffunet in new processes, and return what it prints. RuntimeError for another code."""
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        start = [sys.executable, *(launcher if processes > 1 else []), "-m", "diffunet"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"}
        done = subprocess.run(
            [*start, *map(str, words)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
        )
        if done.returncode != code:
            raise RuntimeError(f"{words}: code {done.returncode}\n{(done.stdout + done.stderr)[-2000:]}")
        return done.stdout + done.stderr

    def log(self, folder: Path | str) -> list[dict]:
        """Return the lines of a run's log."""
        return [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, act: Callable[[], object], times: int, rounds: int = 3) -> float:
        """Return the median seconds of a call, over rounds of `times` calls that nobody waits for."""
        took = []
        for _ in range(rounds):
            self.synchronize()
            started = time.monotonic()
            for _ in range(times):
                act()
            self.synchronize()
            took.append((time.monotonic() - started) / times)
        return sorted(took)[len(took) // 2]
