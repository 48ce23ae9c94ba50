"""What a training shows on its way: grids of pictures, and signs of its health."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..training.ema import list_snapshots
from ..runs.run import Run
from ..runs.config import Config
from ..runs.figures import save_grid, save_timeline
from ..cli.sample import columns, draw
from ..core.errors import UserError, ran_out_of_memory

if TYPE_CHECKING:
    from ..evaluation.monitor import Monitor


@dataclass(frozen=True)
class Preview:
    """Draws as the section `sample` says, into RUN/samples. What cannot be drawn is said, and ends no training."""

    run: Run
    config: Config
    health: "Monitor"
    device: torch.device
    say: Callable[[str], None]

    def __call__(self, step: int, ema: nn.Module) -> dict[str, float]:
        """Numbers for the log; none where nothing could be drawn. OSError if the folder cannot be written to."""
        wish = self.config.sample
        if wish.guide and not list_snapshots(self.run.folder):                # nothing to guide by as yet
            wish = wish.model_copy(update={"guide": None, "guidance_scale": 1.0})
        try:
            pixels = torch.cat([drawn.pixels for drawn in draw(self.run, ema, self.config, wish)])
        except (UserError, RuntimeError, MemoryError) as error:
            if not isinstance(error, UserError) and not ran_out_of_memory(error):
                raise
            short = f"out of memory with sample.batch_size {wish.batch_size}"
            self.say(f"no preview at step {step}: {error if isinstance(error, UserError) else short}")
            return {}
        folder = self.run.folder / "samples"
        save_grid(pixels, self.config.data.bit_depth, folder / f"step_{step:08d}.png", columns(self.config))
        save_timeline(folder, self.config.data.size)
        return self.health(ema, pixels, self.device)
