"""python benchmarks/peers/denoising_diffusion.py --data PARQUET --minutes 20 --num_images 10000 --output FOLDER
python benchmarks/peers/denoising_diffusion.py --data digits --minutes 0.2 --num_images 16 --steps_to_draw 5 --tiny \\
    --output FOLDER                                                            a rehearsal

lucidrains' denoising-diffusion-pytorch (pip install denoising-diffusion-pytorch), with the network and the values of
its README, for a given time. Its `Trainer` counts steps, decodes files again in every round, stops for previews and
downloads a network for its FID; so its `Unet`, its `GaussianDiffusion` and the `EMA` it uses are driven directly
here, with the values that `Trainer` would give them.
"""

import common
import torch
from accelerate import Accelerator
from denoising_diffusion_pytorch import GaussianDiffusion, Unet
from ema_pytorch import EMA
from torch import Tensor

ACCUMULATED = 2
"""Batches for a step of the optimiser."""


def main() -> None:
    asked = common.arguments(__doc__, batch_size=32, steps_to_draw=250)
    torch.manual_seed(asked.seed)
    cuda = torch.cuda.is_available()
    accelerator = Accelerator(mixed_precision="fp16" if cuda else "no")  # what its amp=True means
    pictures = common.load_pictures(asked.data, asked.resolution).to(accelerator.device)
    budget = common.Budget(asked)

    size = {"dim": 8, "dim_mults": (1, 2)} if asked.tiny else {"dim": 64, "dim_mults": (1, 2, 4, 8)}
    network = Unet(**size, channels=pictures.shape[1], flash_attn=cuda)
    diffusion = GaussianDiffusion(
        network, image_size=asked.resolution, timesteps=1000, sampling_timesteps=asked.steps_to_draw
    ).to(accelerator.device)
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=8e-5, betas=(0.9, 0.99))
    ema = EMA(diffusion, beta=0.995, update_every=10).to(accelerator.device)
    diffusion, optimizer = accelerator.prepare(diffusion, optimizer)

    # A mirrored digit is no digit; everything else is mirrored, as is its default.
    batches = common.Batches(pictures, asked.batch_size, flip=asked.data != "digits")
    # `ema` holds the network as well.
    for _ in budget.spend(optimizer=optimizer, ema=ema, batches=batches, scaler=accelerator.scaler):
        images = 0
        for _ in range(ACCUMULATED):
            batch = next(batches)
            loss = diffusion(batch)  # it scales [0, 1] to [-1, 1] itself
            accelerator.backward(loss / ACCUMULATED)
            images += len(batch)
        accelerator.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update()
        budget.count(images, loss)

    ema.eval()

    def sample(number: int) -> Tensor:
        # `Trainer` draws in fp32, for which the flash attention of its README has no kernel (its issue 239).
        with accelerator.autocast():
            return ema.ema_model.sample(batch_size=number)

    seconds = common.draw(sample, asked)
    sampler = "ddim" if diffusion.is_ddim_sampling else "ddpm"
    common.report("denoising-diffusion-pytorch", asked, accelerator, network, budget, sampler, seconds)


if __name__ == "__main__":
    main()
