"""python benchmarks/baselines/diffusers_recipe.py --data PARQUET --minutes 20 --num_images 10000 --output FOLDER
python benchmarks/baselines/diffusers_recipe.py --data digits --minutes 0.2 --num_images 16 --tiny \\
    --sampling_steps 5 --output FOLDER                                                            a rehearsal

diffusers' example of unconditional training (examples/unconditional_image_generation), its network and its settings,
for a given time instead of a number of epochs. The length of its schedule follows from the speed; on CUDA the network
runs in bf16, which the example offers. Images are kept decoded in memory, so that no loader limits it.
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
"""Of the example; the warm-up is in steps."""


def build(resolution: int, channels: int, size: str) -> UNet2DModel:
    """Return the example's network of 113.7 million parameters or a smaller one."""
    widths, blocks, attends, groups = {
        "as_shipped": ((128, 128, 256, 256, 512, 512), 2, 4, 32),
        "small": ((32, 32), 1, None, 8),
        "compact": ((32, 64, 96), 1, 1, 8),
        "tiny": ((32, 32), 1, 1, 32),
    }[size]
    halvings = len(widths) - 1
    if resolution % 2**halvings:
        sys.exit(f"--resolution: {resolution} cannot be halved {halvings} times; use a multiple of {2**halvings}")
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
    """The example's optimizer, schedule, EMA and step, for a network and batches in [0, 1].

    `last_step(step)` is a new estimate of the last step at each step; None: that of the example's epochs. The other
    values are the example's.
    """

    def __init__(
        self,
        network: UNet2DModel,
        batches: common.Batches,
        accelerator: Accelerator,
        last_step: Callable[[int], float] | None = None,
        learning_rate: float = 1e-4,
        betas: tuple[float, float] = (0.95, 0.999),
        warm_up: int = WARM_UP,
        ema: tuple[float, float] = (0.9999, 0.75),
        prediction_type: str = "epsilon",
        beta_schedule: str = "linear",
    ):
        self.total_steps = EPOCHS * math.ceil(len(batches.images) / batches.size)

        def rate(step: int) -> float:
            """Return the factor of the learning rate: a linear warm-up, then a cosine to 0 at the last step."""
            if step < warm_up:
                return step / warm_up
            last = last_step(step) if last_step else self.total_steps
            return 0.5 * (1 + math.cos(math.pi * min(1, (step - warm_up) / max(1, last - warm_up))))

        weights, decay = network.parameters(), {"weight_decay": 1e-6, "eps": 1e-8}
        optimizer = torch.optim.AdamW(weights, lr=learning_rate, betas=betas, **decay)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        self.network, self.optimizer = accelerator.prepare(network, optimizer)
        # foreach: the same EMA in fewer and larger operations
        decay, power = ema
        self.ema = EMAModel(
            self.network.parameters(), decay=decay, use_ema_warmup=True, inv_gamma=1.0, power=power, foreach=True
        )
        self.noise_scheduler = DDPMScheduler(
            num_train_timesteps=1000, beta_schedule=beta_schedule, prediction_type=prediction_type
        )
        self.batches, self.accelerator = batches, accelerator

    @property
    def parts(self) -> dict:
        """The objects that training changes."""
        names = ("network", "optimizer", "schedule", "ema", "batches")
        return {name: getattr(self, name) for name in names} | {"scaler": self.accelerator.scaler}

    def step(self) -> tuple[int, Tensor]:
        """Train one step. Return the number of images, and the loss."""
        clean = next(self.batches) * 2 - 1
        noise = torch.randn_like(clean)  # in fp32, where the example would round it to bf16
        t = torch.randint(0, self.noise_scheduler.config.num_train_timesteps, (len(clean),), device=clean.device)
        is_v = self.noise_scheduler.config.prediction_type == "v_prediction"
        target = self.noise_scheduler.get_velocity(clean, noise, t) if is_v else noise
        loss = F.mse_loss(self.network(self.noise_scheduler.add_noise(clean, noise, t), t).sample, target)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.ema.step(self.network.parameters())
        return len(clean), loss

    def predictors(self) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
        """Return the network and its EMA as functions of images and time."""
        averaged = deepcopy(self.accelerator.unwrap_model(self.network))
        self.ema.copy_to(averaged.parameters())
        return {"raw": lambda x, t: self.network(x, t).sample, "EMA": lambda x, t: averaged(x, t).sample}


def main() -> None:
    args = common.arguments(__doc__, batch_size=BATCH_SIZE, sampling_steps=1000)
    torch.manual_seed(args.seed)
    accelerator = Accelerator(mixed_precision="bf16" if torch.cuda.is_available() else "no")
    images = common.load_images(args.data, args.resolution).to(accelerator.device)
    budget = common.Budget(args)

    # Digits are not mirrored; everything else is, as the example's README does.
    batches = common.Batches(images, args.batch_size, flip=args.data != "digits")
    network = build(args.resolution, images.shape[1], args.network)
    # The last step is estimated from the speed so far, again at each step, so that the cosine ends when the time does.
    recipe = Recipe(network, batches, accelerator, last_step=lambda step: step / budget.used)
    for _ in budget.spend(**recipe.parts):
        budget.count(*recipe.step())

    recipe.ema.copy_to(recipe.network.parameters())
    pipeline = DDPMPipeline(accelerator.unwrap_model(recipe.network), recipe.noise_scheduler)
    pipeline.set_progress_bar_config(desc="steps", leave=False)

    def sample(number: int) -> Tensor:
        return pipeline(number, num_inference_steps=args.sampling_steps, output_type="pt").images

    seconds = common.save_samples(sample, args)
    common.report("diffusers", args, accelerator, recipe.network, budget, "ddpm", seconds)


if __name__ == "__main__":
    main()
