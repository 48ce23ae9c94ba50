"""A training of one second without images: a network that fits a line to forty numbers."""

import torch
from accelerate import Accelerator

from diffunet.core.rng import BatchRNG
from diffunet.training.config import TrainConfig
from diffunet.training.trainer import Trainer


class Points:
    """Forty numbers."""

    workers = 0
    device = torch.device("cpu")

    def __init__(self):
        self.x = torch.linspace(-1, 1, 40)[:, None]

    @property
    def fingerprint(self):
        return str(self.x.sum().item())

    def __len__(self):
        return len(self.x)

    def __getitems__(self, indices):
        return {"x": self.x[indices]}

    def prepare(self, batch, rng):
        return batch


class Fit:
    """Squared error against 3 x + noise from the batch's generator. The losses of the calls `poison` are NaN."""

    def __init__(self, poison=()):
        self.calls, self.poison = 0, poison

    def at(self, progress):
        return self

    def loss(self, model, rng: BatchRNG, x):
        self.calls += 1
        error = (model(x) - 3 * x - 0.1 * rng.normal_like(x)).square().mean(1)
        return {"loss": error * (torch.nan if self.calls - 1 in self.poison else 1.0)}


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1))


def trainer(folder, objective=None, **changes):
    settings = {"output": str(folder), "steps": 12, "batch_size": 8, "learning_rate": 0.01, "ema_decay": 0.5}
    config = TrainConfig(**(settings | {"log_every": 2, "checkpoint_every": 4} | changes))
    folder.mkdir(exist_ok=True)
    return Trainer(
        config,
        network(),
        objective or Fit(),
        Points(),
        Accelerator(cpu=True),
        preview=lambda step, ema: {"seen": step / 2},
        publish=lambda ema: None,
    )
