"""Condition a diffusion model on a quantity of your own: here the ink of a digit, a number from 0 to 1.

python examples/your_own_condition.py [STEPS]      # 500 steps, about a minute on two CPU cores
"""

import sys

import torch
from sklearn.datasets import load_digits

from diffunet import DDPM, Conditioning, DDPMConfig, Denoiser, LevelConfig, TimeEmbedding, UNet, UNetConfig, sample


class InkEmbedding(torch.nn.Module):
    """Embed a number in [0, 1] as a vector, with a learned null embedding for examples without one."""

    def __init__(self, vector_dim: int):
        super().__init__()
        self.mlp = torch.nn.Sequential(torch.nn.Linear(1, 64), torch.nn.SiLU(), torch.nn.Linear(64, vector_dim))
        self.null_embedding = torch.nn.Parameter(torch.zeros(1, vector_dim))

    def forward(self, ink: torch.Tensor | None, keep_mask: torch.Tensor | None = None) -> Conditioning:
        """ink: (B,) or None. keep_mask: (B,) bool, False drops the condition of that example."""
        if ink is None:
            return Conditioning(vector=self.null_embedding)
        vector = self.mlp(4 * ink[:, None] - 2)  # (B, vector_dim)
        if keep_mask is not None:
            vector = torch.where(keep_mask[:, None], vector, self.null_embedding)
        return Conditioning(vector=vector)


def main(steps: int = 500) -> list[float]:
    torch.manual_seed(0)
    image = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1  # (1797, 1, 8, 8) in [-1, 1]
    ink = (image.mean((1, 2, 3)) + 1) / 2  # (1797,)

    levels = [LevelConfig(channels=32, blocks=1), LevelConfig(channels=32, blocks=1)]
    unet = UNet(UNetConfig(levels=levels, in_channels=1, out_channels=1, vector_dim=128, norm_groups=8))
    model = Denoiser(unet, time=TimeEmbedding(128, channels=32), ink=InkEmbedding(128))  # the condition is called ink
    ddpm = DDPM(DDPMConfig(prediction_type="v_prediction", beta_schedule="cosine", condition_dropout=0.1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(steps):
        rows = torch.randint(len(image), (64,))
        ddpm.loss(model, image[rows], ink=ink[rows])["loss"].mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    requested = torch.tensor([0.2, 0.3, 0.4]).repeat_interleave(16)
    samples = sample(model.eval(), ddpm.sampler("dpm++", steps=20), torch.randn(48, 1, 8, 8), ink=requested)
    measured = ((samples.mean((1, 2, 3)) + 1) / 2).reshape(3, 16).mean(1).tolist()
    print("requested ink 0.2, 0.3, 0.4; measured " + ", ".join(f"{value:.2f}" for value in measured))
    return measured


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
