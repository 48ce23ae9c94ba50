"""python benchmarks/peers/diffusers_recipe.py --data PARQUET --minutes 20 --num_images 10000 --output FOLDER
python benchmarks/peers/diffusers_recipe.py --data digits --minutes 0.2 --num_images 16 --steps_to_draw 5 --tiny \\
    --output FOLDER                                                            a rehearsal

diffusers' example of unconditional training (examples/unconditional_image_generation), its network and its values,
for a given time instead of a number of epochs. The length of its schedule follows from the speed; on CUDA the network
runs in bf16, which the example offers. Pictures are kept decoded in memory, so that no loader holds it back.
"""

import math
import sys

import common
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor

WARM_UP = 500


def build(resolution: int, channels: int, tiny: bool) -> UNet2DModel:
    """The example's 113.7 million parameters, with as many channels as the pictures have."""
    widths, blocks, attends = ((32, 32), 1, 1) if tiny else ((128, 128, 256, 256, 512, 512), 2, 4)
    halvings = len(widths) - 1
    if resolution % 2**halvings:
        sys.exit(f"--resolution: halved {halvings} times, {resolution} leaves a rest; name a multiple of {2**halvings}")
    attention = [level == attends for level in range(len(widths))]
    return UNet2DModel(
        sample_size=resolution,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=blocks,
        block_out_channels=widths,
        down_block_types=tuple("AttnDownBlock2D" if attend else "DownBlock2D" for attend in attention),
        up_block_types=tuple("AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attention)),
    )


def main() -> None:
    asked = common.arguments(__doc__, batch_size=16, steps_to_draw=1000)
    torch.manual_seed(asked.seed)
    accelerator = Accelerator(mixed_precision="bf16" if torch.cuda.is_available() else "no")
    pictures = common.load_pictures(asked.data, asked.resolution).to(accelerator.device)
    budget = common.Budget(asked)

    def rate(step: int) -> float:
        """The example's schedule: 500 steps up, then half a cosine down to 0 at the last step.

        Which step will be the last is not known. It is estimated from the speed so far, anew at each step, so that
        the cosine ends when the time does: neither before, with time left over, nor cut off.
        """
        if step < WARM_UP:
            return step / WARM_UP
        total = step / budget.used
        return 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / max(1, total - WARM_UP)))

    network = build(asked.resolution, pictures.shape[1], asked.tiny)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    network, optimizer = accelerator.prepare(network, optimizer)
    noise_scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    # foreach: the same average in fewer and larger operations
    ema = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75, foreach=True)

    # A mirrored digit is no digit; everything else is mirrored, as the example's README does.
    batches = common.Batches(pictures, asked.batch_size, flip=asked.data != "digits")
    for _ in budget.spend(
        network=network, optimizer=optimizer, schedule=schedule, ema=ema, batches=batches, scaler=accelerator.scaler
    ):
        clean = next(batches) * 2 - 1
        noise = torch.randn_like(clean)  # fp32, as the pictures; training in bf16, the example would round both to it
        t = torch.randint(0, noise_scheduler.config.num_train_timesteps, (len(clean),), device=clean.device)
        loss = F.mse_loss(network(noise_scheduler.add_noise(clean, noise, t), t).sample, noise)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        ema.step(network.parameters())
        budget.count(len(clean), loss)

    ema.copy_to(network.parameters())
    pipeline = DDPMPipeline(accelerator.unwrap_model(network), noise_scheduler)
    pipeline.set_progress_bar_config(desc="steps", leave=False)

    def sample(number: int) -> Tensor:
        return pipeline(number, num_inference_steps=asked.steps_to_draw, output_type="pt").images

    seconds = common.draw(sample, asked)
    common.report("diffusers", asked, accelerator, network, budget, "ddpm", seconds)


if __name__ == "__main__":
    main()
