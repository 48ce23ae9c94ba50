"""Train a small class-conditional U-Net with DDPM on 8×8 digits and sample a grid, without a run folder.

python examples/minimal.py [STEPS] [FILE]          # 500 steps, about a minute on two CPU cores; digits.png
"""

import copy
import sys

import torch
from PIL import Image
from sklearn.datasets import load_digits

from diffunet import DDPM, DDPMConfig, Denoiser, Guided, LabelConfig, LevelConfig, UNetConfig, sample


def main(steps: int = 500, file: str = "digits.png") -> torch.Tensor:
    torch.manual_seed(0)
    digits = load_digits()
    image = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1  # (1797, 1, 8, 8) in [-1, 1]
    label = torch.tensor(digits.target)  # (1797,)

    levels = [LevelConfig(channels=32, blocks=1), LevelConfig(channels=32, blocks=1, attention=True)]
    unet = UNetConfig(levels=levels, in_channels=1, out_channels=1, vector_dim=128, norm_groups=8)
    model = Denoiser.from_config(unet, conditions={"label": LabelConfig(num_classes=10)})
    ddpm = DDPM(DDPMConfig(prediction_type="v_prediction", beta_schedule="cosine", condition_dropout=0.1))

    ema = copy.deepcopy(model).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for step in range(steps):
        rows = torch.randint(len(image), (64,))
        loss = ddpm.loss(model, image[rows], label=label[rows])["loss"].mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        for average, parameter in zip(ema.parameters(), model.parameters(), strict=True):
            average.lerp_(parameter, 1 - min(0.99, (1 + step) / (10 + step)))
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}")

    guided = Guided(ema, guidance_scale=1.3)
    noise = torch.randn(100, 1, 8, 8)
    samples = sample(guided, ddpm.sampler("dpm++", steps=20), noise, label=torch.arange(10).repeat(10))
    grid = samples.reshape(10, 10, 8, 8).transpose(1, 2).reshape(80, 80)  # column k shows digit k
    pixels = (grid * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    Image.fromarray(pixels).resize((640, 640), Image.Resampling.BICUBIC).save(file)
    print(f"{len(samples)} samples: {file}")
    return samples


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:3])
