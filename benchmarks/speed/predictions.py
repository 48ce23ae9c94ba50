"""Prediction of one image, 512×512 as the paper of 2015 times it, by two networks with random weights.

    python benchmarks/speed/predictions.py                      on a CPU, or on a GPU if there is one
    python benchmarks/speed/predictions.py --tiny               a smaller image, to rehearse

The network of configs/membranes.yaml in tiles of its patch, as `diffunet predict` does, and of the whole image; the
unpadded network of 2015 at full width, with mirrored borders, in the paper's tiles of 572×572, and in the one tile of
which the output covers the image. Median of --rounds calls in turn.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from report import add_record_flag, append_rows, header, table
from timing import format_median, interleaved

from diffunet.core.runtime import default_device
from diffunet.models.config import UNetConfig
from diffunet.models.inspection import describe
from diffunet.models.predictor import Predictor
from diffunet.models.unet import UNet

CONFIG = Path(__file__).parents[2] / "configs" / "membranes.yaml"


def networks() -> dict[str, UNetConfig]:
    """Return both networks, of one channel and two classes."""
    own = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["unet"] | {"in_channels": 1, "out_channels": 2}
    return {"membranes.yaml": UNetConfig.model_validate(own), "2015": UNetConfig(preset="unet2015")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="an image of 64×64")
    add_record_flag(parser)
    args = parser.parse_args()
    side, device = 64 if args.tiny else 512, default_device()
    tiles = {"membranes.yaml": [min(side, 128), side], "2015": [252] if args.tiny else [572, 700]}
    image = torch.rand(1, 1, side, side, device=device)
    calls: dict[tuple[str, int], Callable[[], object]] = {}
    for name, config in networks().items():
        predictor = Predictor(UNet(config)).to(device).eval().requires_grad_(False)
        for tile in dict.fromkeys(tiles[name]):
            tiled = predictor.tiled(tile)
            calls[name, tile] = lambda tiled=tiled: tiled(image)
    seconds = interleaved(calls, args.rounds)
    parts = {name: describe(config, (572, 572))[-1] for name, config in networks().items()}
    rows = [
        [name, f"{parts[name].parameters / 1e6:.1f}", f"{tile}×{tile}", format_median(values)]
        for (name, tile), values in seconds.items()
    ]
    print(header(device))
    print(table(["network", "million parameters", "tile", f"seconds for {side}×{side}"], rows))
    if args.record:
        found = [{"network": name, "tile": tile, "seconds": v.tolist()} for (name, tile), v in seconds.items()]
        append_rows("predictions", [{"side": side, **row} for row in found])


if __name__ == "__main__":
    main()
