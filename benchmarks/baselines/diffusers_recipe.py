"""python benchmarks/peers/diffusers_recipe.py --data PARQUET --minutes 20 --num_images 10000 --output FOLDER
python benchmarks/peers/diffusers_recipe.py --data digits --minutes 0.2 --num_images 16 --steps_to_draw 5 --tiny \\
    --output FOLDER                                                            a rehearsal

diffusers' example of unconditional training (examples/unconditional_image_generation), its network and its values,
for a given time instead of a number of epochs. The length of its schedule follows from the speed; on CUDA the network
runs in bf16, which the example offers. ImageDataset are kept decoded in memory, so that no loader holds it back.
"""

import math
import sys
from collections.abc import Callable
from copy import deepcopy

import common
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor

BATCH_SIZE, EPOCHS, WARM_UP = 16, 100, 500
"""Of the example; the warm-up in steps."""


def build(resolution: int, channels: int, size: str) -> UNet2DModel:
    """The example's 113.7 million parameters or fewer, with as many channels as the pictures have."""
    widths, blocks, attends, groups = {
        "as_shipped": ((128, 128, 256, 256, 512, 512), 2, 4, 32),
        "small": ((32, 32), 1, None, 8),
        "tiny": ((32, 32), 1, 1, 32),
    }[size]
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
        norm_num_groups=groups,
        down_block_types=tuple("AttnDownBlock2D" if attend else "DownBlock2D" for attend in attention),
        up_block_types=tuple("AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attention)),
    )


class Recipe:
    """The example's optimiser, schedule, average and step, for a network and batches in [0, 1].

    `last_step(step)` says, at each step anew, which will be the last, if not that of the example's epochs.
    """

    def __init__(
        self,
        network: UNet2DModel,
        batches: common.Batches,
        accelerator: Accelerator,
        last_step: Callable[[int], float] | None = None,
    ):
        self.total_steps = EPOCHS * math.ceil(len(batches.pictures) / batches.size)

        def rate(step: int) -> float:
            """500 steps up, then half a cosine down to 0 at the last step."""
            if step < WARM_UP:
                return step / WARM_UP
            last = last_step(step) if last_step else self.total_steps
            return 0.5 * (1 + math.cos(math.pi * min(1, (step - WARM_UP) / max(1, last - WARM_UP))))

        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        self.network, self.optimizer = accelerator.prepare(network, optimizer)
        # foreach: the same average in fewer and larger operations
        self.ema = EMAModel(
            self.network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75, foreach=True
        )
        self.noise_scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
        self.batches, self.accelerator = batches, accelerator

    @property
    def parts(self) -> dict:
        """What training changes."""
        names = ("network", "optimizer", "schedule", "ema", "batches")
        return {name: getattr(self, name) for name in names} | {"scaler": self.accelerator.scaler}

    def step(self) -> tuple[int, Tensor]:
        """One step of the optimiser; how many pictures it saw, and the loss."""
        clean = next(self.batches) * 2 - 1
        noise = torch.randn_like(clean)  # fp32, as the pictures; training in bf16, the example would round both to it
        t = torch.randint(0, self.noise_scheduler.config.num_train_timesteps, (len(clean),), device=clean.device)
        loss = F.mse_loss(self.network(self.noise_scheduler.add_noise(clean, noise, t), t).sample, noise)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.ema.step(self.network.parameters())
        return len(clean), loss

    def predictors(self) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
        """The network as it is and as its average, as functions of pictures and time."""
        averaged = deepcopy(self.accelerator.unwrap_model(self.network))
        self.ema.copy_to(averaged.parameters())
        return {"raw": lambda x, t: self.network(x, t).sample, "average": lambda x, t: averaged(x, t).sample}


def main() -> None:
    asked = common.arguments(__doc__, batch_size=BATCH_SIZE, steps_to_draw=1000)
    torch.manual_seed(asked.seed)
    accelerator = Accelerator(mixed_precision="bf16" if torch.cuda.is_available() else "no")
    pictures = common.load_pictures(asked.data, asked.resolution).to(accelerator.device)
    budget = common.Budget(asked)

    # A mirrored digit is no digit; everything else is mirrored, as the example's README does.
    batches = common.Batches(pictures, asked.batch_size, flip=asked.data != "digits")
    network = build(asked.resolution, pictures.shape[1], asked.network)
    # Which step will be the last is not known. It is estimated from the speed so far, anew at each step, so that
    # the cosine ends when the time does: neither before, with time left over, nor cut off.
    recipe = Recipe(network, batches, accelerator, last_step=lambda step: step / budget.used)
    for _ in budget.spend(**recipe.parts):
        budget.count(*recipe.step())

    recipe.ema.copy_to(recipe.network.parameters())
    pipeline = DDPMPipeline(accelerator.unwrap_model(recipe.network), recipe.noise_scheduler)
    pipeline.set_progress_bar_config(desc="steps", leave=False)

    def sample(number: int) -> Tensor:
        return pipeline(number, num_inference_steps=asked.steps_to_draw, output_type="pt").images

    seconds = common.draw(sample, asked)
    common.report("diffusers", asked, accelerator, recipe.network, budget, "ddpm", seconds)


if __name__ == "__main__":
    main()
