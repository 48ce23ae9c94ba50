"""A decoder that samples, beside the decoder of configs/autoencoder.yaml: DiTo (Chen et al. 2025).

    python benchmarks/diffusion_decoder.py DATA --minutes 20 --resolution 32 --lpips VGG16

The encoder is that of configs/autoencoder.yaml, and its latents have mean 0 and spread 1 at each position. The decoder
is a U-Net of about as many weights as the usual one, which gets them as planes beside the noisy image. Both train by
flow matching alone, in as many steps as fit into the processor minutes. Scored as by `diffunet evaluate`, after
decoding in each number of network calls; benchmarks/latents.py has the usual autoencoder in the same minutes.
"""

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from efficientnet import efficientnet_features
from records import add_record_flag, append_rows, machine, table
from torch import Tensor, nn

from diffunet import UNet
from diffunet.core.rng import BatchRNG, fixed_subset
from diffunet.core.runtime import precision
from diffunet.data.config import DataConfig
from diffunet.data.dataset import load_images
from diffunet.data.pixels import denormalize, normalize
from diffunet.evaluation.compressed import compressed_scores
from diffunet.evaluation.features import PixelFeatures
from diffunet.models.autoencoder import AutoencoderConfig
from diffunet.models.conditioning import Conditioning, TimeEmbedding
from diffunet.models.config import LevelConfig, UNetConfig
from diffunet.objectives.flow import Flow, FlowConfig
from diffunet.runs.figures import save_comparison
from diffunet.sampling.loop import sample
from diffunet.tasks.autoencoding import load_lpips
from diffunet.training.ema import EMA

BATCH, WARMUP, MEASURED = 16, 50, 10
CALLS = (1, 2, 5, 10)
SCORED = 1000
"""Images that are scored, and those that they are compared with."""


class DiffusionAutoencoder(nn.Module):
    """An encoder, and a U-Net that samples images given their latents."""

    def __init__(self, config: AutoencoderConfig, channels: int):
        super().__init__()
        autoencoder = config.build(channels)
        self.encoder = autoencoder
        self.weights_of_usual_decoder = count(autoencoder.network.decoder)
        autoencoder.network.decoder = nn.Identity()
        levels = tuple(LevelConfig(channels=width, blocks=1) for width in (48, 64))
        self.unet = UNet(
            UNetConfig(
                in_channels=channels,
                out_channels=channels,
                plane_channels=config.latent_channels,
                levels=levels,
                unshuffle=2,
                skips="level",
                norm_groups=16,
                vector_dim=128,
                middle_attention=False,
            )
        )
        self.time = TimeEmbedding(128, 48)

    def encode(self, image: Tensor) -> Tensor:
        """Return the latents (B, C', h, w), with mean 0 and spread 1 at each position."""
        mean = self.encoder.encode(image)[0]
        return F.layer_norm(mean.movedim(1, -1), mean.shape[1:2]).movedim(-1, 1)

    def forward(self, x_t: Tensor, t: Tensor, latent: Tensor) -> Tensor:
        """Return the velocity."""
        planes = F.interpolate(latent, size=x_t.shape[2:], mode="nearest")
        return self.unet(x_t, self.time(t) + Conditioning(planes=planes))


def count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def train(model: DiffusionAutoencoder, pixels: Tensor, minutes: float, seed: int) -> tuple[nn.Module, int, float]:
    """Return the averaged weights, the steps, and the processor minutes."""
    objective, rng = Flow(FlowConfig()), BatchRNG(torch.Generator().manual_seed(seed))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    ema = EMA(model, lambda step: 0.01)
    generator = torch.Generator().manual_seed(seed)
    in_bf16 = precision("auto", torch.device("cpu")) == "bf16"
    started, steps, step = time.process_time(), 10**9, 0
    while step < steps:
        image = normalize(pixels[torch.randint(len(pixels), (BATCH,), generator=generator)], 8)
        rate = 2e-3 * min(1, (step + 1) / WARMUP) * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / steps)).item())
        optimizer.param_groups[0]["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
            latent = model.encode(image).float()
            loss = objective.loss(lambda x_t, t, latent=latent: model(x_t, t, latent).float(), image, rng)[
                "loss"
            ].mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.update(step)
        step += 1
        if step == MEASURED:
            measured = time.process_time()
        if step == 3 * MEASURED:
            steps = max(step, round(60 * minutes / ((time.process_time() - measured) / (2 * MEASURED))))
        if step % 100 == 0:
            print(f"{step:,} of {steps:,}: loss {loss.item():.4f}", flush=True)
    return ema.model, steps, (time.process_time() - started) / 60


@torch.no_grad()
def decode(model: nn.Module, pixels: Tensor, calls: int) -> Tensor:
    """Return images (N, C, H, W), as integers, after encoding and decoding."""
    objective, parts = Flow(FlowConfig()), []
    for index, chunk in enumerate(pixels.split(100)):
        image = normalize(chunk, 8)
        latent = model.encode(image)
        noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(index))
        solver = objective.sampler("dpm++", calls, tuple(image.shape[2:]))
        found = sample(lambda x_t, t, latent=latent: model(x_t, t, latent), solver, noise, [])
        parts.append(denormalize(found, 8))
    return torch.cat(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--minutes", type=float, default=20, help="of the processor (%(default)s)")
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--lpips", metavar="VGG16", help="weights in the format of torchvision's; none: without LPIPS")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=Path, default="decoded.png")
    parser.add_argument("--tiny", action="store_true", help="a few steps of digits, compared as pixels")
    add_record_flag(parser)
    args = parser.parse_args()
    size, channels = (16, 1) if args.tiny else (args.resolution, 3)
    data = DataConfig(path="digits" if args.tiny else args.data, resolution=size, channels=channels, bit_depth=8)
    trained, held_out = (split.plain() for split in load_images(data, log=print).split_held_out())
    scored, others = (
        split.__getitems__(fixed_subset(len(split), 50 if args.tiny else SCORED).tolist())["image"]
        for split in (held_out, trained)
    )
    torch.manual_seed(args.seed)
    model = DiffusionAutoencoder(AutoencoderConfig(), channels)
    print(f"decoder: {count(model.unet):,} weights, the usual one {model.weights_of_usual_decoder:,}")
    pixels = trained.__getitems__(list(range(len(trained))))["image"]
    averaged, steps, minutes = train(model, pixels, 0.001 if args.tiny else args.minutes, args.seed)
    features = PixelFeatures(8) if args.tiny else efficientnet_features()
    distance, rows, figure = load_lpips(args.lpips) if args.lpips else None, [], [("image", scored[:12], 8)]
    for calls in CALLS:
        after = decode(averaged.eval(), scored, calls)
        figure.append((f"{calls} calls", after[:12], 8))
        scores = compressed_scores(scored, after, others, 8, features, distance)
        about = {"name": "diffusion decoder", "calls": calls, "seed": args.seed, "steps": steps, "minutes": minutes}
        rows.append(about | {"resolution": size, "weights": count(model.unet), "scores": scores})
    save_comparison(args.figure, figure)
    lines = [[str(row["calls"]), *(f"{each['value']:.4g}" for each in row["scores"].values())] for row in rows]
    print(f"\n{machine()}, {torch.get_num_threads()} threads, {steps:,} steps, {minutes:.3g} processor minutes.\n")
    print(table(["calls", *rows[0]["scores"]], lines))
    if args.record:
        append_rows("latents", rows)


if __name__ == "__main__":
    main()
