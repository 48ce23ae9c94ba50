"""python benchmarks/baselines/denoising_diffusion.py --data PARQUET --minutes 20 --num_images 10000 --output FOLDER
python benchmarks/baselines/denoising_diffusion.py --data digits --minutes 0.2 --num_images 16 --tiny \\
    --sampling_steps 5 --output FOLDER                                                            a rehearsal

lucidrains' denoising-diffusion-pytorch (pip install denoising-diffusion-pytorch), with the network and the settings of
its README, for a given time. Its `Trainer` counts steps, decodes files again in every epoch, stops for previews and
downloads a network for its FID; so this drives its `Unet`, its `GaussianDiffusion` and the `EMA` it uses directly,
with the settings of `Trainer`.
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
"""Images per batch, and batches per optimizer step."""


def build(resolution: int, channels: int, size: str) -> Unet:
    """Return the README's network of 35.7 million parameters or a smaller one, for any resolution."""
    width, multiples = {
        "as_shipped": (64, (1, 2, 4, 8)),
        "small": (32, (1, 1)),
        "compact": (32, (1, 2, 3)),
        "tiny": (8, (1, 2)),
    }[size]
    return Unet(dim=width, dim_mults=multiples, channels=channels, flash_attn=torch.cuda.is_available())


class Recipe:
    """The objective, optimizer, EMA and step of its `Trainer`, for a network and batches in [0, 1].

    `last_step` is not needed, because its learning rate is constant.
    """

    total_steps = 700_000

    def __init__(
        self,
        network: Unet,
        batches: common.Batches,
        accelerator: Accelerator,
        last_step: Callable[[int], float] | None = None,
        sampling_steps: int = 250,
        learning_rate: float = 8e-5,
    ):
        diffusion = GaussianDiffusion(
            network, image_size=batches.images.shape[-1], timesteps=1000, sampling_timesteps=sampling_steps
        ).to(accelerator.device)
        optimizer = torch.optim.Adam(diffusion.parameters(), lr=learning_rate, betas=(0.9, 0.99))
        self.network = network
        self.ema = EMA(diffusion, beta=0.995, update_every=10).to(accelerator.device)
        self.diffusion, self.optimizer = accelerator.prepare(diffusion, optimizer)
        self.batches, self.accelerator = batches, accelerator
        betas = diffusion.betas.tolist()
        self.noise_scheduler = DDPMScheduler(trained_betas=betas, prediction_type="v_prediction")

    @property
    def parts(self) -> dict:
        """The objects that training changes; `ema` holds the network as well."""
        names = ("optimizer", "ema", "batches")
        return {name: getattr(self, name) for name in names} | {"scaler": self.accelerator.scaler}

    def step(self) -> tuple[int, Tensor]:
        """Train one step. Return the number of images, and the last loss."""
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
        """Return the network and its EMA as functions of images and time."""
        averaged = self.ema.ema_model.model
        return {
            "raw": lambda x, t: self.network(x, t.expand(len(x))),
            "EMA": lambda x, t: averaged(x, t.expand(len(x))),
        }


def main() -> None:
    args = common.arguments(__doc__, batch_size=BATCH_SIZE, sampling_steps=250)
    torch.manual_seed(args.seed)
    # fp16 is what its amp=True means
    accelerator = Accelerator(mixed_precision="fp16" if torch.cuda.is_available() else "no")
    images = common.load_images(args.data, args.resolution).to(accelerator.device)
    budget = common.Budget(args)

    # Digits are not mirrored; everything else is, as is its default.
    batches = common.Batches(images, args.batch_size, flip=args.data != "digits")
    network = build(args.resolution, images.shape[1], args.network)
    recipe = Recipe(network, batches, accelerator, sampling_steps=args.sampling_steps)
    for _ in budget.spend(**recipe.parts):
        budget.count(*recipe.step())

    recipe.ema.eval()

    def sample(number: int) -> Tensor:
        # `Trainer` samples in fp32, for which the flash attention of its README has no kernel (its issue 239).
        with accelerator.autocast():
            return recipe.ema.ema_model.sample(batch_size=number)

    seconds = common.save_samples(sample, args)
    sampler = "ddim" if recipe.ema.ema_model.is_ddim_sampling else "ddpm"
    common.report("denoising-diffusion-pytorch", args, accelerator, recipe.network, budget, sampler, seconds)


if __name__ == "__main__":
    main()
