"""A network and a training for 32×32 pixels on a few CPU cores, laid over the shipped configs."""

from pathlib import Path
from typing import Any

from diffunet.runs.run import Run
from diffunet.tasks.kinds import train

UNET = {
    "levels": [
        {"channels": 32, "blocks": 1},  # 32×32
        {"channels": 64, "blocks": 1},  # 16×16
        {"channels": 128, "blocks": 1, "attention": True},  # 8×8
    ],
    "head_channels": 32,
    "norm_groups": 8,
    "dropout": 0.0,
}
TRAIN = {
    "batch_size": 32,
    "learning_rate": 1e-3,
    "lr_schedule": "cosine",
    "warmup_steps": 100,
    "adam_beta2": 0.99,
    "ema_decay": 0.995,
    "log_every": 20,
    "checkpoint_every": 500,
    "preview_every": 2000,
    "snapshots": 0,
}
SAMPLE = {"num_images": 24}
"""Of the previews."""


def train_small(config: str, output: Path, length: dict[str, float], seed: int, **sections: dict[str, Any]) -> Run:
    """Train a shipped config with the small network to the end, resuming the run if there is one.

    `length` is of the training: {"minutes": M}, or {"steps": N} where two trainings shall be as long on a busy machine.
    """
    settings = TRAIN | {"output": str(output), "seed": seed} | length
    if (output / "checkpoints").exists():
        steps = {"steps": length["steps"]} if "steps" in length else {}
        return train(config, resumed=True, train={"output": str(output)} | steps)
    return train(config, unet=UNET, train=settings, sample=SAMPLE, **sections)
