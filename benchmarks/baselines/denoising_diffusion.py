"""python benchmarks/peers/denoising_diffusion.py --data PARQUET --minutes 20 --num_images 10000 --output FOLDER
python benchmarks/peers/denoising_diffusion.py --data digits --minutes 0.2 --num_images 16 --steps_to_draw 5 --tiny \\
    --output FOLDER                                                            a rehearsal

lucidrains' denoising-diffusion-pytorch (pip install denoising-diffusion-pytorch), with the network and the values of
its README, for a given time. Its `Trainer` counts steps, decodes files again in every round, stops for previews and
downloads a network for its FID; so its `Unet`, its `GaussianDiffusion` and the `EMA` it uses are driven directly
here, with the values that `Trainer` would give them.
"""

from collections.abc import Callable

import common
import torch
from accelerate import Accelerator
from denoising_diffusion_pytorch import GaussianDiffusion, Unet
from diffusers import DDPMScheduler
from ema_pytorch import EMA
from torch import Tensor

BATCH_SIZE, ACCUMULATED = 32, 2
"""ImageDataset in a batch, and batches for a step of the optimiser."""


def build(resolution: int, channels: int, size: str) -> Unet:
    """The README's 35.7 million parameters or fewer, with as many channels as the pictures have; for any resolution."""
    width, multiples = {"as_shipped": (64, (1, 2, 4, 8)), "small": (32, (1, 1)), "tiny": (8, (1, 2))}[size]
    return Unet(dim=width, dim_mults=multiples, channels=channels, flash_attn=torch.cuda.is_available())


class Recipe:
    """The objective, optimiser, average and step of its `Trainer`, for a network and batches in [0, 1]."""

    total_steps = 700_000

    def __init__(self, network: Unet, batches: common.Batches, accelerator: Accelerator, steps_to_draw: int = 250):
        diffusion = GaussianDiffusion(
            network, image_size=batches.pictures.shape[-1], timesteps=1000, sampling_timesteps=steps_to_draw
        ).to(accelerator.device)
        optimizer = torch.optim.Adam(diffusion.parameters(), lr=8e-5, betas=(0.9, 0.99))
        self.network = network
        self.ema = EMA(diffusion, beta=0.995, update_every=10).to(accelerator.device)
        self.diffusion, self.optimizer = accelerator.prepare(diffusion, optimizer)
        self.batches, self.accelerator = batches, accelerator
        betas = diffusion.betas.tolist()
        self.noise_scheduler = DDPMScheduler(trained_betas=betas, prediction_type="v_prediction")

    @property
    def parts(self) -> dict:
        """What training changes; `ema` holds the network as well."""
        names = ("optimizer", "ema", "batches")
        return {name: getattr(self, name) for name in names} | {"scaler": self.accelerator.scaler}

    def step(self) -> tuple[int, Tensor]:
        """One step of the optimiser; how many pictures it saw, and the last loss."""
        images = 0
        for _ in range(ACCUMULATED):
            batch = next(self.batches)
            loss = self.diffusion(batch)  # it scales [0, 1] to [-1, 1] itself
            self.accelerator.backward(loss / ACCUMULATED)
            images += len(batch)
        self.accelerator.clip_grad_norm_(self.diffusion.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update()
        return images, loss

    def predictors(self) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
        """The network as it is and as its average, as functions of pictures and time."""
        averaged = self.ema.ema_model.model
        return {
            "raw": lambda x, t: self.network(x, t.expand(len(x))),
            "average": lambda x, t: averaged(x, t.expand(len(x))),
        }


def main() -> None:
    asked = common.arguments(__doc__, batch_size=BATCH_SIZE, steps_to_draw=250)
    torch.manual_seed(asked.seed)
    # fp16 is what its amp=True means
    accelerator = Accelerator(mixed_precision="fp16" if torch.cuda.is_available() else "no")
    pictures = common.load_pictures(asked.data, asked.resolution).to(accelerator.device)
    budget = common.Budget(asked)

    # A mirrored digit is no digit; everything else is mirrored, as is its default.
    batches = common.Batches(pictures, asked.batch_size, flip=asked.data != "digits")
    network = build(asked.resolution, pictures.shape[1], asked.network)
    recipe = Recipe(network, batches, accelerator, asked.steps_to_draw)
    for _ in budget.spend(**recipe.parts):
        budget.count(*recipe.step())

    recipe.ema.eval()

    def sample(number: int) -> Tensor:
        # `Trainer` draws in fp32, for which the flash attention of its README has no kernel (its issue 239).
        with accelerator.autocast():
            return recipe.ema.ema_model.sample(batch_size=number)

    seconds = common.draw(sample, asked)
    sampler = "ddim" if recipe.ema.ema_model.is_ddim_sampling else "ddpm"
    common.report("denoising-diffusion-pytorch", asked, accelerator, recipe.network, budget, sampler, seconds)


if __name__ == "__main__":
    main()
